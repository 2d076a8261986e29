"""What the control API answers. Times are seconds since the epoch; `None` means not known or not set."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class View(BaseModel):
    """New fields may appear in any release; clients keep what they do not know."""

    model_config = ConfigDict(extra="allow")


class InstanceView(View):
    """`phase` is `draining` where an old version keeps its sessions. `sessions` have a worker of their own now (None: the
    instance serves all itself), `saved_sessions` had one."""

    id: str
    phase: str
    version: str
    address: str | None = None
    pid: int | None = None
    restarts: int = 0
    started_at: float | None = None
    step: str = ""
    detail: str = ""
    cpu_s: float = 0.0
    memory_bytes: int = 0
    active_runs: int = 0
    sessions: int | None = None
    saved_sessions: int = 0
    problem: dict[str, Any] | None = None
    last_end: dict[str, Any] | None = None


class VersionView(View):
    id: str
    agent: str
    version: str
    digest: str
    entrypoint: str
    size_bytes: int
    created_at: float
    created: bool = True


class RevisionView(View):
    """One entry of a deployment's history."""

    number: int
    version: str
    version_id: str
    phase: str
    reason: str
    replicas: int
    created_at: float
    created_by: str
    ended_at: float | None = None
    problem: dict[str, Any] | None = None
    strategy: str = "rolling"
    outcome: dict[str, Any] | None = None


class ShareView(View):
    """One revision's part in a rollout: per cent of new sessions, instances, and how its runs went since the rollout began.
    `draining` instances keep the sessions that began on it, `sessions` of them with a worker of their own."""

    revision: int
    version: str
    role: str
    weight: int
    wanted: int
    ready: int
    runs: int = 0
    errors: int = 0
    error_rate: float = 0.0
    p50_s: float = 0.0
    p95_s: float = 0.0
    draining: int = 0
    sessions: int | None = None


class RolloutView(View):
    """Where a rollout is. `waiting` says for what (`instances`, `runs`, `promotion`; empty: for time), `next_at` when the stage
    may end, `standby_until` until when `abort` switches back at once."""

    agent: str
    environment: str
    deployment_id: str
    revision: int
    version: str
    strategy: str
    phase: str
    stage: int = 0
    stages: list[int] = Field(default_factory=list)
    waiting: str = ""
    next_at: float | None = None
    standby_until: float | None = None
    shares: list[ShareView] = Field(default_factory=list)
    outcome: dict[str, Any] | None = None
    problem: dict[str, Any] | None = None


class RateDifferenceView(View):
    """New minus old error rate with its 95 % interval (Newcombe); `p` two-sided (Fisher)."""

    difference: float
    low: float
    high: float
    p: float


class ShiftView(View):
    """By how many seconds the new one takes longer, with its 95 % interval (Hodges-Lehmann); `p` two-sided (Mann-Whitney)."""

    shift_s: float
    low_s: float
    high_s: float
    p: float
    superiority: float


class VariantView(View):
    """One arm, and its difference to the control (absent for the control itself)."""

    name: str
    version: str
    weight: int
    runs: int
    errors: int
    error_rate: float
    p50_s: float
    p95_s: float
    errors_vs_control: RateDifferenceView | None = None
    latency_vs_control: ShiftView | None = None
    verdict: str = ""


class RolloutReport(View):
    """How the versions of a rollout compare, from the runs of the time they served together."""

    agent: str
    environment: str
    revision: int
    strategy: str
    phase: str
    since: float
    until: float | None = None
    confidence: float = 0.95
    control: str
    variants: list[VariantView] = Field(default_factory=list)


class AutoscaleView(View):
    enabled: bool
    min_replicas: int
    max_replicas: int
    target_cpu: int | None = None
    target_memory: int | None = None
    target_queue_depth: int | None = None


class DeploymentView(View):
    """`phase` is the newest revision's; `ready` counts instances that take traffic; `replicas` is the target."""

    id: str
    agent: str
    environment: str
    phase: str
    revision: int
    version: str
    version_id: str
    replicas: int
    ready: int
    cpu: str | None = None
    memory: str | None = None
    autoscale: AutoscaleView
    url: str
    instances: list[InstanceView] = Field(default_factory=list)
    problem: dict[str, Any] | None = None
    updated_at: float


class AgentView(View):
    name: str
    tenant: str
    created_at: float
    latest_version: str | None = None
    deployments: list[DeploymentView] = Field(default_factory=list)


