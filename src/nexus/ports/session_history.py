"""The seam to what is known of sessions beyond their workers: their runs."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPast:
    """What a session's finished runs add up to. Times are Unix seconds, `busy_s` the sum of their durations."""

    session_id: str
    agent: str
    environment: str
    version: str
    first_at: float
    last_at: float
    runs: int
    failed: int
    busy_s: float
    bytes_in: int
    bytes_out: int


class SessionHistory(Protocol):
    """Raises `Unavailable` (code `database.unavailable`) when the store cannot be asked."""

    async def recent(
        self, tenant: str, *, agents: Collection[str] | None, environment: str | None, session_id: str | None, limit: int
    ) -> Sequence[SessionPast]:
        """The sessions of these agents (None: any) that ran last, newest first."""
        ...
