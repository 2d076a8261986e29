"""One request as the stages see it: what came off the wire, and what has been decided about it so far."""

from dataclasses import dataclass, field
from enum import Enum

from nexus.gateway import http1, limits, routes


class Door(Enum):
    """What kind of request this is; `doors` holds what each kind does."""

    RUN = "run"
    SOCKET = "socket"
    HEALTH = "health"
    MODEL = "model"
    MODEL_LIST = "model-list"
    RUN_USAGE = "run-usage"
    CONTROL = "control"
    PREFLIGHT = "preflight"


RUNS = frozenset({Door.RUN, Door.SOCKET})
"""The doors that lead to an instance of an agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Where a path leads. `name` is the agent, the model or the run in the path; `public` needs no credential, `signed` carries a
    signature in place of one."""

    door: Door
    methods: frozenset[bytes] | None
    name: str = ""
    stream: bool = False
    public: bool = False
    signed: bool = False


@dataclass(slots=True, kw_only=True)
class Call:
    """`inside` says that it came through the door socket of this node, `relayed` that another gateway of the node let it in and
    counted it, `peer` is the client's address.

    `trusted` marks the dispatcher, whose tenant, run id and attempt are believed. `tried` holds the instances that could
    not be reached for this run, `quota` the tightest of the rate limits that it counted against. `version` is the one that the
    caller named, `awaited` the one that its session began on and that must be woken first.
    """

    head: http1.RequestHead
    inside: bool
    peer: str
    started: float
    relayed: bool = False
    match: Match | None = None
    caller: routes.Caller | None = None
    tenant: str = ""
    trusted: bool = False
    origin: bytes | None = None
    deployment: routes.Deployment | None = None
    version: str | None = None
    awaited: str | None = None
    instance: routes.Instance | None = None
    run_id: str = ""
    session_id: str | None = None
    session_given: bool = False
    attempt: str = "1"
    traceparent: bytes = b""
    trace_id: str = ""
    quota: limits.Verdict | None = None
    tried: set[str] = field(default_factory=set)
