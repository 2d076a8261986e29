"""The seam for the state that a session's runs share, kept outside the box so that it survives restarts."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionKey:
    """Whose state: another tenant's, agent's or environment's session of the same id is another session."""

    tenant: str
    agent: str
    environment: str
    session_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionState:
    """`state` is a JSON object (ASCII); `version` grows by one with each write."""

    state: str
    version: int
    updated_at: float


class SessionStore(Protocol):
    """Raises `Unavailable` (code `database.unavailable`) when the store cannot be asked."""

    async def fetch(self, key: SessionKey) -> SessionState | None: ...

    async def put(self, key: SessionKey, state: str, *, after: int | None = None) -> int:
        """The new version. The last writer wins, unless it says in place of which version (0: of none) it writes: `Conflict`
        (`state.moved`) when that is not the stored one."""
        ...

    async def delete(self, key: SessionKey) -> bool: ...

    async def delete_agent(self, tenant: str, agent: str, *, environment: str | None) -> None:
        """The states of all its sessions, in one environment or in all."""
        ...
