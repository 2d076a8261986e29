"""Exceptions of the author's code as errors a caller can read: the type, the message and the author's own line.

A client never sees a traceback; the log does.
"""

import traceback
from pathlib import Path
from types import TracebackType

from nexus.core import errors

_LONGEST = 2000


def run_failed(error: BaseException, source: Path) -> errors.NexusError:
    """What a run that ended with `error` tells its caller; our own errors pass through as they are."""
    if isinstance(error, errors.NexusError):
        return error
    where = author_line(error.__traceback__, source)
    extra = {"location": where} if where else {}
    if isinstance(error, MemoryError):
        return errors.Exhausted(
            "the run used more memory than the instance has",
            code="run.memory",
            phase="run",
            cause=describe(error),
            next_step="raise hosting.memory in config.yaml, or deploy with --memory",
            extra=extra,
        )
    if isinstance(error, SystemExit):
        return errors.AgentFailed(
            "the agent ended itself during a run",
            code="agent.failed",
            phase="run",
            cause=f"sys.exit({error.code!r})" + (f" at {where}" if where else ""),
            next_step="return from process instead of calling sys.exit",
            extra=extra,
        )
    return errors.AgentFailed(
        "the agent failed",
        code="agent.failed",
        phase="run",
        cause=describe(error),
        next_step=f"look at {where} and at the agent's log" if where else "look at the agent's log",
        extra=extra,
    )


def describe(error: BaseException) -> str:
    """`ValueError: message`, one line, bounded."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an author's __str__ may raise anything
        text = "(its message could not be read)"
    line = " ".join(text.split())
    line = f"{type(error).__name__}: {line}" if line else type(error).__name__
    line = line.encode("utf-8", "backslashreplace").decode()
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def author_line(trace: TracebackType | None, source: Path) -> str | None:
    """`agent.py:12` of the innermost frame that is the author's own, or None."""
    found = None
    for frame, line in traceback.walk_tb(trace):
        path = Path(frame.f_code.co_filename)
        if path.is_absolute() and path.is_relative_to(source) and "site-packages" not in path.parts:
            found = f"{path.relative_to(source)}:{line}"
    return found


def short_traceback(error: BaseException, source: Path, *, lines: int = 30) -> list[str]:
    """The last lines of the traceback, beginning at the author's first frame where there is one."""
    trace = error.__traceback__
    first = trace
    while first is not None and not Path(first.tb_frame.f_code.co_filename).is_relative_to(source):
        first = first.tb_next
    text = "".join(traceback.format_exception(type(error), error, first or trace, limit=-20))
    return text.encode("utf-8", "backslashreplace").decode().rstrip("\n").split("\n")[-lines:]
