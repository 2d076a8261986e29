"""What went through one instance's way out: counted in all, for each session and each run, and slowed to a rate. Pure."""

import asyncio
import collections
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_RUNS = 1000
_SESSIONS = 10_000
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

    def add(self, used: "Tally") -> None:
        self.sent += used.sent
        self.received += used.received
        self.connections += used.connections
        self.refused += used.refused

    def to_json(self) -> dict[str, int]:
        return {"sent": self.sent, "received": self.received, "connections": self.connections, "refused": self.refused}


@dataclass(frozen=True, slots=True)
class Caller:
    """The run and the session that a connection belongs to; empty where it cannot be told."""

    run_id: str = ""
    session_id: str = ""


class Meter:
    """The tallies of one instance, counted as it goes: `total`, those of its newest 10,000 sessions and 1,000 runs."""

    def __init__(self) -> None:
        self.total = Tally()
        self._runs = _Newest(_RUNS)
        self._sessions = _Newest(_SESSIONS)
        self._open: dict[int, tuple[Tally, asyncio.Future[Caller]]] = {}

    def open(self, own: Tally, asking: "asyncio.Future[Caller]") -> None:
        """A connection has begun; whose it is may be known later."""
        self._open[id(own)] = (own, asking)

    def count(self, caller: Caller, used: Tally) -> None:
        """What a connection of this caller used, once it has ended; nothing where it cannot be told whose it was."""
        self._open.pop(id(used), None)
        self._runs.add(caller.run_id, used)
        self._sessions.add(caller.session_id, used)

    def sessions(self) -> Mapping[str, Tally]:
        """What each session has used until now, with the connections that are open."""
        return self._until_now(self._sessions, "session_id")

    def runs(self) -> Mapping[str, Tally]:
        """What each run's connections have used until now, with those that are open."""
        return self._until_now(self._runs, "run_id")

    def to_json(self) -> Mapping[str, object]:
        runs = self.runs()
        told: dict[str, object] = {"total": self.total.to_json(), "runs": {name: one.to_json() for name, one in runs.items()}}
        return {**told, "sessions": {name: one.to_json() for name, one in self.sessions().items()}}

    def restore(self, told: Mapping[str, Any]) -> None:
        """Go on from what an earlier meter told. Raises KeyError, TypeError or AttributeError when it is something else."""
        self.total.add(Tally(**told["total"]))
        for name, one in told["sessions"].items():
            self._sessions.add(str(name), Tally(**one))

    def _until_now(self, settled: "_Newest", field_name: str) -> dict[str, Tally]:
        found = dict(settled.tallies)
        for own, asking in self._open.values():
            name = getattr(asking.result(), field_name) if asking.done() and asking.exception() is None else ""
            if name:
                found[name] = sum_of(found.get(name), own)
        return found


def sum_of(one: Tally | None, other: Tally) -> Tally:
    total = Tally()
    for part in (one, other):
        if part is not None:
            total.add(part)
    return total


class _Newest:
    """Tallies by name, of the names that were counted last."""

    def __init__(self, most: int) -> None:
        self.tallies: collections.OrderedDict[str, Tally] = collections.OrderedDict()
        self._most = most

    def add(self, name: str, used: Tally) -> None:
        if not name:
            return
        self.tallies.setdefault(name, Tally()).add(used)
        self.tallies.move_to_end(name)
        while len(self.tallies) > self._most:
            self.tallies.popitem(last=False)


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
