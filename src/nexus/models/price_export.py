"""`python -m nexus.models.price_export openai anthropic`: the list prices of these providers from genai-prices, as JSON.

A process of its own, so that control does not keep two thousand prices in memory for the few it needs. Called by `prices`.
"""

import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

_KINDS = {"input": "input_mtok", "output": "output_mtok", "cached": "cache_read_mtok", "cache_write": "cache_write_mtok"}


def export(providers: Iterable[str], now: datetime) -> dict[str, Any]:
    """`PricesEntry` by provider; those that are not known are left out."""
    from genai_prices import data_snapshot

    found = {}
    known = {provider.id: provider for provider in data_snapshot.get_snapshot().providers}
    for name in providers:
        provider = known.get(name)
        if provider is not None:
            found[name] = {"models": [line for model in provider.models if (line := _line(model, now)) is not None]}
    return found


def _line(model: Any, now: datetime) -> dict[str, Any] | None:
    match = _match(model.match)
    if match is None:
        return None
    price = model.get_prices(now) if model.prices else None
    return {"match": match, "context": model.context_window, "price": None if price is None else _price(price)}


def _match(clause: Any) -> dict[str, Any] | None:
    for kind in ("equals", "starts_with", "ends_with", "contains", "regex"):
        if hasattr(clause, kind):
            return {kind: getattr(clause, kind)}
    for kind in ("or", "and"):
        if hasattr(clause, kind + "_"):
            parts = [_match(part) for part in getattr(clause, kind + "_")]
            return {kind: [part for part in parts if part is not None]}
    return None


def _price(price: Any) -> dict[str, Any]:
    """Base prices, and from which prompt length on others hold (for the whole call, as providers bill it)."""
    values = {kind: getattr(price, name, None) for kind, name in _KINDS.items()}
    base = {kind: _number(getattr(value, "base", value)) for kind, value in values.items() if value is not None}
    starts = sorted({tier.start for value in values.values() for tier in getattr(value, "tiers", ())})
    above = []
    for start in starts:
        tier: dict[str, Any] = {"tokens": start}
        for kind, value in values.items():
            if value is not None:
                fitting = [one.price for one in getattr(value, "tiers", ()) if one.start <= start]
                tier[kind] = _number(fitting[-1]) if fitting else base[kind]
        above.append(tier)
    requests = getattr(price, "requests_kcount", None)
    if requests is not None:
        base["request"] = _number(getattr(requests, "base", requests)) / 1000
    return base | ({"above": above} if above else {})


def _number(value: Any) -> float:
    return float(value)


if __name__ == "__main__":
    json.dump(export(sys.argv[1:], datetime.now(UTC)), sys.stdout, separators=(",", ":"))
