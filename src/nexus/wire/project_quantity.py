"""Quantities as `config.yaml` writes them (`512Mi`, `1Mbps`), read into numbers; other forms are refused in the same words."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from nexus.kit import quantity


def read(parse: Callable[[Any], float]) -> Callable[[Any], float]:
    """A quantity is written as text or a number; YAML's booleans, lists and infinities are none."""

    def reading(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            value = "null" if value is None else str(value).lower() if isinstance(value, bool) else f"a {type(value).__name__}"
        try:
            return parse(value)
        except OverflowError:
            raise ValueError(f"{str(value)[:40]!r} is too large") from None

    return reading


def written(example: str, pattern: str) -> WithJsonSchema:
    """How editors are told of it."""
    return WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": pattern}, {"type": "number", "exclusiveMinimum": 0}], "examples": [example]}
    )


def parse_rate(value: str | int) -> int:
    """Bytes a second from `100Mbps` (bits), `2MB` (bytes) or a plain number of bytes. Raises ValueError."""
    text = str(value).strip()
    if text.endswith("bps"):
        return quantity.parse_rate(text) // 8
    try:
        return quantity.parse_bytes(text.removesuffix("/s"))
    except ValueError:
        raise ValueError(f"{value!r} is not a network rate such as 100Mbps or 2MB/s") from None


Size = Annotated[
    int,
    BeforeValidator(read(quantity.parse_bytes)),
    Field(ge=1024 * 1024, le=2**50),
    written("512Mi", r"^\d+(\.\d+)?\s*([KMGTP]i?B?|k|B)?$"),
]
Rate = Annotated[
    int,
    BeforeValidator(read(parse_rate)),
    Field(ge=1000, le=2**40),
    written("100Mbps", r"^\d+(\.\d+)?\s*([kKMG]?bps|([KMGTP]i?B?|k|B)?(/s)?)$"),
]
