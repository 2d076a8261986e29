"""Synchronous author code runs here, in threads that carry the run's context variables.

A thread cannot be stopped: when its run is cancelled it is left to end by itself (`run.leftover`), and the session and
the slot it holds are released only then.
"""

import asyncio
import contextvars
from collections.abc import Callable, Generator
from concurrent import futures
from typing import Any

from nexus.worker import runs

_MOST = 64
_POOL = futures.ThreadPoolExecutor(max_workers=_MOST, thread_name_prefix="run")


async def call(run: runs.Run, function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a thread; whatever it raises is raised here, `SystemExit` and `StopIteration` too."""
    context = contextvars.copy_context()
    future = asyncio.get_running_loop().run_in_executor(_POOL, context.run, _caught, function, arguments)
    try:
        value, error = await asyncio.shield(future)
    except asyncio.CancelledError:
        if not future.done():
            run.leftover = future
        raise
    if error is not None:
        if isinstance(error, StopIteration):
            raise RuntimeError("the agent raised StopIteration") from error
        raise error
    return value


def _caught(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    try:
        return function(*arguments), None
    except BaseException as error:  # noqa: BLE001 - some kinds may not travel through a future
        return None, error


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
