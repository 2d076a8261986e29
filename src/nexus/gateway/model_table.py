"""What the feed says about models, compiled for look-ups: aliases, price lists, budgets, stops. Called by `routes`."""

from collections.abc import Mapping
from typing import Any

from nexus.gateway import model_budget, model_prices
from nexus.wire import feed as wire_feed

_ON = frozenset({"error", "timeout", "rate", "quota"})


def parse_route(value: Mapping[str, Any]) -> wire_feed.RouteEntry:
    """Raises ValueError, KeyError or TypeError when it is none."""
    entry = wire_feed.RouteEntry(
        targets=[{"model": str(one["model"]), "weight": int(one.get("weight", 1))} for one in value["targets"]],
        choose=value["choose"],
        fallback=[str(name) for name in value["fallback"]],
        last_resort=value.get("last_resort"),
        on=[name for name in value["on"] if name in _ON],
        rules=[dict(rule) for rule in value.get("rules") or ()],
        trim_to=None if value.get("trim_to") is None else int(value["trim_to"]),
    )
    if entry["choose"] not in ("order", "weight", "price") or not all("use" in rule for rule in entry["rules"]):
        raise ValueError("an alias chooses in a way that is not known")
    return entry


def parse_prices(value: Mapping[str, Any]) -> model_prices.PriceList:
    return model_prices.parse(value)


def parse_stop(value: Mapping[str, Any]) -> wire_feed.StopEntry:
    return wire_feed.StopEntry(reason=str(value["reason"]), since=float(value["since"]))


def group_budgets(entries: Mapping[str, Any]) -> dict[str, tuple[model_budget.Budget, ...]]:
    """The budgets of each tenant, from all entries of the table."""
    found: dict[str, list[model_budget.Budget]] = {}
    for path, value in entries.items():
        if path.startswith("budget/"):
            budget = model_budget.parse(path.removeprefix("budget/"), value)
            found.setdefault(budget.tenant, []).append(budget)
    return {tenant: tuple(budgets) for tenant, budgets in found.items()}
