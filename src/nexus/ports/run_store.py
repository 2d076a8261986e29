"""The seam for the history of runs and model calls that gateways report."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from nexus.wire import runs


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
    """A run of the past with the tokens its model calls took."""

    record: runs.RunRecord
    input_tokens: int
    output_tokens: int


class RunStore(Protocol):
    """Raises `Unavailable` (code `database.unavailable`) when the store cannot be asked."""

    async def add(
        self, run_records: Sequence[runs.RunRecord], model_records: Sequence[tuple[str, runs.ModelRecord]]
    ) -> frozenset[str]:
        """Store in one commit; ids known already are left alone. The ids that were new (model records come with theirs)."""
        ...

    async def runs(self, which: RunFilter) -> Sequence[FinishedRun]:
        """Newest first."""
        ...

    async def run(self, tenant: str, run_id: str) -> FinishedRun | None: ...
