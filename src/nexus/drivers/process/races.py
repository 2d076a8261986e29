"""Waiting for the first of several things."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")
U = TypeVar("U")


async def first_of(wanted: Awaitable[T], *others: Awaitable[U]) -> T | U:
    """The result of whichever comes first; the rest is cancelled. The earlier one in the list wins a tie."""
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(wait) for wait in (wanted, *others)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        first: T | U = next(task for task in tasks if task.done()).result()
        return first
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
