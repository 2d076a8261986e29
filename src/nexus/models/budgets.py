"""Budgets as the feed tells them to gateways, from the API, `models.yaml` and each deployment's `config.yaml`. Pure."""

import calendar
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nexus.wire import feed
from nexus.wire import models as wire

NANO = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A budget and where it was declared: `api`, `models.yaml` or `config.yaml`."""

    tenant: str
    id: str
    spec: wire.BudgetSpec
    source: str


def render(one: Declared, spent: Mapping[str, int] | None = None) -> feed.BudgetEntry:
    spec = one.spec
    entry = feed.BudgetEntry(
        id=one.id,
        scope=spec.scope,
        agent=spec.agent,
        environment=spec.environment,
        subject=spec.subject,
        unit=spec.unit,
        period=spec.period,
        limit=limit_of(spec),
        warn=sorted(set(spec.warn)),
    )
    if spent is not None:
        entry["spent"] = dict(spent)
    return entry


def limit_of(spec: wire.BudgetSpec) -> int:
    return round(spec.limit * NANO) if spec.unit == "cost" else int(spec.limit)


def shown(value: int, unit: str) -> float | int:
    """As people write it: US dollars for cost."""
    return value / NANO if unit == "cost" else value


def window_of(period: str, now: float) -> tuple[int, float, float | None]:
    """The number of the period's window that `now` is in, its beginning, and its end (None: it has none). UTC."""
    if period == "total":
        return 0, 0.0, None
    if period == "month":
        year, month = time.gmtime(now)[:2]
        return year * 12 + month - 1, _month(year, month), _month(year + month // 12, month % 12 + 1)
    length = 60 if period == "minute" else 86400
    window = int(now // length)
    return window, float(window * length), float((window + 1) * length)


def _month(year: int, month: int) -> float:
    return float(calendar.timegm((year, month, 1, 0, 0, 0)))


def needs_opening(spec: wire.BudgetSpec) -> bool:
    """Whether what was used before it was declared counts: where one counter holds for all, over a longer time."""
    return spec.period in ("day", "month") and (spec.scope == "tenant" or (spec.scope == "agent" and spec.agent is not None))


def of_config(tenant: str, agent: str, environment: str, given: Mapping[str, Any]) -> Iterable[Declared]:
    """What `hosting.budget` of a deployment's `config.yaml` declares (`wire.project_budget.Budget.plan`)."""
    for limit in given.get("limits", ()):
        scope, unit, period = limit["scope"], limit["unit"], limit["period"]
        yield Declared(
            tenant=tenant,
            id=f"config/{agent}/{environment}/{scope}/{unit}/{period}".replace("/", "."),
            spec=wire.BudgetSpec(
                scope=scope,
                agent=agent,
                environment=environment,
                unit=unit,
                period=period,
                limit=limit["limit"],
                warn=given.get("warn", [50, 80, 100]),
                webhook=given.get("webhook"),
            ),
            source="config.yaml",
        )
