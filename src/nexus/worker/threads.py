"""Synchronous author code runs here, in threads that carry the run's context variables.

A thread cannot be stopped: when its run is cancelled it is left to end by itself (`run.leftover`), and the session and
the slot it holds are released only then.
"""

import asyncio
import contextvars
from collections.abc import Callable, Generator
from typing import Any

from nexus.worker import runs, thread_pool

_MOST = 64
_pool: thread_pool.ThreadPool | None = None


async def call(run: runs.Run, function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a thread; whatever it raises is raised here, `SystemExit` and `StopIteration` too."""
    begun = _of_this_loop().submit(contextvars.copy_context(), function, arguments)
    try:
        value, error = await begun.ended
    except asyncio.CancelledError:
        if begun.ended.cancelled() and not begun.claim():
            run.leftover = begun.follow()
        raise
    if error is not None:
        if isinstance(error, StopIteration):
            raise RuntimeError("the agent raised StopIteration") from error
        raise error
    return value


def _of_this_loop() -> thread_pool.ThreadPool:
    """A process has one loop at a time; a fork's threads are not its child's, nor is its loop."""
    global _pool
    loop = asyncio.get_running_loop()
    if _pool is None or _pool.loop is not loop:
        _pool = thread_pool.ThreadPool(loop, most=_MOST, name="run")
    return _pool


def drain(run: runs.Run, generator: Generator[Any, Any, Any], take: Callable[[Any], None]) -> Any:
    """Pull a generator to its end and hand on each item; what it returned. Closes it between items when the run stops."""
    try:
        while not run.stopping:
            try:
                item = next(generator)
            except StopIteration as stop:
                return stop.value
            take(item)
    finally:
        generator.close()
    return None
