"""Versions, deployments, revisions and instance records: what hosting stores and plans with.

A deployment is desired state (agent × environment). Each change of what its instances are made of is a numbered revision;
`target_revision` is the one being reached, `active_revision` the last one that was. How many there are is no revision.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from nexus.core.environments import Bounds
from nexus.core.instances import HealthCheck
from nexus.core.phases import RevisionPhase
from nexus.core.rollouts import Progress, Strategy


class Target(StrEnum):
    """What is wanted of a deployment or an instance. `DRAINING` (an instance): it keeps the sessions it has and gets no new ones.
    `REMOVED`: stopped, and the agent goes with its last deployment."""

    RUNNING = "running"
    DRAINING = "draining"
    STOPPED = "stopped"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """An immutable package. `config` is the validated project file as JSON."""

    id: str
    tenant: str
    agent: str
    version: str
    digest: str
    entrypoint: str
    size_bytes: int
    config: Mapping[str, Any]
    created_at: float
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How many instances there may be, and what moves the number. Targets are per cent, or tasks waiting per instance."""

    minimum: int
    maximum: int
    enabled: bool = False
    target_cpu: int | None = None
    target_memory: int | None = None
    target_queue_depth: int | None = None

    @property
    def bounds(self) -> Bounds:
        return Bounds(minimum=self.minimum, maximum=self.maximum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every instance of a revision is made of. Secrets are named, never held. `secrets_stamp` changes with their values."""

    entrypoint: str
    package_digest: str
    cpu_millis: int | None = None
    memory_bytes: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    secrets_stamp: str = ""
    health: HealthCheck = field(default_factory=HealthCheck)
    run_timeout_s: float = 8 * 3600.0
    start_timeout_s: float = 60.0
    balancer: str = "least-connections"
    wait_s: float = 30.0
    max_concurrency: int | None = None
    max_queue: int = 1000
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(dataclasses.replace(self, env=dict(self.env), options=dict(self.options)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        known = {entry.name for entry in dataclasses.fields(cls)}
        kept = {name: entry for name, entry in value.items() if name in known}
        return cls(**{**kept, "health": HealthCheck(**value.get("health", {}))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    deployment_id: str
    number: int
    tenant: str
    version_id: str
    version: str
    phase: RevisionPhase
    reason: str
    replicas: int
    settings: Settings
    created_at: float
    created_by: str
    ended_at: float | None = None
    problem: Mapping[str, Any] | None = None
    strategy: Strategy = field(default_factory=Strategy)
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """`target_revision` None: nothing should run (its first revision failed)."""

    id: str
    tenant: str
    agent: str
    environment: str
    target: Target
    target_revision: int | None
    active_revision: int | None
    replicas: int
    scaling: Scaling
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A minted instance, stored before it is started. Its token is derived from its id; only the hash is stored."""

    id: str
    deployment_id: str
    tenant: str
    revision: int
    target: Target
    token_hash: str
    created_at: float
    ready_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceOwner:
    """Whose instance a token belongs to; `session_id` when it is the token of one session's worker."""

    instance_id: str
    tenant: str
    agent: str
    environment: str
    deployment_id: str
    version: str
    session_id: str | None = None
