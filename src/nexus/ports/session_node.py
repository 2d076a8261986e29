"""The seam to the sessions of a node: where their workers are, and how to end or enter them. Adapter: `drivers.process`."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nexus.core import sessions as nouns


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionQuery:
    """Sessions of a tenant. None means any."""

    tenant: str
    agent: str | None = None
    environment: str | None = None


class SessionNode(Protocol):
    """All verbs raise `Unavailable` (code `driver.unreachable`) when the node cannot be asked, and `NotFound` for a session that
    it does not have."""

    async def place(self, instances: Sequence[str], session_id: str, *, homes: Sequence[str] = ()) -> nouns.SessionPlace:
        """Where the session lives; made on the first of these instances that takes it when it lives nowhere. On `homes` it may
        live already, and is not made."""
        ...

    async def sessions(self, query: SessionQuery) -> Sequence[nouns.SessionStatus]: ...

    async def stop_session(self, instance_id: str, session_id: str, *, grace_s: float) -> nouns.SessionStatus:
        """Let its runs end, keep what is to be kept, then end its worker."""
        ...

    async def kill_session(self, instance_id: str, session_id: str) -> nouns.SessionStatus:
        """End its worker and everything in its box at once."""
        ...

    async def kill_sessions(self, query: SessionQuery) -> int:
        """The same for every session that fits; how many there were."""
        ...

    async def forget_sessions(self, *, tenant: str, agent: str, environment: str, session_id: str | None) -> int:
        """End a session, or (None) all of the agent's in this environment, and forget the work directories that were kept of
        them. How many had a worker; none is no error."""
        ...

    def exec(
        self, instance_id: str, session_id: str, command: Sequence[str], *, stdin: str | None, timeout_s: float
    ) -> AsyncIterator[Mapping[str, Any]]:
        """Run a command in the session's box: `{"stream", "data"}` as it comes, at last `{"exit": code}`."""
        ...
