"""The error tree: nine kinds, one root. Faces map a kind to an HTTP status, the CLI to an exit code.

Run `python -m nexus.core.errors` to print the tree. `code` strings are many, stable and listed in docs/reference/errors.md.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar


class NexusError(Exception):
    """Something went wrong that a person can read: what was tried, on which id, and what to do next.

    `code` is stable (`agent.not_found`), `phase` says where in a longer journey it failed (`build`, `start`, `health`),
    `cause` is the underlying reason in one line, `next_step` is a command or an action, `log_tail` holds the last lines
    of the agent's own output, `retry_after_s` is in seconds. Nothing here ever holds a secret.
    """

    kind: ClassVar[str] = "internal"
    default_code: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        phase: str | None = None,
        cause: str | None = None,
        next_step: str | None = None,
        log_tail: Sequence[str] = (),
        retry_after_s: float | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.phase = phase
        self.cause = cause
        self.next_step = next_step
        self.log_tail = tuple(log_tail)
        self.retry_after_s = retry_after_s
        self.extra = dict(extra or {})


class Invalid(NexusError):
    """The request itself is wrong; sending it again unchanged cannot help."""

    kind = "invalid"
    default_code = "request.invalid"


class Unauthenticated(NexusError):
    """No credential, or one that is unknown, revoked or expired."""

    kind = "unauthenticated"
    default_code = "auth.required"


class Forbidden(NexusError):
    """The caller is known and may not do this."""

    kind = "forbidden"
    default_code = "auth.forbidden"


class NotFound(NexusError):
    """No such thing for this tenant; another tenant's things look exactly like absent ones."""

    kind = "not_found"
    default_code = "resource.not_found"


class Conflict(NexusError):
    """What is asked contradicts what is; read again and decide."""

    kind = "conflict"
    default_code = "resource.conflict"


class Exhausted(NexusError):
    """A limit was reached: rate, concurrency, queue, memory, time, tokens or money. The code says which."""

    kind = "exhausted"
    default_code = "limit.exceeded"


class AgentFailed(NexusError):
    """The author's code raised, exited, or could not be built or started."""

    kind = "agent_failed"
    default_code = "agent.failed"


class Unavailable(NexusError):
    """Something needed is not there at the moment; worth another try."""

    kind = "unavailable"
    default_code = "service.unavailable"


class Internal(NexusError):
    """A defect of ours."""

    kind = "internal"
    default_code = "internal"


KINDS: Mapping[str, type[NexusError]] = {
    error.kind: error
    for error in (
        Invalid,
        Unauthenticated,
        Forbidden,
        NotFound,
        Conflict,
        Exhausted,
        AgentFailed,
        Unavailable,
        Internal,
    )
}


if __name__ == "__main__":
    for _kind, _error in KINDS.items():
        print(f"{_kind:16} {_error.__name__:16} {(_error.__doc__ or '').splitlines()[0]}")
