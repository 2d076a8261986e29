"""The seam for the history of runs and model calls that gateways report: `wire.runs` RunRecord and ModelRecord as mappings."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs. `agents` None: any the tenant has. `before` is a cursor from the last page."""

    tenant: str
    agents: Collection[str] | None = None
    environment: str | None = None
    session_id: str | None = None
    outcome: str | None = None
    before: tuple[float, str] | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A run of the past with the tokens its model calls took, and what they cost in 10⁻⁹ US dollars (None: no price is known)."""

    record: Record
    input_tokens: int
    output_tokens: int
    cost_nano: int | None = None


class RunStore(Protocol):
    """Raises `Unavailable` (code `database.unavailable`) when the store cannot be asked."""

    async def add(self, run_records: Sequence[Record], model_records: Sequence[tuple[str, Record]]) -> frozenset[str]:
        """Store in one commit; what is known already is left alone. The keys that were new.

        A run's key is `id@started_at@instance_id`: attempts of a task share their id. Model records come with theirs.
        """
        ...

    async def runs(self, which: RunFilter) -> Sequence[FinishedRun]:
        """Newest first."""
        ...

    async def run(self, tenant: str, run_id: str) -> FinishedRun | None: ...
