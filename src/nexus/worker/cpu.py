"""CPU seconds of a run, told only where nothing else runs beside it: in the worker of one session.

The worker's own word; what a session used in all is counted outside its box (`core.sessions.SessionUsage`).
"""

import resource
from collections.abc import Callable


def used() -> float:
    """User and system time of this process and of its children that have ended, in seconds."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


class Meter:
    """Counts runs that do not overlap; of those that do nothing can be told apart."""

    def __init__(self, *, read: Callable[[], float] = used) -> None:
        self._read = read
        self._running = 0
        self._shared = False
        self._at = 0.0

    def begin(self) -> None:
        self._running += 1
        self._shared = self._running > 1
        if not self._shared:
            self._at = self._read()

    def end(self) -> float | None:
        """What the run used since it began, or None when another one ran at the same time."""
        self._running -= 1
        shared = self._shared
        if not self._running:
            self._shared = False
        return None if shared or self._running else max(0.0, self._read() - self._at)
