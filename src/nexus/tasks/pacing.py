"""Lanes that cannot run at the moment (no instance, too busy) rest for a growing while and hold nobody else's slots. Pure."""

from dataclasses import dataclass, field

from nexus.kit import backoff
from nexus.ports.task_store import Lane


@dataclass(slots=True)
class Pacing:
    pauses: backoff.Backoff
    _resting: dict[Lane, tuple[float, int]] = field(default_factory=dict)

    def defer(self, lane: Lane, *, now: float, at_least_s: float = 0.0) -> float:
        """The lane put a run off. How long it rests from now; refusals that come while it rests count as one."""
        until, times = self._resting.get(lane, (0.0, 0))
        if until > now:
            return until - now
        pause = max(self.pauses.pause_s(times, lambda: 1.0), at_least_s)
        self._resting[lane] = (now + pause, times + 1)
        return pause

    def began(self, lane: Lane) -> None:
        """A run of it began: it is well again."""
        self._resting.pop(lane, None)

    def paused(self, *, now: float) -> list[Lane]:
        return [lane for lane, (until, _) in self._resting.items() if until > now]

    def is_resting(self, lane: Lane, *, now: float) -> bool:
        return lane in self._resting and self._resting[lane][0] > now

    def next_wake_s(self, *, now: float) -> float | None:
        """Seconds until the next lane may be tried again; None when none rests."""
        waits = [until - now for until, _ in self._resting.values() if until > now]
        return min(waits) if waits else None
