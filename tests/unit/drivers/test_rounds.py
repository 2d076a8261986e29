"""A round over many things: each once, and everybody else has a turn in between."""

import asyncio
import time

import pytest

from nexus.drivers.process import rounds


@pytest.mark.parametrize("count", [0, 1, 8, 9, 401])
@pytest.mark.parametrize("over_s", [0.0, 0.01])
async def test_each_is_visited_once_and_in_order(count: int, over_s: float) -> None:
    seen: list[int] = []
    await rounds.go_round(range(count), seen.append, over_s=over_s)
    assert seen == list(range(count))


async def test_others_have_a_turn_after_each_slice_of_time() -> None:
    turns = 0
    seen: list[int] = []

    async def wait_for_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def visit(_: int) -> None:
        until = time.perf_counter() + 0.0006  # longer than a slice
        while time.perf_counter() < until:
            pass
        seen.append(turns)

    other = asyncio.create_task(wait_for_turns())
    await rounds.go_round(range(20), visit)
    other.cancel()
    assert seen == sorted(set(seen)), "between two visits somebody else was there"


async def test_what_a_visit_raises_ends_the_round() -> None:
    def visit(number: int) -> None:
        if number == 3:
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await rounds.go_round(range(9), visit)
