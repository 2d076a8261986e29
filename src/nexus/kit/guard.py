"""Background loops that may not end silently: the only place that makes root tasks.

A loop that raises is logged and restarted after a growing pause; a loop that is cancelled ends.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVar

from nexus.kit import backoff

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_PAUSES = backoff.Backoff(first_s=0.2, longest_s=15.0, least_s=0.05)


class Loops:
    """An async context manager that owns named endless loops and cancels them on the way out."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Keep `run()` going until this context ends. `run` is called again if it raises or returns."""
        if name in self._tasks:
            raise ValueError(f"a loop named {name!r} runs already")
        self._tasks[name] = asyncio.create_task(_keep(name, run), name=name)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()


async def _keep(name: str, run: Callable[[], Awaitable[None]]) -> None:
    failures = 0
    while True:
        started = asyncio.get_running_loop().time()
        try:
            await run()
            _LOG.warning("loop %s ended by itself; starting it again", name)
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001 - whatever it was is logged and the loop goes on
            _LOG.exception("loop %s failed; starting it again", name)
        if asyncio.get_running_loop().time() - started > 30:
            failures = 0
        await asyncio.sleep(_PAUSES.pause_s(failures))
        failures += 1


def spawn(coroutine: Awaitable[T], *, name: str, owner: set[asyncio.Task[T]]) -> asyncio.Task[T]:
    """One task with a name, kept alive by `owner` until it is done; its error is logged if nobody asks for it."""
    task: asyncio.Task[T] = asyncio.ensure_future(coroutine)
    task.set_name(name)
    owner.add(task)
    task.add_done_callback(owner.discard)
    task.add_done_callback(_report)
    return task


def _report(task: "asyncio.Task[object]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _LOG.error("task %s failed", task.get_name(), exc_info=error)
