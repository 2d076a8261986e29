"""The seam between the models room and where it keeps what it was told: settings, budgets, stops, notices; and reading usage.

Every method raises `Unavailable` (code `database.unavailable`) when the store cannot be asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

SettingKind = Literal["provider", "route", "price"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A provider, an alias or a price. `sealed` is a provider's encrypted key. `updated_at` is in seconds since the epoch."""

    kind: SettingKind
    name: str
    value: Mapping[str, Any]
    sealed: bytes | None = None
    updated_at: float = 0.0
    updated_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRow:
    """A tenant's budget; `value` is a `wire.models.BudgetSpec` as JSON."""

    tenant: str
    id: str
    value: Mapping[str, Any]
    updated_at: float = 0.0
    updated_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRow:
    """A stop of an agent's model calls; agent `*`: of the whole tenant's."""

    tenant: str
    agent: str
    reason: str
    since: float
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A threshold that was passed. `url` None: nobody is to be told by webhook. `attempts` of sending were made."""

    id: str
    tenant: str
    budget: str
    value: Mapping[str, Any]
    url: str | None
    at: float
    status: str = "pending"
    attempts: int = 0
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter:
    """Which model calls. Times are seconds since the epoch; `agents` None: any."""

    tenant: str
    since: float
    until: float | None = None
    agents: frozenset[str] | None = None
    environment: str | None = None
    run_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSum:
    """What the calls of one group used. `cost_nano` counts 10⁻⁹ US dollars of those with a known price, `unpriced` the others."""

    group: str
    calls: int
    failed: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_nano: int
    unpriced: int
    estimated: int


class ModelStore(Protocol):
    async def settings(self) -> Sequence[Setting]: ...

    async def put_setting(self, setting: Setting) -> None:
        """Replace; a `sealed` of None keeps the key that is there."""
        ...

    async def drop_setting(self, kind: SettingKind, name: str) -> bool: ...

    async def budgets(self, tenant: str | None = None) -> Sequence[BudgetRow]: ...

    async def put_budget(self, row: BudgetRow) -> None: ...

    async def drop_budget(self, tenant: str, budget_id: str) -> bool: ...

    async def stops(self, tenant: str | None = None) -> Sequence[StopRow]: ...

    async def put_stop(self, row: StopRow) -> None: ...

    async def drop_stop(self, tenant: str, agent: str) -> bool: ...

    async def usage(self, which: UsageFilter, by: str | None) -> Sequence[UsageSum]:
        """Sums, the dearest first, of at most 1000 groups. `by`: model, provider, agent, environment, user, session, run,
        principal or day; None: one sum of all."""
        ...

    async def spent(self, which: UsageFilter, unit: str) -> int:
        """Requests, tokens or cost (10⁻⁹ US dollars) of the calls that reached a provider."""
        ...

    async def add_notices(self, notices: Sequence[Notice]) -> None:
        """What is known already is left alone."""
        ...

    async def notices(self, tenant: str, budget: str | None, *, limit: int) -> Sequence[Notice]:
        """Newest first."""
        ...

    async def due_notices(self, *, now: float, hold_s: float, limit: int) -> Sequence[Notice]:
        """Take notices to be sent in hand. One that is not settled within `hold_s` is due again."""
        ...

    async def settle_notice(self, notice_id: str, *, attempt: int, error: str | None, next_at: float | None) -> None:
        """Sent (`error` None), to be tried again at `next_at`, or given up (`next_at` None)."""
        ...
