"""What one dispatcher may hold at once, and whether a task may begin without standing in the queue. Pure.

Any number of dispatchers share a lane's and a tenant's limit evenly here; claims from the queue count exactly.
"""

from collections import Counter
from dataclasses import dataclass, field

from nexus.ports.task_store import Lane
from nexus.tasks.settings import TaskSettings


@dataclass(slots=True)
class Slots:
    """`dispatchers`: how many there are, this one included."""

    settings: TaskSettings
    dispatchers: int = 1
    taken: int = 0
    _lanes: "Counter[Lane]" = field(default_factory=Counter)
    _tenants: "Counter[str]" = field(default_factory=Counter)

    @property
    def free(self) -> int:
        return max(0, self.settings.concurrency - self.taken)

    def has_room(self, lane: Lane) -> bool:
        """Whether this dispatcher's own share of every limit leaves room for one more of the lane."""
        share = max(1, self.dispatchers)
        return (
            self.taken < self.settings.concurrency
            and (self._lanes[lane] + 1) * share <= self.settings.per_lane
            and (self._tenants[lane.tenant] + 1) * share <= self.settings.per_tenant
        )

    def take(self, lane: Lane) -> None:
        self.taken += 1
        self._lanes[lane] += 1
        self._tenants[lane.tenant] += 1

    def give_back(self, lane: Lane) -> None:
        self.taken -= 1
        self._lanes[lane] -= 1
        self._tenants[lane.tenant] -= 1
        if not self._lanes[lane]:
            del self._lanes[lane]
        if not self._tenants[lane.tenant]:
            del self._tenants[lane.tenant]
