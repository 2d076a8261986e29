"""Instances as the control side asks for them and as a node reports them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nexus.core.phases import InstancePhase


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """How a node judges an instance: `GET path` every `interval_s`, answered within `timeout_s`, `retries` misses allowed."""

    path: str = "/health"
    interval_s: float = 10.0
    timeout_s: float = 5.0
    retries: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSpec:
    """What to run. `secrets` are values: they travel on a private socket, stay in memory and are never written or logged.

    `package_digest` names `packages/<digest>.tar.gz` in the home; `memory_bytes`/`cpu_millis` None mean no limit.
    `token` authenticates the instance at the platform doors; `door` is the unix socket of its gateway process.
    """

    id: str
    tenant: str
    agent: str
    environment: str
    deployment_id: str
    version_id: str
    version: str
    package_digest: str
    entrypoint: str
    token: str = field(repr=False)
    door: str
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    memory_bytes: int | None = None
    cpu_millis: int | None = None
    health: HealthCheck = field(default_factory=HealthCheck)
    start_timeout_s: float = 60.0
    run_timeout_s: float = 8 * 3600.0
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """`network_*` count what went through the broker of `network: egress`; zero for other networks.

    `sessions` have a worker of their own now, `saved` had one and will get one again (None: sessions have no workers of their own
    here). `last_active_at` is when its last run began or ended, by its own word (None: there was none).
    """

    cpu_s: float = 0.0
    memory_bytes: int = 0
    active_runs: int = 0
    network_sent: int = 0
    network_received: int = 0
    network_connections: int = 0
    network_refused: int = 0
    sessions: int | None = None
    saved: int = 0
    last_active_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceStatus:
    """What a node sees. `address` (`unix:/path` or `tcp:host:port`) is set once the worker listens.

    `problem` is a problem object (see `nexus.wire.problem`) when the phase is failed or unhealthy. `step` and `detail`
    say what is going on while building or starting (`resolving`, `installing`, `importing`). `last_end` is the problem object of
    its last unwanted end, with `at` (seconds since the epoch), also after it was started again.
    """

    id: str
    phase: InstancePhase
    tenant: str = ""
    agent: str = ""
    version_id: str = ""
    deployment_id: str = ""
    address: str | None = None
    pid: int | None = None
    restarts: int = 0
    started_at: float | None = None
    step: str = ""
    detail: str = ""
    problem: Mapping[str, object] | None = None
    last_end: Mapping[str, object] | None = None
    usage: Usage = field(default_factory=Usage)
