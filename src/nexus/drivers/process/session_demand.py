"""How many workers to keep ready for sessions to come: pure, over the times at which they came.

As many as are likely to come while one is being made, and one more; none after a long silence, for an idle version costs nothing.
"""

import collections
from dataclasses import dataclass, field

_WINDOW_S = 10.0
_QUIET_S = 300.0
_MOST = 32
_CAUTION = 3.0
_CALM_S, _HURRY_S = 0.05, 0.25


@dataclass(slots=True)
class Demand:
    """`note` each new session; `target` tells how many spares are wanted. Times are any clock's seconds."""

    fixed: int | None = None
    start_s: float = 0.02
    _arrivals: collections.deque[float] = field(default_factory=lambda: collections.deque(maxlen=512))

    def note(self, now: float) -> None:
        self._arrivals.append(now)

    def note_start(self, took_s: float) -> None:
        """How long it took to make a worker: a moving average."""
        self.start_s += 0.2 * (took_s - self.start_s)

    def target(self, now: float) -> int:
        if self.fixed is not None:
            return self.fixed
        if not self._arrivals or now - self._arrivals[-1] > _QUIET_S:
            return 0
        recent = [at for at in self._arrivals if now - at <= _WINDOW_S]
        together = _most_within(recent, self.start_s)
        rate = len(recent) / _WINDOW_S
        return min(_MOST, 1 + max(together, round(rate * self.start_s * _CAUTION)))

    def calm_s(self, now: float, *, ready: int, wanted: int) -> float:
        """How long the session that came last is to have the machine to itself before another worker is made: not at all when
        more than half of those wanted are gone and sessions follow each other."""
        if not self._arrivals:
            return 0.0
        hurries = len(self._arrivals) > 1 and now - self._arrivals[-2] <= _HURRY_S
        return 0.0 if hurries and ready * 2 < wanted else max(0.0, self._arrivals[-1] + _CALM_S - now)


def _most_within(times: list[float], span: float) -> int:
    """The most of these ascending times that fall into one span."""
    most = first = 0
    for last, at in enumerate(times):
        while at - times[first] > span:
            first += 1
        most = max(most, last - first + 1)
    return most
