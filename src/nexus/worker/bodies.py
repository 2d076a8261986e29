"""Request bodies: bytes in, `Call` or a clear refusal out. Pure."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nexus.core import errors

DEEPEST = 200
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Call:
    """What one run is asked."""

    input: Any
    context: Mapping[str, Any]


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def parse_call(body: bytes) -> Call:
    """`{"input": …, "context": {…}}`; both may be absent. Raises `Invalid` with a `body.*` code."""
    value = _parse(body)
    if not isinstance(value, dict):
        raise errors.Invalid(
            f"the body is JSON, but {_kind(value)} and not an object",
            code="body.not_an_object",
            next_step='send {"input": ..., "context": {...}}',
        )
    _check_shape(value, body)
    context = value.get("context")
    if context is None:
        context = {}
    if not isinstance(context, dict):
        raise errors.Invalid(
            f"context is {_kind(context)} and not an object",
            code="body.bad_context",
            next_step='send "context": {...} or leave it out',
        )
    return Call(value.get("input"), context)


def _parse(body: bytes) -> Any:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_json(f"byte {error.start} is not UTF-8") from None
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        raise _not_json(f"{error.msg} at line {error.lineno}, column {error.colno} (character {error.pos})") from None
    except ValueError as error:
        raise _not_json(str(error)) from None


def _check_shape(value: Any, body: bytes) -> None:
    """Depth, and lone surrogates, each looked for only where the bytes make it possible."""
    deep = body.count(b"[") + body.count(b"{") > DEEPEST
    surrogates = _SURROGATE.search(body) is not None
    if not deep and not surrogates:
        return
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for entry in level:
            if isinstance(entry, dict):
                below.extend(entry.values())
                if surrogates:
                    below.extend(entry)
            elif isinstance(entry, list):
                below.extend(entry)
            elif surrogates and isinstance(entry, str):
                _check_text(entry)
        if not below:
            return
        level = below
    if any(isinstance(entry, dict | list) for entry in level):
        raise _too_deep()
    for entry in level:
        if isinstance(entry, str):
            _check_text(entry)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise errors.Invalid(
            "the body holds half of a surrogate pair",
            code="body.invalid_unicode",
            cause=f"\\u{ord(text[error.start]):04x} stands alone at character {error.start} of a string",
            next_step="send both halves of the pair, or the character itself in UTF-8",
        ) from None


def _not_json(cause: str) -> errors.Invalid:
    return errors.Invalid(
        "the body is not JSON", code="body.invalid_json", cause=cause, next_step='send {"input": ..., "context": {...}}'
    )


def _too_deep() -> errors.Invalid:
    return errors.Invalid(
        f"the body is nested deeper than {DEEPEST} levels", code="body.too_deep", next_step="send a flatter input"
    )


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
