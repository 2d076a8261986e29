"""A run's events as they cross the wire (SSE), and the compact records a gateway reports after a run or a model call.

An event is `id: <n>`, `event: <name>`, `data: <JSON object>`. The data of each:

    session.waking {"session_id"}: without an id; the session's worker is not awake yet
    run.started    {"run_id", "session_id", "version"}
    message.delta  {"text"}
    progress       {"percent", "message"?}
    tool.call      {"id"?, "name", "arguments"}        tool.result  {"id"?, "name", "output"}
    step           {"name", "data"}                    custom       {"name", "data"}
    usage          {"input_tokens", "output_tokens"}
    run.completed  {"output", "metadata"} (the answer of the plain call)
    ask.opened     {"ask_id", "question", "choices"?, "expires_at"?}     ask.answered, ask.expired  {"ask_id", "answer"}
    run.waiting    {"asks": [{"ask_id", "question"}]}: ends an attempt of a task, not the task
    events.gap     {"first", "last"}: numbers of events that are no longer kept
    run.failed     a problem (`nexus.wire.problem`)    run.cancelled  a problem with code `run.cancelled`
"""

from typing import Final, Literal, NotRequired, TypedDict

RUN_STARTED: Final = "run.started"
MESSAGE_DELTA: Final = "message.delta"
PROGRESS: Final = "progress"
TOOL_CALL: Final = "tool.call"
TOOL_RESULT: Final = "tool.result"
STEP: Final = "step"
CUSTOM: Final = "custom"
USAGE: Final = "usage"
RUN_COMPLETED: Final = "run.completed"
RUN_FAILED: Final = "run.failed"
RUN_CANCELLED: Final = "run.cancelled"
RUN_WAITING: Final = "run.waiting"
EVENTS_GAP: Final = "events.gap"
TERMINAL: Final = frozenset({RUN_COMPLETED, RUN_FAILED, RUN_CANCELLED})

Outcome = Literal["completed", "failed", "cancelled", "refused"]
Mode = Literal["sync", "stream", "task"]


class RunRecord(TypedDict):
    """One finished run, as the gateway saw it. Times are seconds since the epoch, durations seconds, sizes bytes. `cpu_s` is
    told by workers that serve one session. `network_*` is what connections that it opened had passed through the way out when it
    was recorded; control adds it, where there is a way out."""

    kind: Literal["run"]
    id: str
    tenant: str
    agent: str
    environment: str
    deployment_id: str
    version: str
    instance_id: str
    session_id: str
    principal: str
    mode: Mode
    outcome: Outcome
    status: int
    code: NotRequired[str]
    started_at: float
    duration_s: float
    bytes_in: int
    bytes_out: int
    trace_id: str
    cpu_s: NotRequired[float]
    network_in: NotRequired[int]
    network_out: NotRequired[int]


class ModelRecord(TypedDict):
    """One model call that passed the models door. `run_id` is empty when it could not be told; `estimated` marks tokens that
    the provider did not report. What is empty or zero among the optional fields is left out.

    `requested` is the name that was asked for when it is not `model`, `upstream_model` the provider's; `path` is the API's behind
    `/v1/`. `cached_tokens` (read from the provider's prompt cache) and `cache_written_tokens` are parts of `input_tokens`,
    `reasoning_tokens` of `output_tokens`; `cost_nano` counts 10⁻⁹ US dollars (absent: no known price). `ttft_s`: to the answer's
    first byte. `cached`: answered from a cache of the host's.
    """

    kind: Literal["model"]
    id: str
    principal: str
    outcome: str
    path: str
    dialect: str
    version: NotRequired[str]
    session_id: NotRequired[str]
    user_id: NotRequired[str]
    requested: NotRequired[str]
    upstream_model: NotRequired[str]
    cached_tokens: NotRequired[int]
    cache_written_tokens: NotRequired[int]
    reasoning_tokens: NotRequired[int]
    cost_nano: NotRequired[int]
    ttft_s: NotRequired[float]
    attempts: NotRequired[int]
    cached: NotRequired[bool]
    code: NotRequired[str]
    trace_id: NotRequired[str]
    parent_span_id: NotRequired[str]
    stream: NotRequired[bool]
    run_id: str
    tenant: str
    agent: str
    environment: str
    instance_id: str
    model: str
    provider: str
    input_tokens: int
    output_tokens: int
    estimated: NotRequired[bool]
    status: int
    started_at: float
    duration_s: float


class BudgetRecord(TypedDict):
    """A budget's counter passed one of its thresholds; told once for each window. Amounts are in the budget's unit (of `cost`
    10⁻⁹ US dollars); `window_ends` and `at` are seconds since the epoch."""

    kind: Literal["budget"]
    tenant: str
    budget: str
    scope: str
    subject: str
    agent: str
    unit: str
    period: str
    percent: int
    limit: int
    spent: int
    window_ends: float
    at: float


Record = RunRecord | ModelRecord | BudgetRecord
