"""The steps of an operation, without I/O: a call to make, a pause to keep, and what a reply means when it is an error."""

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from nexus.core import errors
from nexus.wire import problem

T = TypeVar("T")


class _Nothing:
    """No JSON body at all, which is different from the body `null`."""


NOTHING: Final = _Nothing()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request. `json` or `content` is the body; `patient` calls have no limit on how long the answer may take."""

    method: str
    path: str
    query: Mapping[str, str | int | None] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = NOTHING
    content: bytes | None = None
    patient: bool = False
    timeout_s: float | None = None

    def encode(self) -> tuple[bytes | None, dict[str, str]]:
        """Body and headers as they are sent. Raises `Invalid` (code `input.unserialisable`) for what JSON cannot say."""
        headers = dict(self.headers)
        if self.content is not None:
            return self.content, headers
        if self.json is NOTHING:
            return None, headers
        try:
            body = json.dumps(self.json, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise errors.Invalid(
                "the input cannot be written as JSON",
                code="input.unserialisable",
                cause=f"{type(error).__name__}: {error}",
                next_step="pass text, numbers, lists and objects with text keys",
            ) from error
        return body, {"Content-Type": "application/json", **headers}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Wait this long, then go on."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer, read to its end. Header names are lower case."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise errors.Internal(
                "the host's answer is not JSON",
                code="host.bad_answer",
                cause=self.body[:200].decode("utf-8", "replace"),
                next_step="check that the URL is that of a Nexus host",
            ) from error

    def object(self) -> dict[str, Any]:
        value = self.json()
        if not isinstance(value, dict):
            raise errors.Internal(
                "the host's answer is not a JSON object",
                code="host.bad_answer",
                next_step="check that the URL is that of a Nexus host",
            )
        return value

    def items(self) -> list[Any]:
        """The entries of a list answer, bare or as a page."""
        value = self.json()
        found = value.get("items") if isinstance(value, dict) else value
        return found if isinstance(found, list) else []


Step = Call | Pause
Operation = Generator[Step, Reply, T]


def ask(call: Call) -> Operation[Reply]:
    """Make the call; an error reply is raised."""
    reply = yield call
    if reply.status >= 400:
        raise error_of(reply)
    if not 200 <= reply.status < 300:
        raise errors.Internal(
            f"the host answered {reply.status} to {call.method} {call.path}",
            code="host.bad_answer",
            next_step="check that the URL is that of a Nexus host and not of something in front of it",
        )
    return reply


_KIND_OF_STATUS: Mapping[int, type[errors.NexusError]] = {
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    429: errors.Exhausted,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.Unavailable,
}


def error_of(reply: Reply) -> errors.NexusError:
    """The error an answer of 400 or more stands for, a problem or whatever a proxy in between may have written."""
    try:
        told = json.loads(reply.body)
    except (ValueError, RecursionError):
        told = None
    if isinstance(told, dict) and "code" in told and "kind" in told:
        error = problem.parse(told)
        if error.retry_after_s is None:
            error.retry_after_s = _retry_after(reply)
        return error
    kind = _KIND_OF_STATUS.get(reply.status, errors.Invalid if reply.status < 500 else errors.Internal)
    return kind(
        f"the answer was {reply.status}",
        code="host.bad_answer" if kind is errors.Internal else None,
        cause=reply.body[:200].decode("utf-8", "replace").strip() or None,
        next_step="check that the URL is that of a Nexus host and look at what stands in front of it",
        retry_after_s=_retry_after(reply),
    )


def _retry_after(reply: Reply) -> float | None:
    value = reply.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else None
