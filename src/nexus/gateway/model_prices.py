"""What a call costs by its provider's list prices, which control sends. Pure: names and tokens in, 10⁻⁹ US dollars out.

Prices are those of whole calls: above a provider's threshold the higher price holds for every token of the call.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nexus.gateway import usage

_NANO_PER_TOKEN = 1000.0
"""10⁻⁹ dollars for one token, of a price of one dollar for a million of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """US dollars for a million tokens of each kind, and for a call. `above` holds from so many input tokens on."""

    input: float = 0.0
    output: float = 0.0
    cached: float = 0.0
    cache_write: float = 0.0
    request: float = 0.0
    above: tuple[tuple[int, "Rate"], ...] = ()

    def cost_nano(self, tokens: usage.Tokens) -> int:
        """Rounded up: a budget is never too small by rounding."""
        rate = self
        for least, higher in self.above:
            if tokens.input > least:
                rate = higher
        plain = max(0, tokens.input - tokens.cached - tokens.cache_written)
        dollars_per_million = (
            plain * rate.input
            + tokens.cached * rate.cached
            + tokens.cache_written * rate.cache_write
            + tokens.output * rate.output
        )
        return math.ceil(dollars_per_million * _NANO_PER_TOKEN + rate.request * 1e9 - 1e-6)


FREE = Rate()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One line of a price list. `context`: the most input tokens the model takes, when that is known."""

    fits: Callable[[str], bool]
    rate: Rate | None
    context: int | None


class PriceList:
    """One provider's, with what was found remembered."""

    def __init__(self, lines: Sequence[Listed]) -> None:
        self._lines = lines
        self._found: dict[str, Listed | None] = {}

    def find(self, model: str) -> Listed | None:
        if model not in self._found:
            if len(self._found) > 1000:
                self._found.clear()
            lower = model.lower()
            self._found[model] = next((line for line in self._lines if line.fits(lower)), None)
        return self._found[model]


def parse(entry: Mapping[str, Any]) -> PriceList:
    """A `PricesEntry` of the feed; ValueError, KeyError or TypeError when it is none."""
    lines = []
    for line in entry["models"]:
        price, context = line.get("price"), line.get("context")
        rate = None if price is None else parse_rate(price)
        lines.append(Listed(fits=_parse_match(line["match"]), rate=rate, context=None if context is None else int(context)))
    return PriceList(lines)


def parse_rate(price: Mapping[str, Any]) -> Rate:
    """Kinds without a price of their own cost what they are part of: cached and cache-written input as input."""
    given = _amount(price.get("input"), 0.0)
    tiers = sorted(((int(tier["tokens"]), parse_rate(tier)) for tier in price.get("above") or ()), key=lambda pair: pair[0])
    return Rate(
        input=given,
        output=_amount(price.get("output"), 0.0),
        cached=_amount(price.get("cached"), given),
        cache_write=_amount(price.get("cache_write"), given),
        request=_amount(price.get("request"), 0.0),
        above=tuple(tiers),
    )


def _amount(value: object, default: float) -> float:
    if value is None:
        return default
    amount = float(str(value))
    if not 0 <= amount <= 1e6:
        raise ValueError(f"{amount} is not a price")
    return amount


def _parse_match(match: Mapping[str, Any]) -> Callable[[str], bool]:
    ((kind, value),) = match.items()
    if kind in ("or", "and"):
        parts = [_parse_match(part) for part in value]
        combine = any if kind == "or" else all
        return lambda name: combine(part(name) for part in parts)
    text = str(value).lower()
    if kind == "equals":
        return lambda name: name == text
    if kind == "starts_with":
        return lambda name: name.startswith(text)
    if kind == "ends_with":
        return lambda name: name.endswith(text)
    if kind == "contains":
        return lambda name: text in name
    if kind == "regex":
        pattern = re.compile(str(value), re.IGNORECASE)
        return lambda name: pattern.search(name) is not None
    raise ValueError(f"{kind!r} is no way to match a name")
