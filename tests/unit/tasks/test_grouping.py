"""Group commit: what waits goes out together, one bad item spoils only itself, nobody waits for ever."""

import asyncio
from collections.abc import Sequence

import pytest

from nexus.core import errors
from nexus.kit import guard
from nexus.tasks import grouping


class Store:
    """Commits when its gate is open; remembers the groups; items below zero are refused."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.away = 0

    async def commit(self, items: Sequence[int]) -> list[int]:
        await self.gate.wait()
        if self.away:
            self.away -= 1
            raise errors.Unavailable("away", code="database.unavailable")
        if any(item < 0 for item in items):
            raise errors.Internal("refused", code="database.refused")
        self.groups.append(list(items))
        return [item * 10 for item in items]


async def test_what_comes_during_a_commit_goes_out_with_the_next_in_order() -> None:
    store = Store()
    grouped: grouping.Grouped[int, int] = grouping.Grouped(store.commit, patient=False, largest=5)
    async with guard.Loops() as loops:
        loops.start("grouped", grouped.run)
        store.gate.clear()
        first = asyncio.ensure_future(grouped.put(0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rest = [asyncio.ensure_future(grouped.put(number)) for number in range(1, 8)]
        await asyncio.sleep(0)
        store.gate.set()
        assert await asyncio.gather(first, *rest) == [0, 10, 20, 30, 40, 50, 60, 70]
    assert [item for group in store.groups for item in group] == list(range(8))
    assert len(store.groups) <= 3


async def test_a_bad_item_fails_alone() -> None:
    store = Store()
    grouped: grouping.Grouped[int, int] = grouping.Grouped(store.commit, patient=True)
    async with guard.Loops() as loops:
        loops.start("grouped", grouped.run)
        results = await asyncio.gather(*(grouped.put(number) for number in (1, -1, 2)), return_exceptions=True)
    assert (results[0], results[2]) == (10, 20)
    assert isinstance(results[1], errors.Internal)


async def test_a_store_that_is_away_fails_the_impatient_and_delays_the_patient() -> None:
    store = Store()
    async with guard.Loops() as loops:
        impatient: grouping.Grouped[int, int] = grouping.Grouped(store.commit, patient=False)
        patient: grouping.Grouped[int, int] = grouping.Grouped(store.commit, patient=True)
        loops.start("impatient", impatient.run)
        loops.start("patient", patient.run)
        store.away = 1
        with pytest.raises(errors.Unavailable):
            await impatient.put(1)
        store.away = 2
        assert await patient.put(2) == 20
    assert store.groups == [[2]]


async def test_whoever_waits_when_it_ends_is_told() -> None:
    store = Store()
    store.gate.clear()
    grouped: grouping.Grouped[int, int] = grouping.Grouped(store.commit, patient=True)
    async with guard.Loops() as loops:
        loops.start("grouped", grouped.run)
        waiting = [asyncio.ensure_future(grouped.put(number)) for number in range(3)]
        await asyncio.sleep(0)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [getattr(result, "code", result) for result in results] == ["service.stopping"] * 3
