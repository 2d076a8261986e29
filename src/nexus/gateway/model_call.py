"""One model call as the stages of the models door see it: who asks, what for, where it goes, what it used, how it ended.

Made by `models_door` for each request, filled in by the stages (`model_stages`) in their order. Holds no credential.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from nexus.gateway import http1, model_policy, model_prices, routes, usage
from nexus.gateway.call import Call
from nexus.wire import feed as wire_feed

if TYPE_CHECKING:
    from nexus.gateway.model_embeddings import Merge
    from nexus.gateway.model_reserve import Hold

STREAMABLE = frozenset({b"/v1/chat/completions", b"/v1/completions", b"/v1/responses", b"/v1/messages"})
COUNTING = b"/v1/messages/count_tokens"
EMBEDDINGS = b"/v1/embeddings"


class Ready(NamedTuple):
    """An answer that needs no provider. `origin` says whose it is: `cache` …"""

    status: int
    headers: list[http1.Header]
    body: bytes
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One place a call can go. `name` is the model's name here, `upstream_model` the provider's; `address` is the pool's.

    `rate` None: its price is not known; `context`: the most input tokens, None when not known; `translator`: whose
    address to use for a dialect the provider does not speak (empty: none). Times are seconds.
    `batch`: for how long embeddings are gathered, and how many go together; None: each call goes alone."""

    name: str
    entry: wire_feed.ModelEntry
    upstream_model: str
    address: str
    host: str
    prefix: str
    rate: model_prices.Rate | None = None
    context: int | None = None
    timeout_s: float = 600.0
    first_byte_s: float = 600.0
    retries: int = 0
    batch: tuple[float, int] | None = None
    tags: frozenset[str] = frozenset()
    translator: str = ""
    translated: bool = False

    @property
    def provider(self) -> str:
        return self.entry["provider"]


@dataclass(slots=True, kw_only=True)
class ModelCall:
    """What is known about a call. `started_at` is in seconds since the epoch; `began`, `first_byte` and `ended` are the loop's.

    `body` is the request's JSON object and may be changed by a stage before it is sent (set `changed`). `input_estimate` is of
    its prompt. `chain` holds where the call may go, best first; `target` is where it is (or was last), `attempts` how many were
    tried, `attempted` whether it was sent at all, `on` what lets it go to the next. `ready` ends the way early.
    `output_reserved` is what it may give before more is reserved (`holds`: in which budgets); `capped` the limit put on its
    output, `trimmed` how many messages were left out; `copies`: a stream is copied too,
    `audits`: for the audit trail. `provider_status` is of the provider's answer (0: none came); `copy` that
    answer when it is not streamed, up to a bound (empty when it was longer: `copied` tells how long).
    `tokens` is the provider's word, or an estimate when `estimated`; `cost_nano` counts 10⁻⁹ US dollars (None: no price known).
    `outcome`, `status` and `code` are those of the exchange.
    """

    id: str
    call: Call
    tenant: str
    principal: str
    agent: str = ""
    environment: str = ""
    version: str = ""
    instance_id: str = ""
    run_id: str = ""
    session_id: str = ""
    user_id: str = ""

    trace_id: str = ""
    traceparent: bytes = b""

    path: bytes
    dialect: str
    body: dict[str, Any] = field(default_factory=dict, repr=False)
    size: int = 0
    changed: bool = False
    streaming: bool = False
    hide_usage: bool = False
    requested: str = ""
    model: str = ""
    chain: list[Target] = field(default_factory=list, repr=False)
    target: Target | None = None
    attempts: int = 0
    attempted: bool = False
    on: frozenset[str] = frozenset()
    input_estimate: int = 0
    holds: "list[Hold]" = field(default_factory=list, repr=False)
    output_reserved: int = 0
    provider_status: int = 0
    capped: int = 0
    trimmed: int = 0
    ready: Ready | None = None
    policy: model_policy.Policy = model_policy.NO_POLICY
    cache_place: tuple[tuple[str, str, str], bytes, Target] | None = None
    merge: "Merge | None" = field(default=None, repr=False)
    copies: bool = False
    audits: bool = False
    signed: list[http1.Header] = field(default_factory=list, repr=False)

    started_at: float = 0.0
    began: float = 0.0
    first_byte: float | None = None
    ended: float = 0.0

    headers: list[http1.Header] = field(default_factory=list, repr=False)
    copy: bytearray = field(default_factory=bytearray, repr=False)
    copied: int = 0
    tokens: usage.Tokens = field(default_factory=usage.Tokens)
    estimated: bool = False
    cost_nano: int | None = None
    cached: bool = False
    outcome: str = ""
    status: int = 0
    code: str = ""

    @property
    def task_id(self) -> str:
        """The run's id when the run is a task's."""
        return self.run_id if self.run_id.startswith("task_") else ""

    @property
    def provider(self) -> str:
        return self.target.provider if self.target is not None else ""

    @property
    def ttft_s(self) -> float | None:
        """Time to the first byte of the answer's body; None when there was none."""
        return None if self.first_byte is None else self.first_byte - self.began

    @property
    def duration_s(self) -> float:
        return self.ended - self.began


def version_of(table: routes.RouteTable, token: wire_feed.TokenEntry) -> str:
    """The version that an instance runs, as far as the routes tell."""
    deployment = table.agents.get((token["tenant"], token["agent"]), {}).get(token["environment"])
    if deployment is not None:
        for instance in deployment.instances:
            if instance.id == token["instance_id"]:
                return instance.version
    return ""
