"""The first stage: a model call's body is read, and what it asks for noted."""

import json
from typing import Any

from nexus.core import errors
from nexus.gateway.model_call import STREAMABLE, ModelCall
from nexus.gateway.world import World


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_BOM = b"\xef\xbb\xbf"
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_DECODE = json.JSONDecoder(parse_constant=_no_constant).decode


def read(call: ModelCall, raw: bytes) -> None:
    """Raises `Invalid` saying what is wrong with the body."""
    call.body = parse_body(raw)
    call.size = len(raw)
    asked = call.body.get("model")
    if asked is not None and not isinstance(asked, str):
        raise errors.Invalid("'model' must be a string", code="model.invalid")
    call.requested = asked or ""
    call.streaming = call.path in STREAMABLE and call.body.get("stream") is True


def ask_for_usage(call: ModelCall, world: World) -> None:
    """A stream of chat completions tells what it used only when asked to; then the extra chunk is kept from the client."""
    if not call.streaming or call.path not in (b"/v1/chat/completions", b"/v1/completions"):
        return
    options = call.body.get("stream_options")
    if options is None or (isinstance(options, dict) and options.get("include_usage") is not True):
        call.body["stream_options"] = {**(options or {}), "include_usage": True}
        call.hide_usage = call.changed = True


def render(call: ModelCall, raw: bytes) -> bytes:
    """The body for the target: the client's own bytes wherever nothing had to change."""
    target = call.target
    if target is not None and call.body.get("model") != target.upstream_model:
        call.body["model"] = target.upstream_model
        call.changed = True
    return _ENCODE(call.body).encode() if call.changed else raw


def parse_body(body: bytes) -> dict[str, Any]:
    """The JSON object of a model call, or `Invalid` saying what is wrong with it."""
    try:
        value = _DECODE(body.removeprefix(_BOM).decode())
    except RecursionError:
        raise errors.Invalid("the body is nested too deeply", code="body.too_deep") from None
    except ValueError as error:
        raise errors.Invalid(
            "the body is not JSON", code="body.invalid_json", cause=str(error)[:200], next_step="send a JSON object"
        ) from None
    if not isinstance(value, dict):
        raise errors.Invalid("the body is not a JSON object", code="body.not_an_object", next_step="send {...}")
    return value
