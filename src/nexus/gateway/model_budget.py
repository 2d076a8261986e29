"""Budgets as a gateway knows them: which of them bind a call, which counter that is, what is said when one is empty. Pure."""

import calendar
import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nexus.core import errors
from nexus.gateway.model_spend import Meter

if TYPE_CHECKING:
    from nexus.gateway.model_call import ModelCall

SCOPES = ("tenant", "agent", "user", "session", "run")
UNITS = ("requests", "tokens", "cost")
PERIODS = ("minute", "day", "month", "total")
_KEPT_S = 7 * 86400.0
_NOBODY = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A `BudgetEntry`; `opening` is what control knew to be spent in window `opening_window`."""

    id: str
    tenant: str
    scope: str
    agent: str | None
    environment: str | None
    subject: str | None
    unit: str
    period: str
    limit: int
    warn: tuple[int, ...]
    opening_window: int = -1
    opening: int = 0

    def subject_of(self, call: "ModelCall") -> str | None:
        """Whose counter a call is on; None when this budget does not bind it. Calls that do not say whose they are share one."""
        if self.agent is not None and self.agent != call.agent:
            return None
        if self.environment is not None and self.environment != call.environment:
            return None
        if self.scope == "tenant":
            return ""
        if self.scope == "user":
            found = call.user_id or (_NOBODY if call.agent else call.principal)
        elif not call.agent:
            return None
        else:
            found = {"agent": call.agent, "session": call.session_id, "run": call.run_id}[self.scope] or _NOBODY
        return found if self.subject in (None, found) else None

    def meter(self, subject: str, now: float) -> Meter:
        period = "day" if self.period == "total" and subject == _NOBODY else self.period
        window, ends = _window_in(period, int(now))
        name = f"{self.tenant}\0{self.id}\0{self.unit}\0{subject}\0{period}\0{window}"
        return Meter(name, ends, self.opening if window == self.opening_window else 0)


def window_of(period: str, now: float) -> tuple[int, float]:
    """The number of the window that `now` is in, and its end (of `total`: how long its counter is kept)."""
    if period == "total":
        return 0, now + _KEPT_S
    if period == "month":
        year, month = time.gmtime(now)[:2]
        following = (year + month // 12, month % 12 + 1, 1, 0, 0, 0)
        return year * 12 + month - 1, float(calendar.timegm(following))
    length = 60 if period == "minute" else 86400
    window = int(now // length)
    return window, float((window + 1) * length)


@functools.lru_cache(maxsize=16)
def _window_in(period: str, second: int) -> tuple[int, float]:
    return window_of(period, float(second))


def parse(path: str, value: Mapping[str, Any]) -> Budget:
    """A `BudgetEntry` under `<tenant>/<id>`; ValueError, KeyError or TypeError when it is none."""
    scope, unit, period, limit = value["scope"], value["unit"], value["period"], int(value["limit"])
    if scope not in SCOPES or unit not in UNITS or period not in PERIODS or limit < 0:
        raise ValueError(f"{path} is no budget")
    spent = value.get("spent") or {}
    return Budget(
        id=value["id"],
        tenant=path.partition("/")[0],
        scope=scope,
        agent=value["agent"],
        environment=value["environment"],
        subject=value["subject"],
        unit=unit,
        period=period,
        limit=limit,
        warn=tuple(sorted(int(level) for level in value["warn"]))[:60],
        opening_window=int(spent.get("window", -1)),
        opening=int(spent.get("amount", 0)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """What a budget lacks for a call: spent and reserved so far, and what was wanted at least. `begun`: it is under way."""

    budget: Budget
    subject: str
    spent: int
    reserved: int
    wanted: int
    begun: bool = False


def refusal(lack: Shortage, now: float) -> errors.Exhausted:
    """`budget.exhausted`: which budget, how much, until when, and how to raise it. `Retry-After` only where waiting helps."""
    budget = lack.budget
    _, ends = window_of(budget.period, now)
    pending = not lack.begun and lack.spent + lack.wanted <= budget.limit
    retry = 1.0 if pending else max(1.0, ends - now) if budget.period == "minute" else None
    whose = _whose(budget, lack.subject)
    until = "" if budget.period == "total" else f"; it is whole again at {_moment(ends)}"
    held = f", {amount(lack.reserved, budget.unit)} reserved by calls under way" if lack.reserved else ""
    return errors.Exhausted(
        f"the budget {budget.id!r} of {whose} is used up: {amount(budget.limit, budget.unit)} {_per(budget.period)}",
        code="budget.pending"
        if pending
        else "budget.rate"
        if budget.period == "minute" and not lack.begun
        else "budget.exhausted",
        cause=f"{amount(lack.spent, budget.unit)} spent{held}; this call needs {amount(lack.wanted, budget.unit)}{until}",
        retry_after_s=retry,
        next_step=f"raise it with `nexus models budget set {budget.id} …`, or see what used it: nexus models usage",
        extra={
            "budget": budget.id,
            "scope": budget.scope,
            "unit": budget.unit,
            "period": budget.period,
            "limit": shown(budget.limit, budget.unit),
            "spent": shown(lack.spent, budget.unit),
            "reserved": shown(lack.reserved, budget.unit),
            "resets_at": None if budget.period == "total" else ends,
        },
    )


def _whose(budget: Budget, subject: str) -> str:
    if budget.scope == "tenant":
        return f"tenant {budget.tenant}"
    return f"{budget.scope} {subject}" if subject != _NOBODY else f"calls without a {budget.scope}"


def _per(period: str) -> str:
    return "in all" if period == "total" else f"per {period}"


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def shown(value: int, unit: str) -> int | float:
    """As users write it: dollars for cost."""
    return value / 1e9 if unit == "cost" else value


def amount(value: int, unit: str) -> str:
    if unit == "cost":
        dollars = value / 1e9
        return f"${dollars:.2f}" if dollars >= 1 or not value else f"${dollars:.6f}".rstrip("0")
    return f"{value} {unit if value != 1 else unit[:-1]}"
