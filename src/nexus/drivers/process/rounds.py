"""A look at many things that lets everything else go on: a few at a time, spread over the time that one round may take.

What is done for each thing is ordinary code without waiting; between two things the event loop gets its turn as soon as a slice
of time is used up. So the longest that anything waits for a round depends on the dearest visit, never on how many there are.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import TypeVar

_SLICE_S = 0.0005
_FEW, _MOST_STEPS = 16, 20

T = TypeVar("T")


async def go_round(things: Sequence[T], visit: Callable[[T], None], *, over_s: float = 0.0) -> None:
    """Visit each of them, evenly over so many seconds; as fast as others allow when that is 0."""
    began = asyncio.get_running_loop().time()
    steps = min(_MOST_STEPS, math.ceil(len(things) / _FEW)) if over_s else 1
    share = math.ceil(len(things) / max(1, steps))
    for step in range(steps):
        async for thing in in_slices(things[step * share : (step + 1) * share]):
            visit(thing)
        if over_s:
            await asyncio.sleep(began + over_s * (step + 1) / steps - asyncio.get_running_loop().time())


async def in_slices(things: Iterable[T], *, slice_s: float = _SLICE_S) -> AsyncGenerator[T, None]:
    """Each of them; whoever else is waiting for the event loop has its turn after each slice of time."""
    until = time.perf_counter() + slice_s
    for thing in things:
        yield thing
        if time.perf_counter() >= until:
            await asyncio.sleep(0)
            until = time.perf_counter() + slice_s
