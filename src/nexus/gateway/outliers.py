"""Instances that are slow at the tail: compared with the others of their deployment, by a quantile and not by the mean.

A mean hides one run in twenty that takes a hundred times as long. For `health-based` deployments each instance keeps its latest
latencies; twice a second the tails are compared, and one that is far beyond the others' is left out of new choices for a while.
Sessions stay where they live. Pure but for `sweep`, which `process` calls.
"""

import collections
import statistics
from collections.abc import Mapping, Sequence

from nexus.gateway import routes

QUANTILE = 0.95
LEAST_SAMPLES, _MOST_SAMPLES = 20, 200
_FACTOR, _LEAST_MORE_S = 3.0, 0.02
_MOST_SHARE = 1 / 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 120.0


class Watch:
    """An instance's latest latencies (seconds), the tail of them, and until when it is left out of new choices."""

    __slots__ = ("_latest", "out_until", "tail_s", "times_out")

    def __init__(self) -> None:
        self._latest: collections.deque[float] = collections.deque(maxlen=_MOST_SAMPLES)
        self.tail_s = 0.0
        self.out_until = 0.0
        self.times_out = 0

    def note(self, latency_s: float) -> None:
        self._latest.append(latency_s)

    def measure(self) -> float | None:
        """The quantile of what was noted; None while it is too little to say."""
        if len(self._latest) < LEAST_SAMPLES:
            return None
        self.tail_s = sorted(self._latest)[int(len(self._latest) * QUANTILE)]
        return self.tail_s

    def leave_out(self, now: float) -> None:
        """Out for a pause that grows with each time; what was noted is forgotten, so that it is judged afresh."""
        self.out_until = now + min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0**self.times_out)
        self.times_out = min(self.times_out + 1, 10)
        self._latest.clear()
        self.tail_s = 0.0


def plan_outliers(tails: Mapping[str, float], *, instances: int, out: int) -> Sequence[str]:
    """Whose tail is too far beyond the median of the others', the worst first. Never more than a third of the `instances`
    with those that are `out` already (but one of two, for then there is one to compare with)."""
    room = max(1, int(instances * _MOST_SHARE)) - out
    if len(tails) < 2 or room < 1:
        return ()
    found = []
    for name, tail in tails.items():
        usual = statistics.median(other for each, other in tails.items() if each != name)
        if tail > usual * _FACTOR and tail > usual + _LEAST_MORE_S:
            found.append(name)
    return sorted(found, key=lambda name: -tails[name])[:room]


def sweep(deployment: routes.Deployment, now: float) -> None:
    """Look at a `health-based` deployment's instances: measure, leave out, take back."""
    watches: dict[str, Watch] = {}
    for instance in deployment.instances:
        if instance.watch is None:
            instance.watch = Watch()
        watches[instance.id] = instance.watch
    here = {name: watch for name, watch in watches.items() if watch.out_until <= now}
    tails = {name: tail for name, watch in here.items() if (tail := watch.measure()) is not None}
    chosen = plan_outliers(tails, instances=len(watches), out=len(watches) - len(here))
    for name in chosen:
        watches[name].leave_out(now)
    for name in tails.keys() - set(chosen):
        if now > watches[name].out_until + 10 * _FIRST_PAUSE_S:
            watches[name].times_out = 0
