"""Looks after the queue: what waited for its time starts, what waited too long ends, what is old goes.

Every dispatcher does it; none is the leader. Between two looks it sleeps until the next task's time, as far as it knows it.
"""

import asyncio
import logging
from collections.abc import Callable

from nexus.core import errors
from nexus.kit import clock as clocks
from nexus.ports import task_store
from nexus.tasks.settings import TaskSettings

_LOG = logging.getLogger(__name__)
_SOONEST_S = 0.001


class Tender:
    """`tend` and `sweep` are loops of the caller's. `wake` is called when tasks became due."""

    def __init__(
        self, *, store: task_store.TaskStore, clock: clocks.Clock, settings: TaskSettings, wake: Callable[[], None]
    ) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._wake = wake
        self._next_at = float("inf")
        self._sooner = asyncio.Event()

    def expect(self, delay_s: float) -> None:
        """A task was stored that starts in so many seconds."""
        at = self._clock.monotonic() + delay_s
        if at < self._next_at:
            self._next_at = at
            self._sooner.set()

    async def tend(self) -> None:
        while True:
            await self._rest(await self._look())

    async def _look(self) -> float:
        """Look after the queue once; how many seconds to rest."""
        self._next_at = float("inf")
        self._sooner.clear()
        try:
            tended = await self._store.tend()
        except errors.Unavailable as error:
            _LOG.warning("the queue cannot be looked after: %s", error.cause or error)
            return self._settings.poll_s
        if tended.due:
            self._wake()
        if tended.next_s is not None:
            self.expect(tended.next_s)
        return self._settings.poll_s

    async def _rest(self, seconds: float) -> None:
        """Until the next task's time, `seconds` at most; a sooner one that is announced meanwhile shortens it."""
        until = self._clock.monotonic() + seconds
        while (left := min(until, self._next_at) - self._clock.monotonic()) > 0:
            self._sooner.clear()
            try:
                async with asyncio.timeout(max(left, _SOONEST_S)):
                    await self._sooner.wait()
            except TimeoutError:
                return

    async def sweep(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sweep_s)
            try:
                gone = self._settings.sweep_batch
                while gone >= self._settings.sweep_batch:
                    gone = await self._store.sweep(
                        keep_completed_s=self._settings.keep_completed_s,
                        keep_failed_s=self._settings.keep_failed_s,
                        limit=self._settings.sweep_batch,
                    )
            except errors.Unavailable as error:
                _LOG.warning("old tasks cannot be deleted: %s", error.cause or error)
