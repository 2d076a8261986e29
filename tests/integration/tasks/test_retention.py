"""What the event log keeps, for how long and up to which size; and what a reader is told of what it no longer has."""

import json

import psycopg
import pytest
import rig as rigs

from nexus.tasks import retention
from nexus.tasks.settings import TaskSettings


async def _talk(call: rigs.Call) -> None:
    call.begin()
    for number, (name, data) in enumerate(
        [("run.started", {}), ("message.delta", {"text": "a"}), ("message.delta", {"text": "b"}), ("tool.call", {"name": "x"})], 1
    ):
        call.send(name, data, number)
    call.send("progress", {"percent": 50}, 5)
    call.send("run.completed", {"output": "ab", "metadata": {}}, 6)
    call.end()


async def _names(rig: rigs.Rig, task_id: str, after: int = 0) -> list[tuple[int, str]]:
    followed = await rig.service.follow(rigs.CALLER, task_id, after=after)
    return [(event.seq, event.name) async for event in followed if event is not None]


async def test_chatty_events_go_first_and_a_reader_is_told_of_the_gap(rig: rigs.Rig) -> None:
    async with rigs.gateway(rig.socket, _talk), rig.dispatcher():
        old, young = await rig.submit(), await rig.submit()
        for task in (old, young):
            await rig.finished(task.task_id)
    async with await psycopg.AsyncConnection.connect(rig.url, autocommit=True) as connection:
        await connection.execute("UPDATE tasks SET finished_at = finished_at - 7200 WHERE id = %s", [old.task_id])
    keeper = retention.Retention(
        store=rig.store, settings=TaskSettings(keep_chatty_s=3600, sweep_batch=1), now=rigs.clock.SystemClock().time
    )
    assert await keeper.look() == 3
    assert await keeper.look() == 0
    assert await _names(rig, old.task_id) == [
        (1, "run.started"), (3, "events.gap"), (4, "tool.call"), (5, "events.gap"), (6, "run.completed")
    ]  # fmt: skip
    assert await _names(rig, old.task_id, after=3) == [(4, "tool.call"), (5, "events.gap"), (6, "run.completed")]
    assert await _names(rig, old.task_id, after=2) == [
        (3, "events.gap"), (4, "tool.call"), (5, "events.gap"), (6, "run.completed")
    ]  # fmt: skip
    followed = await rig.service.follow(rigs.CALLER, old.task_id, after=1)
    first = await anext(followed)
    assert first is not None
    assert json.loads(first.data) == {"first": 2, "last": 3}
    assert len(await _names(rig, young.task_id)) == 6, "the young one is whole"


async def test_a_log_above_its_bound_keeps_chatty_events_for_less_and_less(rig: rigs.Rig) -> None:
    async with rigs.gateway(rig.socket, _talk), rig.dispatcher():
        task = await rig.submit()
        await rig.finished(task.task_id)
    keeper = retention.Retention(
        store=rig.store, settings=TaskSettings(keep_chatty_s=3.0, most_log_bytes=0), now=rigs.clock.SystemClock().time
    )
    for _ in range(4):
        await keeper.look()
    assert [name for _, name in await _names(rig, task.task_id)].count("message.delta") == 0
    assert (await rig.service.show(rigs.CALLER, task.task_id)).output == "ab"


@pytest.mark.parametrize(
    ("size", "before", "horizon"),
    [(5, 100.0, 100.0), (11, 100.0, 50.0), (11, 1.0, 0.0), (11, 0.0, 0.0), (5, 0.0, 1.0), (5, 1.0, 2.0), (5, 80.0, 100.0)],
)
def test_the_horizon_halves_while_the_log_is_too_large_and_doubles_back(size: int, before: float, horizon: float) -> None:
    assert retention.plan_horizon(100.0, size=size, bound=10, before=before) == horizon
