"""Exceptions of the author's code as errors a caller can read: the type, the message and the author's own line.

A client never sees a traceback; the log does.
"""

import errno
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

from nexus.core import errors

_LONGEST = 2000
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STARTERS = ("subprocess.py", "popen_fork.py", "popen_spawn_posix.py", "popen_forkserver.py", "util.py", "pty.py")
NO_LIMITS: Mapping[str, int] = MappingProxyType({})


def run_failed(error: BaseException, source: Path, limits: Mapping[str, int] = NO_LIMITS) -> errors.NexusError:
    """What a run that ended with `error` tells its caller; our own errors pass through as they are.

    `limits` are the instance's, by name (`memory`, `disk` in bytes, `processes`).
    """
    if isinstance(error, errors.NexusError):
        return error
    where = author_line(error.__traceback__, source)
    extra = {"location": where} if where else {}
    if (reached := _limit_reached(error, limits)) is not None:
        reached.extra.update(extra)
        return reached
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


def calls_refused(failure: errors.NexusError, code: str) -> errors.NexusError:
    """A failure behind which a budget or a stop is that refused the run's model calls: it is told as what it is."""
    kind = errors.Forbidden if code == "model.stopped" else errors.Exhausted
    return kind(
        "a budget refused the run's model calls" if kind is errors.Exhausted else "the agent's model calls are stopped",
        code=code,
        phase="run",
        cause=failure.cause,
        next_step="see `nexus models budget list`" if kind is errors.Exhausted else "see `nexus models stops`",
        extra=failure.extra,
    )


def _limit_reached(error: BaseException, limits: Mapping[str, int]) -> errors.Exhausted | None:
    """The error to tell when a limit of the instance is behind this one: which, how much it allows, and how to raise it."""
    if isinstance(error, MemoryError):
        return errors.Exhausted(
            "the run used more memory than the instance has",
            code="run.memory",
            phase="run",
            cause=_allowing(error, limits, "memory"),
            next_step="raise hosting.memory in config.yaml, or deploy with --memory",
        )
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return errors.Exhausted(
            "the run wrote more than the instance may",
            code="run.disk",
            phase="run",
            cause=_allowing(error, limits, "disk"),
            next_step="write less, or raise hosting.disk (work directory) or hosting.memory (/tmp and /dev/shm have half of it)",
        )
    if _is_refused_process(error):
        return errors.Exhausted(
            "the run started more processes or threads than the instance may have",
            code="run.processes",
            phase="run",
            cause=_allowing(error, limits, "processes"),
            next_step="start fewer, or raise hosting.processes in config.yaml, or deploy with --process-limit",
        )
    return None


def _allowing(error: BaseException, limits: Mapping[str, int], name: str) -> str:
    return describe(error) + (f"; hosting.{name} allows {limits[name]}" if name in limits else "")


def _is_refused_process(error: BaseException) -> bool:
    """Sockets answer EAGAIN too, so the call is looked at."""
    if isinstance(error, RuntimeError):
        return str(error) == "can't start new thread"
    if not isinstance(error, OSError) or error.errno != errno.EAGAIN:
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and (Path(frames[-1].filename).name in _STARTERS or "fork" in (frames[-1].line or ""))


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
