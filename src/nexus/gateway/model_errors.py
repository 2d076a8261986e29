"""Errors of the models door in the form the caller's SDK reads, OpenAI's or Anthropic's, with the problem's members beside it.

Sources: OpenAI's API reference on errors (`error.message/type/param/code`), Anthropic's on errors (`type: error`, `error.type`).
"""

import json
from typing import Any

from nexus.core import errors
from nexus.wire import problem

_OPENAI = {
    400: "invalid_request_error", 401: "authentication_error", 402: "insufficient_quota", 403: "permission_error",
    404: "invalid_request_error", 409: "conflict_error", 413: "invalid_request_error", 429: "rate_limit_error",
}  # fmt: skip
_ANTHROPIC = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


def render(error: errors.NexusError, *, anthropic: bool, run_id: str | None = None) -> bytes:
    """The body of an error answer: what the SDK shows, and every member of the problem."""
    whole = problem.render(error, run_id=run_id)
    inner = _inner(error, whole, anthropic=anthropic)
    # In Anthropic's form `type` is the word that marks an error, so there the problem's own type is left out.
    body = {**whole, "type": "error", "error": inner} if anthropic else {**whole, "error": inner}
    return json.dumps(body).encode()


def render_event(error: errors.NexusError, *, anthropic: bool) -> bytes:
    """The same as the last event of a stream."""
    body = render(error, anthropic=anthropic)
    return b"event: error\ndata: %b\n\n" % body if anthropic else b"data: %b\n\n" % body


def _inner(error: errors.NexusError, whole: dict[str, Any], *, anthropic: bool) -> dict[str, Any]:
    words = [error.message, error.cause, error.next_step]
    said: dict[str, Any] = {"message": "; ".join(word for word in words if word)}
    if anthropic:
        return {"type": _ANTHROPIC.get(whole["status"], "api_error"), **said}
    return {**said, "type": _OPENAI.get(whole["status"], "server_error"), "param": None, "code": error.code}
