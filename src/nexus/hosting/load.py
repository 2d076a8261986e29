"""From usage counters to samples and wishes, one history a deployment: the state the autoscaler needs between looks."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from nexus.core.deployments import Scaling, Settings
from nexus.core.instances import InstanceStatus
from nexus.hosting import autoscale

SAMPLE_EVERY_S = 5.0


@dataclass(slots=True)
class History:
    """Of one deployment. Times are monotonic."""

    sampled_at: float | None = None
    cpu_s: dict[str, float] = field(default_factory=dict)
    wishes: deque[autoscale.Wish] = field(default_factory=lambda: deque(maxlen=512))

    def is_due(self, now: float) -> bool:
        return self.sampled_at is None or now - self.sampled_at >= SAMPLE_EVERY_S

    def look(self, now: float, settings: Settings, ready: Sequence[InstanceStatus], queue_depth: int | None) -> autoscale.Sample:
        """Means over the ready instances since the last look. CPU is of the limit (or one core), memory of the limit."""
        elapsed = None if self.sampled_at is None else now - self.sampled_at
        cores = (settings.cpu_millis or 1000) / 1000
        shares = [
            100 * (one.usage.cpu_s - self.cpu_s[one.id]) / elapsed / cores
            for one in ready
            if elapsed and one.id in self.cpu_s and one.usage.cpu_s >= self.cpu_s[one.id]
        ]
        limit = settings.memory_bytes
        memory = [100 * one.usage.memory_bytes / limit for one in ready] if limit else []
        self.sampled_at, self.cpu_s = now, {one.id: one.usage.cpu_s for one in ready}
        return autoscale.Sample(at=now, ready=len(ready), cpu=_mean(shares), memory=_mean(memory), queue_depth=queue_depth)

    def decide(self, now: float, scaling: Scaling, sample: autoscale.Sample, current: int) -> int:
        """The number of replicas to have after this sample."""
        self.wishes.append(autoscale.Wish(at=now, replicas=autoscale.wish(scaling, sample, current)))
        while self.wishes and now - self.wishes[0].at > autoscale.STABILISE_DOWN_S:
            self.wishes.popleft()
        return autoscale.decide_replicas(now, scaling, self.wishes, current)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
