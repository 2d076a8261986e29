"""What a deployment asks of the gateway beyond routing: its `options`, read leniently, since one bad value may not stop the feed.

What cannot be read is left out and logged; control has refused it before, so this is a defect and not a user's mistake.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from nexus.gateway import model_policy

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_SIZE = re.compile(r"(\d{1,15})\s*([kmg]?)i?b?", re.IGNORECASE)
_SECONDS = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*(ms|s|m|h|)")
_HEADER = re.compile(r"[a-z0-9-]{1,64}")
_DEFAULT_TTL_S = 300.0
_DEFAULT_SIZE = 64 * 1024 * 1024
_DEFAULT_THRESHOLD = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Keep answers for `ttl_s` seconds, `size` bytes of them; `headers` of the request are part of what must be equal."""

    ttl_s: float = _DEFAULT_TTL_S
    size: int = _DEFAULT_SIZE
    headers: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """New sessions (or users) go to versions by weight. `name` makes assignments of two experiments independent."""

    name: str
    by: str
    weights: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`threshold`: failures in a row that open a circuit (None: no breaker). `isolated`: each session has a worker of its own,
    for which the supervisor is asked."""

    requests_per_minute: int | None = None
    threshold: int | None = None
    cache: Cache | None = None
    split: Split | None = None
    compression: str = "auto"
    isolated: bool = False
    models: model_policy.Policy = model_policy.NO_POLICY


def parse_options(value: Mapping[str, Any], *, where: str) -> Options:
    """Every option this gateway knows; others are somebody else's."""

    def read(name: str, parse: Callable[[Any], T], default: T) -> T:
        given = value.get(name)
        if given is None:
            return default
        try:
            return parse(given)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            _LOG.warning("the option %s of %s cannot be read (%s); it is left out", name, where, error)
            return default

    threshold = read("failure_threshold", _positive, _DEFAULT_THRESHOLD)
    cache = Cache(
        ttl_s=read("cache_ttl", parse_seconds, _DEFAULT_TTL_S),
        size=read("cache_size", parse_size, _DEFAULT_SIZE),
        headers=read("cache_headers", _header_names, ()),
    )
    return Options(
        requests_per_minute=read("requests_per_minute", _positive, None),
        threshold=threshold if read("circuit_breaker", _truth, False) else None,
        cache=cache if read("cache_responses", _truth, False) else None,
        split=_read_split(value, read),
        compression=read("compression", _compression, "auto"),
        isolated=value.get("isolation") == "session",
        models=model_policy.parse_policy(value.get("models"), where=where),
    )


def _read_split(value: Mapping[str, Any], read: Callable[..., Any]) -> Split | None:
    weights = read("split", _weights, ())
    if not weights:
        return None
    by = read("split_by", str, "session")
    return Split(
        name=read("split_name", str, "") or read("name", str, ""), by="user" if by == "user" else "session", weights=weights
    )


def _weights(given: Any) -> tuple[tuple[str, float], ...]:
    weights = tuple((str(part["version"]), float(part["weight"])) for part in given)
    if any(not 0 <= weight <= 1e9 for _, weight in weights) or sum(weight for _, weight in weights) <= 0:
        raise ValueError("weights are numbers from 0, and not all of them 0")
    return weights


def _positive(given: Any) -> int:
    number = int(given)
    if number < 1:
        raise ValueError(f"{number} is less than 1")
    return number


def _truth(given: Any) -> bool:
    if not isinstance(given, bool):
        raise TypeError(f"{given!r} is neither true nor false")
    return given


def _compression(given: Any) -> str:
    """`auto`: what is worth it, for clients that ask. `gzip`: event streams too. `none`: nothing."""
    modes = {"auto": "auto", "gzip": "gzip", "none": "none", "off": "none"}
    if given not in modes:
        raise ValueError(f"{given!r} is not auto, gzip or none")
    return modes[given]


def _header_names(given: Any) -> tuple[bytes, ...]:
    names = [str(name).lower() for name in given]
    if any(_HEADER.fullmatch(name) is None for name in names):
        raise ValueError("these are not names of headers")
    return tuple(sorted(name.encode("ascii") for name in names))


def parse_seconds(given: Any) -> float:
    """Seconds from a number or from text such as `300s`, `5m`, `250ms`."""
    if isinstance(given, int | float) and not isinstance(given, bool):
        seconds = float(given)
    else:
        found = _SECONDS.fullmatch(str(given).strip())
        if found is None:
            raise ValueError(f"{given!r} is not a duration such as 300s")
        seconds = float(found[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}[found[2]]
    if not 0 < seconds <= 30 * 86400:
        raise ValueError(f"{given!r} is not between 0 and 30 days")
    return seconds


def parse_size(given: Any) -> int:
    """Bytes from a number or from text such as `100MB`, `64Mi`."""
    if isinstance(given, int) and not isinstance(given, bool):
        size = given
    else:
        found = _SIZE.fullmatch(str(given).strip())
        if found is None:
            raise ValueError(f"{given!r} is not a size such as 100MB")
        base = 1024 if "i" in str(given).lower() else 1000
        size = int(found[1]) * int(base ** {"": 0, "k": 1, "m": 2, "g": 3}[found[2].lower()])
    if not 0 < size <= 64 * 1024**3:
        raise ValueError(f"{given!r} is not between 1 byte and 64 GiB")
    return size
