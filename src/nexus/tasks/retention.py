"""How long the event log keeps what: chatty events of a finished run go long before the run does, sooner when the log is large.

What remains tells how the run went; a reader that comes to a gap is told so (`tail`).
"""

import asyncio
import logging
from collections.abc import Callable

from nexus.core import errors
from nexus.ports import task_store
from nexus.tasks.settings import TaskSettings

_LOG = logging.getLogger(__name__)


def plan_horizon(keep_s: float, *, size: int, bound: int, before: float) -> float:
    """For how long chatty events are kept after a run's end: `keep_s`, halved at each look while the log is above its bound."""
    if size <= bound:
        return min(keep_s, before * 2 if before else 1.0)
    return before / 2 if before > 1.0 else 0.0


class Retention:
    """`run` is a loop of the caller's. `now` is the store's wall clock in seconds since the epoch, as far as it matters here."""

    def __init__(self, *, store: task_store.TaskStore, settings: TaskSettings, now: Callable[[], float]) -> None:
        self._store = store
        self._settings = settings
        self._now = now
        self._horizon = settings.keep_chatty_s
        self._thinned_to = 0.0

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except errors.Unavailable as error:
                _LOG.warning("the event log cannot be looked after: %s", error.cause or error)
            await asyncio.sleep(self._settings.sweep_s)

    async def look(self) -> int:
        """Once. How many events went."""
        settings, gone = self._settings, 0
        size = await self._store.log_bytes()
        self._horizon = plan_horizon(settings.keep_chatty_s, size=size, bound=settings.most_log_bytes, before=self._horizon)
        if size > settings.most_log_bytes:
            _LOG.warning("the event log has %d bytes; chatty events are kept for %.0f s only", size, self._horizon)
        until = self._now() - self._horizon
        self._thinned_to = min(self._thinned_to, until)  # a clock that was set back
        while self._thinned_to < until:
            count, reached = await self._store.thin(after=self._thinned_to, until=until, limit=settings.sweep_batch)
            gone += count
            self._thinned_to = until if reached is None else reached
        return gone
