"""Where versions, deployments, revisions, instances and rollout events are kept. Adapter: `stores.postgres.hosting`."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from nexus.core import deployments as nouns

REMEMBERED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    id: str
    tenant: str
    name: str
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything the reconciler plans with, read in one transaction. `revisions` holds the target and active ones, those in
    hand, those that still have instances, and the last few (`REMEMBERED`) before the active one."""

    deployments: Sequence[nouns.Deployment]
    revisions: Sequence[nouns.Revision]
    instances: Sequence[nouns.Instance]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """A rollout event; `seq` grows, so a reader continues after the last one it saw."""

    seq: int
    revision: int
    at: float
    event: dict[str, Any]


class Change(Protocol):
    """One transaction on one deployment, which nobody else changes meanwhile. Leaving by an exception undoes all of it.

    `deployment` is None when there is none yet. `put_*` insert or replace by key.
    """

    deployment: nouns.Deployment | None

    async def revisions(self) -> Sequence[nouns.Revision]:
        """Newest first."""
        ...

    async def instances(self) -> Sequence[nouns.Instance]: ...

    async def put_deployment(self, deployment: nouns.Deployment) -> None: ...

    async def put_revision(self, revision: nouns.Revision) -> None: ...

    async def put_instance(self, instance: nouns.Instance) -> None: ...

    async def drop_instance(self, instance_id: str) -> None: ...

    async def drop_deployment(self) -> None:
        """With its revisions, instances and events."""
        ...

    async def add_event(self, revision: int, at: float, event: dict[str, Any]) -> None: ...


class HostingStore(Protocol):
    """Every read names the tenant; what belongs to another tenant is answered as absent (None or an empty list)."""

    async def put_version(self, version: nouns.Version) -> tuple[nouns.Version, bool]:
        """Store a new version (and its agent); True when it was new.

        An existing version of that number is returned with False, whatever its digest: the caller compares.
        """
        ...

    async def version(self, tenant: str, version_id: str) -> nouns.Version | None: ...

    async def versions(self, tenant: str, agent: str) -> Sequence[nouns.Version]:
        """Newest first."""
        ...

    async def agents(self, tenant: str) -> Sequence[Agent]:
        """By name."""
        ...

    async def agent(self, tenant: str, name: str) -> Agent | None: ...

    async def drop_agent(self, tenant: str, name: str) -> bool:
        """Remove the agent and its versions; False (and nothing done) while it has deployments or when it is absent."""
        ...

    async def digest_in_use(self, digest: str) -> bool:
        """Whether any version of any tenant has this package."""
        ...

    async def deployment(self, tenant: str, deployment_id: str) -> nouns.Deployment | None: ...

    async def deployments_of(self, tenant: str, agent: str | None = None) -> Sequence[nouns.Deployment]: ...

    async def revisions(self, tenant: str, deployment_id: str) -> Sequence[nouns.Revision]:
        """Newest first."""
        ...

    async def revisions_shown(self, tenant: str) -> Sequence[nouns.Revision]:
        """The newest revision of each deployment of a tenant."""
        ...

    async def instances(self, tenant: str, deployment_id: str | None = None) -> Sequence[nouns.Instance]: ...

    async def events(self, tenant: str, deployment_id: str, *, revision: int, after: int) -> Sequence[StoredEvent]:
        """Events of one revision with `seq` above `after`, oldest first."""
        ...

    async def owner_of_token(self, token_hash: str) -> nouns.InstanceOwner | None: ...

    async def snapshot(self) -> Snapshot: ...

    def change(self, tenant: str, agent: str, environment: str) -> AbstractAsyncContextManager[Change]:
        """Lock one deployment (even one that does not exist yet), and commit at the end."""
        ...

    async def recall(self, tenant: str, key: str) -> tuple[str, dict[str, Any]] | None:
        """What was answered under an idempotency key: the request's fingerprint and the answer."""
        ...

    async def remember(self, tenant: str, key: str, request: str, answer: dict[str, Any], *, at: float) -> None:
        """Keep an answer under a key; a second one under the same key is ignored. Answers older than a day are dropped."""
        ...
