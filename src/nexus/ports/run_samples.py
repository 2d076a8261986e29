"""The seam between rollouts and the history of runs: how the runs of each version of a deployment went.

Adapter: `stores.postgres.hosting_runs`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Runs that ended by themselves: how many, how many failed by the agent's fault, how long the others took (seconds)."""

    runs: int = 0
    errors: int = 0
    durations: Sequence[float] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Runs of one deployment that began at `since` (seconds since the epoch) or later; at most the newest `limit`."""

    tenant: str
    agent: str
    deployment_id: str
    since: float
    until: float | None = None
    limit: int = 20_000


class RunSamples(Protocol):
    """Raises `Unavailable` (code `database.unavailable`) when the history cannot be asked."""

    async def by_version(self, window: Window) -> Mapping[str, Sample]:
        """One sample for each version that has runs in the window; cancelled and refused runs are in none."""
        ...