class RolloutEvent(View):
    """One step of a deployment on its way (SSE of `GET /v1/deployments/{id}/events`); the last one has `done`, and after one
    that `waits` nothing comes until somebody promotes or aborts."""

    at: float
    phase: str
    message: str
    revision: int
    instance_id: str | None = None
    step: str = ""
    detail: str = ""
    done: bool = False
    waits: bool = False
    problem: dict[str, Any] | None = None
    deployment: DeploymentView | None = None


class SecretView(View):
    """Never the value; `fingerprint` is a keyed hash that changes with it."""

    name: str
    fingerprint: str
    version: int
    updated_at: float
    updated_by: str


class KeyView(View):
    """`key` is filled once, in the answer to its creation."""

    id: str
    name: str
    tenant: str
    roles: list[str]
    environment: str | None = None
    agents: list[str] | None = None
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    key: str | None = None


class TaskView(View):
    """A task as document 1 shows it: `task_id`, `status`, `progress` (0 to 100)."""

    task_id: str
    status: str
    agent: str
    environment: str
    progress: float | None = None
    message: str | None = None
    attempt: int = 0
    output: Any = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    error: dict[str, Any] | None = None
    session_id: str | None = None
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    webhook: dict[str, Any] | None = None
    priority: int = 0
    run_at: float | None = None
    end_by: float | None = None
    paused: bool = False
    dead: bool = False
    origin: str | None = None
    asking: bool = False
    replay_of: str | None = None


class AskView(View):
    """A question of a task to people. `status` is open, answered or expired; `answer_schema` a JSON Schema of the answers
    taken; `url` a link with which whoever has it can answer, without a key, once."""

    ask_id: str
    task_id: str
    agent: str
    environment: str
    question: str
    choices: list[Any] | None = None
    answer_schema: dict[str, Any] | None = None
    status: str
    answer: Any = None
    answered_by: str | None = None
    opened_at: float
    expires_at: float | None = None
    answered_at: float | None = None
    url: str | None = None


class DifferenceView(View):
    """The first difference of a replay: at its call number `index` (from 1). `kind` is model, step, ask or end; `recorded` None:
    nothing of this was recorded; `asked` None: it was not asked any more. `diff` is unified."""

    index: int
    kind: str
    recorded: dict[str, Any] | None = None
    asked: dict[str, Any] | None = None
    diff: list[str] = Field(default_factory=list)


class ReplayView(View):
    """How a replay compares with its original; `same` when it asked the same and ended alike."""

    task_id: str
    replay_id: str
    same: bool
    recorded_calls: int
    replayed_calls: int
    recorded_version: str | None = None
    replayed_version: str | None = None
    status: str
    difference: DifferenceView | None = None


class ScheduleView(View):
    """A schedule; `upcoming` are its next times, `missed` counts those passed over."""

    id: str
    name: str
    agent: str
    environment: str
    cron: str | None = None
    timezone: str
    catch_up: str
    active: bool
    next_at: float | None = None
    upcoming: list[float] = Field(default_factory=list)
    last_at: float | None = None
    last_task_id: str | None = None
    fired: int = 0
    missed: int = 0
    task: dict[str, Any] = Field(default_factory=dict)
    created_at: float


class DeadLettersView(View):
    """What came of a request about dead letters: the tasks made anew, or how many were deleted."""

    tasks: list[TaskView] = Field(default_factory=list)
    deleted: int = 0


class SessionView(View):
    """A session. `phase` is that of its worker (`starting`, `live`, `frozen`, `saved`, `ended`), or `past` for one that is known
    by its finished runs alone. `busy_s` sums up its runs, `cpu_s` and `memory_byte_seconds` what its workers used, `network_*`
    what passed its way out; `bytes_*` are these and the bodies of its runs' requests and answers."""

    session_id: str
    agent: str
    environment: str
    version: str
    isolation: str | None = None
    phase: str
    how: str | None = None
    instance_id: str | None = None
    pid: int | None = None
    created_at: float
    last_active_at: float
    expires_at: float | None = None
    runs: int = 0
    failed: int = 0
    busy_s: float = 0.0
    cpu_s: float | None = None
    memory_bytes: int | None = None
    memory_byte_seconds: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    network_in: int = 0
    network_out: int = 0
    problem: dict[str, Any] | None = None


class RunView(View):
    """One line of run history. `cost` in US dollars, null where no price is known; `network_*` null without a way out."""

    id: str
    agent: str
    environment: str
    version: str
    instance_id: str
    session_id: str
    mode: str
    outcome: str
    status: int
    code: str | None = None
    started_at: float
    duration_s: float
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    trace_id: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    cpu_s: float | None = None
    network_in: int | None = None
    network_out: int | None = None


class Page(View):
    """A list answer: `items`, and `next` to pass as `cursor` for more."""

    items: list[Any]
    next: str | None = None
