"""Sessions that have a worker of their own, as a node reports them.

```
starting ─► live ◄─► frozen          frozen: the worker uses no CPU until a connection wakes it
    │        │  ▲       │            saved:  no worker; what is to be kept is kept, a connection makes a new one
    ▼        ▼  │       ▼
  ended ◄── saved ◄─────┘            ended:  forgotten, with the reason as its problem
```
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class SessionPhase(StrEnum):
    STARTING = "starting"
    LIVE = "live"
    FROZEN = "frozen"
    SAVED = "saved"
    ENDED = "ended"


class How(StrEnum):
    """Where a session's worker came from when it was last asked for."""

    LIVE = "live"
    SPARE = "spare"
    FORK = "fork"
    EXEC = "exec"
    THAW = "thaw"
    RESTORE = "restore"


_P = SessionPhase
SESSION_MOVES: dict[SessionPhase, frozenset[SessionPhase]] = {
    _P.STARTING: frozenset({_P.LIVE, _P.SAVED, _P.ENDED}),
    _P.LIVE: frozenset({_P.FROZEN, _P.SAVED, _P.ENDED}),
    _P.FROZEN: frozenset({_P.LIVE, _P.SAVED, _P.ENDED}),
    _P.SAVED: frozenset({_P.STARTING, _P.ENDED}),
    _P.ENDED: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionUsage:
    """What a session used since it began, over all its workers. `memory_byte_seconds` is the integral of its memory over the
    time it was not saved. What passed its way out is counted in `core.usage`."""

    cpu_s: float = 0.0
    memory_bytes: int = 0
    memory_byte_seconds: float = 0.0
    runs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatus:
    """Times are Unix seconds. `problem` is a problem object (`nexus.wire.problem`): why it, or its last worker, ended."""

    session_id: str
    instance_id: str
    phase: SessionPhase
    tenant: str = ""
    agent: str = ""
    environment: str = ""
    version: str = ""
    how: How | None = None
    pid: int | None = None
    created_at: float = 0.0
    last_active_at: float = 0.0
    expires_at: float = 0.0
    usage: SessionUsage = field(default_factory=SessionUsage)
    problem: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPlace:
    """Where a session's worker listens (`unix:/path`), and how it came to be there. The address outlives the worker: while there
    is none, or it is frozen, connections wait and wake it."""

    instance_id: str
    address: str
    phase: SessionPhase
    how: How
