"""What the API routers call, handed in by the composition root as `request.app.state.services`."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from nexus.core import deployments, principals
from nexus.kit import home


class Identity(Protocol):
    """`nexus.identity.service.IdentityService`."""

    async def authenticate(self, key: str) -> principals.Principal:
        """The caller an API key or service token stands for, or `Unauthenticated`."""
        ...

    async def instance_of(self, token: str) -> deployments.InstanceOwner:
        """The instance a door token (`nxi_…`) stands for, or `Unauthenticated`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """One room each; a room that is not there is None and its routes are absent or say so.

    `driver` answers capabilities and logs (`ports.driver`, `ports.logs`); `status` renders `GET /v1/status`.
    """

    identity: Any
    hosting: Any
    secrets: Any
    home: home.Home
    origin: str = "http://127.0.0.1:8700"
    driver: Any = None
    tasks: Any = None
    webhooks: Any = None
    schedules: Any = None
    recordings: Any = None
    asks: Any = None
    replays: Any = None
    triggers: Any = None
    checkpoints: Any = None
    telemetry: Any = None
    metrics: Any = None
    traces: Any = None
    runs: Any = None
    sessions: Any = None
    live_sessions: Any = None
    models: Any = None
    audit: Any = None
    status: Callable[[principals.Principal], Awaitable[dict[str, Any]]] | None = None
