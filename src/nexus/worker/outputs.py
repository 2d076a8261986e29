"""Outputs: what an author returned becomes JSON, or a clear `agent.unserialisable`. Pure.

Beyond JSON's own types: dataclasses, pydantic models (`model_dump`), enums, dates, UUIDs, paths, decimals (as text),
sets (as lists) and named tuples. Bytes, NaN and everything unknown are refused by name.
"""

import dataclasses
import datetime
import decimal
import enum
import json
import math
import pathlib
import uuid
from collections import abc
from typing import Any

from nexus.core import errors

_AS_TEXT = (uuid.UUID, pathlib.PurePath, decimal.Decimal)


def encode(value: object) -> str:
    """JSON in ASCII, so that even half a surrogate pair is valid on the wire. Raises `AgentFailed` (`agent.unserialisable`)."""
    try:
        return _ENCODER.encode(value)
    except Exception as error:  # noqa: BLE001 - an author's model_dump may raise anything
        raise _unserialisable(value, error) from None


def plain(value: object) -> Any:
    """The same value made of JSON's own types only."""
    return json.loads(encode(value))


def _convert(value: object) -> Any:
    """What `json` calls for a type it does not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
    if not isinstance(value, type) and callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json")
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, _AS_TEXT):
        return str(value)
    if isinstance(value, abc.Set):
        return _in_order(value)
    if isinstance(value, abc.Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


_ENCODER = json.JSONEncoder(default=_convert, allow_nan=False, separators=(",", ":"))


def _in_order(values: abc.Set[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return list(values)


def _unserialisable(value: object, error: Exception) -> errors.AgentFailed:
    if isinstance(error, RecursionError):
        where, cause = type(value).__name__, "it is nested too deeply"
    elif "ircular" in str(error):
        where, cause = type(value).__name__, "it contains itself"
    else:
        where = _find(value, "output", 0) or type(value).__name__
        cause = str(error)
    return errors.AgentFailed(
        f"the agent's output cannot be written as JSON: {where}",
        code="agent.unserialisable",
        phase="run",
        cause=cause,
        next_step="return text, numbers, lists, dicts, dataclasses or pydantic models",
    )


def _find(value: Any, path: str, depth: int) -> str | None:
    """The first thing that has no JSON form, as `output.items[3] is a Foo`."""
    if depth > 50 or value is None or isinstance(value, str | bool | int):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{path} is {value}"
    if isinstance(value, abc.Mapping):
        for key, entry in value.items():
            if key is not None and not isinstance(key, str | int | float | bool):
                return f"a key of {path} is a {type(key).__name__}"
            if found := _find(entry, f"{path}.{key}", depth + 1):
                return found
        return None
    if isinstance(value, list | tuple):
        found_at = (_find(entry, f"{path}[{index}]", depth + 1) for index, entry in enumerate(value))
        return next((found for found in found_at if found), None)
    try:
        converted = _convert(value)
    except Exception as error:  # noqa: BLE001 - an author's model_dump may raise anything
        return f"{path} is a {type(value).__name__}" + ("" if isinstance(error, TypeError) else f" ({error})")
    return _find(converted, path, depth + 1)
