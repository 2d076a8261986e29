"""Quantities: Kubernetes' (`500m`, `512Mi`), and `2GB`, `100Mbps`, `10s` as document 5 writes them.

Source: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

import math
import re

_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]i?B?|k|B)?", re.ASCII)
_CPU = re.compile(r"(\d+(?:\.\d+)?)(m)?", re.ASCII)
_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMG])?bps", re.ASCII)
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_bytes(value: str | int) -> int:
    """Bytes from `512Mi` (binary), `2G`/`2GB` (decimal) or a plain number. Raises ValueError."""
    match = _BYTES.fullmatch(str(value).strip())
    if not match:
        raise ValueError(f"{value!r} is not an amount of memory such as 512Mi or 2GB")
    unit = (match[2] or "").rstrip("B").upper()
    binary = unit.endswith("I")
    return _whole(float(match[1]) * (1024 if binary else 1000) ** _POWER[unit.removesuffix("I")])


def parse_cpu(value: str | float) -> int:
    """Thousandths of a core from `500m`, `2` or `0.5`. Raises ValueError."""
    match = _CPU.fullmatch(str(value).strip())
    if not match:
        raise ValueError(f"{value!r} is not an amount of CPU such as 500m or 2")
    return _whole(float(match[1]) * (1 if match[2] else 1000))


def parse_duration(value: str | float) -> float:
    """Seconds from `10s`, `5m`, `1h`, `30d`, `250ms`; a plain number is seconds. Raises ValueError."""
    text = str(value).strip()
    if match := _TIME.fullmatch(text):
        return float(match[1]) * _SECONDS[match[2]]
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{value!r} is not a length of time such as 30s, 5m or 1h") from None


def parse_rate(value: str) -> int:
    """Bits a second from `100Mbps`. Raises ValueError."""
    match = _RATE.fullmatch(str(value).strip())
    if not match:
        raise ValueError(f"{value!r} is not a network rate such as 100Mbps")
    return _whole(float(match[1]) * 1000 ** _POWER[(match[2] or "").upper()])


def _whole(number: float) -> int:
    if number == math.inf:
        raise ValueError("the amount is too large to be a number")
    return int(number)
