"""What went through one instance's way out: counted in all and for each run, and slowed to a rate. Pure."""

import collections
from collections.abc import Mapping
from dataclasses import dataclass, field

_RUNS = 1000
_BURST_S = 0.25
_LEAST_BURST = 16 * 1024
_LEAST_PIECE, _MOST_PIECE = 1024, 64 * 1024


@dataclass(slots=True)
class Tally:
    """Bytes that left the box and came in, connections made, calls refused."""

    sent: int = 0
    received: int = 0
    connections: int = 0
    refused: int = 0

    def to_json(self) -> dict[str, int]:
        return {"sent": self.sent, "received": self.received, "connections": self.connections, "refused": self.refused}


@dataclass(frozen=True, slots=True)
class Caller:
    """The run and the session that a connection belongs to; empty where it cannot be told."""

    run_id: str = ""
    session_id: str = ""


class Meter:
    """The tallies of one instance: `total`, counted as it goes, and those of the newest 1,000 runs."""

    def __init__(self) -> None:
        self.total = Tally()
        self._runs: collections.OrderedDict[str, Tally] = collections.OrderedDict()

    def count(self, caller: Caller, used: Tally) -> None:
        """What a connection of this caller used, once it has ended; nothing where the run is not known."""
        if not caller.run_id:
            return
        tally = self._runs.setdefault(caller.run_id, Tally())
        self._runs.move_to_end(caller.run_id)
        while len(self._runs) > _RUNS:
            self._runs.popitem(last=False)
        tally.sent += used.sent
        tally.received += used.received
        tally.connections += used.connections
        tally.refused += used.refused

    def to_json(self) -> Mapping[str, object]:
        return {"total": self.total.to_json(), "runs": {run_id: tally.to_json() for run_id, tally in self._runs.items()}}


@dataclass(slots=True)
class Bucket:
    """A token bucket of `rate` bytes a second that lets a quarter of a second's bytes through at once; None: no limit.

    Pieces are taken whole and paid for afterwards, so the rate holds over any second whatever their size.
    """

    rate: float | None
    _level: float = field(default=0.0, init=False)
    _at: float | None = field(default=None, init=False)

    def pause(self, count: int, now: float) -> float:
        """How long (seconds) to wait after these bytes."""
        if self.rate is None:
            return 0.0
        burst = max(self.rate * _BURST_S, _LEAST_BURST)
        earned = burst if self._at is None else (now - self._at) * self.rate
        self._level = min(burst, self._level + earned) - count
        self._at = now
        return max(0.0, -self._level / self.rate)

    @property
    def piece(self) -> int:
        """How many bytes to move at once, so that a slow way is slow evenly."""
        return _MOST_PIECE if self.rate is None else int(min(_MOST_PIECE, max(_LEAST_PIECE, self.rate / 8)))
