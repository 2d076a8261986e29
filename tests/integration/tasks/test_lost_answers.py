"""The store did what it was asked and its answer never came: nothing is stored twice, no task stranded or taken for lost."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import rig as rigs

from nexus.core import errors
from nexus.ports import task_store as port
from nexus.tasks import intake


class Deaf:
    """The real store; the first answer of `verb` that counts (by `matters`) is lost after its commit."""

    def __init__(self, store: Any, verb: str, matters: Callable[[Any], bool]) -> None:
        self._store, self._verb, self._matters, self.lost = store, verb, matters, 0

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._store, name)
        if name != self._verb:
            return verb

        async def deaf(*arguments: Any, **named: Any) -> Any:
            answer = await verb(*arguments, **named)
            if not self.lost and self._matters(answer):
                self.lost += 1
                raise errors.Unavailable("the answer was lost", code="database.unavailable")
            return answer

        return deaf


def _entry(**more: Any) -> port.Submission:
    lane = port.Lane(tenant="default", agent="echo", environment="production")
    body = b'{"input": 7, "context": {}}'
    return port.Submission(id="task_01arz3ndektsv4rrffq69g5fav", lane=lane, principal="key_1", body=body, digest="d", **more)


async def test_events_whose_answer_was_lost_are_stored_once_and_the_run_goes_on(rig: rigs.Rig) -> None:
    release = asyncio.Event()

    async def script(call: rigs.Call) -> None:
        call.begin()
        call.send("run.started", {})
        await release.wait()
        call.send("run.completed", {"output": "well", "metadata": {}}, 2)
        call.end()

    rig.store = Deaf(rig.store, "write", lambda answer: True)  # type: ignore[assignment]
    async with rigs.gateway(rig.socket, script) as gateway, rig.dispatcher():
        task = await rig.submit()
        async with asyncio.timeout(rigs.PATIENCE_S):
            while not await rig.events(task.task_id) or not rig.store.lost:  # type: ignore[attr-defined]
                await asyncio.sleep(0.02)
        release.set()
        done = await rig.finished(task.task_id)
    assert (done.status, done.output, done.attempt, len(gateway.calls)) == ("completed", "well", 1, 1)
    assert [(event.seq, event.name) for event in await rig.events(task.task_id)] == [(1, "run.started"), (2, "run.completed")]


async def test_a_claim_whose_answer_was_lost_is_put_back(rig: rigs.Rig) -> None:
    rig.store = Deaf(rig.store, "claim", bool)  # type: ignore[assignment]
    async with rigs.gateway(rig.socket, rigs.completes), rig.dispatcher():
        done = await rig.finished((await rig.submit("x")).task_id)
    assert (done.status, done.output, done.attempt) == ("completed", "x", 2), "the attempt nobody began is counted all the same"


async def test_a_task_that_was_stored_as_started_with_its_answer_lost_is_put_back(rig: rigs.Rig) -> None:
    deaf = Deaf(rig.store, "submit", bool)
    async with rigs.gateway(rig.socket, rigs.completes), rig.dispatcher() as runner:
        inlet = intake.Intake(store=deaf, submitted=runner.wake, runner=runner)  # type: ignore[arg-type]
        entry = _entry()
        async with asyncio.timeout(rigs.PATIENCE_S):
            while not runner.reserve([entry]):
                await asyncio.sleep(0.02)
        runner.start({entry.id}, [])
        with contextlib.suppress(errors.Unavailable):
            await inlet.store([entry])
        assert deaf.lost == 1
        done = await rig.finished(entry.id)
    assert (done.status, done.output) == ("completed", 7)


async def test_a_delay_is_not_lengthened_by_a_clock_that_is_set_back(rig: rigs.Rig) -> None:
    delayed, planned = await rig.submit(delay=3600), await rig.submit(run_at="2100-01-01T00:00:00Z")
    async with await psycopg.AsyncConnection.connect(rig.url, autocommit=True) as connection:
        await connection.execute("UPDATE tasks SET deferred_at = deferred_at + 86400, available_at = available_at + 86400")
    assert (await rig.store.tend()).due == 1
    assert (await rig.service.show(rigs.CALLER, delayed.task_id)).run_at is None
    assert (await rig.service.show(rigs.CALLER, planned.task_id)).run_at is not None


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_delayed_task_starts_at_its_time(rig: rigs.Rig, elsewhere: bool) -> None:
    """By a timer to the next task's time, wherever it was accepted: the loop that looks after the queue would come too late."""
    patient = rigs.settings.TaskSettings(beat_s=0.1, poll_s=10 * rigs.PATIENCE_S)
    arrived: list[float] = []

    async def script(call: rigs.Call) -> None:
        arrived.append(asyncio.get_running_loop().time())
        call.complete()

    async with rigs.gateway(rig.socket, script), rig.dispatcher(config=patient) as runner:
        mine = None if elsewhere else runner
        inlet = intake.Intake(store=rig.store, submitted=runner.wake, runner=mine)
        await rig.finished((await rig.submit()).task_id)  # so that the queue has been looked after already
        began = asyncio.get_running_loop().time()
        await inlet.store([_entry(delay_s=0.3)])
        await rig.finished(_entry().id)
    assert arrived[1] - began >= 0.3 - 0.01
