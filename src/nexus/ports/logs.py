"""The seam to what agents print. Adapter: `drivers.process`; fake: `testing.drivers`."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from nexus.core.logs import LogLine


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """Lines of one agent of one tenant. None means any; `level` is the least level, `since` seconds since the epoch.

    `limit` counts stored lines, the newest ones; with `follow` new lines come after them for ever.
    """

    tenant: str
    agent: str
    environment: str | None = None
    instance_id: str | None = None
    level: str | None = None
    since: float | None = None
    run_id: str | None = None
    session_id: str | None = None
    limit: int = 1000
    follow: bool = False


class LogSource(Protocol):
    """Where logs can be read."""

    def logs(self, query: LogQuery) -> AsyncIterator[LogLine]:
        """Matching lines, oldest first, over all instances of the agent, ended ones too. An unknown agent has none.

        Close the iterator (or cancel) to stop following. Raises `Invalid` for a level that does not exist and `Unavailable`
        (`driver.unreachable`) when the node cannot be asked or goes away meanwhile.
        """
        ...
