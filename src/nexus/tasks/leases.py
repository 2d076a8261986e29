"""Who is dead: an owner whose beats stood still for a while, as seen on this process's own monotonic clock.

No clock of another machine and no wall clock is compared, so clocks may jump and disagree. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class OwnerWatch:
    """Feed it what the store says about owners; it names those to bury. `orphan_s` counts once the connection is gone."""

    lease_s: float
    orphan_s: float
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)

    def decide_dead(self, owners: Mapping[str, tuple[int, bool]], *, now: float) -> list[tuple[str, int]]:
        """Owners to bury, each with the beats it had when it was judged."""
        self._seen = {owner: seen for owner, seen in self._seen.items() if owner in owners}
        dead = []
        for owner, (beats, connected) in owners.items():
            last, since = self._seen.get(owner, (None, now))
            if last != beats:
                self._seen[owner] = (beats, now)
                since = now
            if now - since >= (self.lease_s if connected else self.orphan_s):
                dead.append((owner, beats))
        return dead
