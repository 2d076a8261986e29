"""A task run again against its recording: the same, or where it first differs. Nothing it asks goes out."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import rig as rigs
import test_asks
import test_recordings as recorded

from nexus.core import errors
from nexus.core.phases import RunPhase
from nexus.ports import run as runs
from nexus.ports import task_store as port
from nexus.stores.postgres import engine as engines
from nexus.stores.postgres import task_ask_store, task_replay_store, task_step_store
from nexus.tasks import asks, replays
from nexus.wire import views

PAY = runs.Question(text="Pay?", choices=[True, False])


@pytest.fixture
async def bench(rig: rigs.Rig, sockets: Path) -> AsyncIterator[recorded.Bench]:
    async with recorded.opened(rig, sockets) as made:
        yield made


@pytest.fixture
async def room(rig: rigs.Rig) -> AsyncIterator[replays.Replays]:
    async def resolve(caller: Any, agent: str, environment: str | None) -> str:
        return environment or "production"

    async with engines.open_engine(rig.url, pool_size=2) as engine:
        yield replays.Replays(
            store=task_replay_store.PostgresReplayStore(engine),
            tasks=rig.store,
            steps=task_step_store.PostgresStepStore(engine),
            resolve_target=resolve,
        )


async def finish(bench: recorded.Bench, claim: port.Claim, output: Any = None, *, phase: RunPhase = RunPhase.COMPLETED) -> None:
    text = json.dumps(output)
    data = json.dumps({"version": "1.0.0"})
    ending = port.Finish(
        task_id=claim.id, fence=claim.fence, phase=phase, output=text if phase is RunPhase.COMPLETED else None,
        error=None if phase is RunPhase.COMPLETED else text,
        event=port.TaskEvent(seq=claim.last_seq + 2, name=f"run.{phase}", data="{}"),
    )  # fmt: skip
    began = port.Append(
        task_id=claim.id, fence=claim.fence, events=(port.TaskEvent(seq=claim.last_seq + 1, name="run.started", data=data),)
    )
    assert await bench.rig.store.write([began, ending]) == [True, True]


async def works() -> Any:
    return "worked"


async def original(bench: recorded.Bench) -> str:
    """A finished task with two model calls, a step and an answered question."""
    await bench.submit()
    async with bench.attempt(lost=False) as first:
        await first.ask("one")
        ask_id = await test_asks.asked(first, PAY)
        await test_asks.park(bench, first.claim, ask_id)
    async with engines.open_engine(bench.rig.url, pool_size=1) as engine:
        people = asks.Asks(
            store=task_ask_store.PostgresAskStore(engine),
            key=b"l" * 32,
            origin="http://host",
            clock=test_asks.clock.SystemClock(),
        )
        await people.answer(rigs.CALLER, bench.task_id, True)
    async with bench.attempt(lost=False) as second:
        await second.ask("one")
        assert await second.recording.ask(PAY) is True
        await second.recording.step("pay", works)
        await second.ask("two")
        await finish(bench, second.claim, {"paid": True})
    assert len(bench.asked) == 2
    return bench.task_id


async def test_the_same_agent_does_the_same_and_asks_nobody(bench: recorded.Bench, room: replays.Replays) -> None:
    task_id = await original(bench)
    view = await room.start(rigs.CALLER, task_id)
    assert (view.replay_of, view.origin, view.task_id != task_id) == (task_id, task_id, True)
    with pytest.raises(errors.Conflict) as early:
        await room.report(rigs.CALLER, view.task_id)
    assert early.value.code == "task.not_finished"
    bench.task_id = view.task_id
    async with bench.attempt(lost=False) as again:
        assert (await again.ask("one")).json() == {"text": "answer 1 to one"}
        assert await again.recording.ask(PAY) is True
        assert await again.recording.step("pay", works) == "worked"
        assert (await again.ask("two")).status_code == 200
        await finish(bench, again.claim, {"paid": True})
    report = await room.report(rigs.CALLER, view.task_id)
    assert (report.same, report.recorded_calls, report.replayed_calls, report.recorded_version) == (True, 4, 4, "1.0.0")
    assert len(bench.asked) == 2, "no call went out"


async def replayed(bench: recorded.Bench, room: replays.Replays, task_id: str, calls: list[Any], output: Any = None) -> Any:
    """The report of a replay that makes these calls: text asks the model, a question a person, a tuple is a step."""
    view = await room.start(rigs.CALLER, task_id)
    bench.task_id = view.task_id
    async with bench.attempt(lost=False) as again:
        for call in calls:
            if isinstance(call, str):
                answer = await again.ask(call)
                assert answer.status_code in (200, 409)
                continue
            with contextlib.suppress(errors.Conflict):
                await (again.recording.step(call[0], works) if isinstance(call, tuple) else again.recording.ask(call))
        await finish(bench, again.claim, output if output is not None else {"paid": True})
    return await room.report(rigs.CALLER, view.task_id)


async def test_the_first_difference_is_shown(bench: recorded.Bench, room: replays.Replays) -> None:
    task_id = await original(bench)

    changed = await replayed(bench, room, task_id, ["one", PAY, ("pay",), "two and more"])
    assert (changed.same, changed.difference.index, changed.difference.kind) == (False, 4, "model")
    assert changed.difference.asked["request"] == {"prompt": "two and more"}
    assert '-    "prompt": "two"' in changed.difference.diff
    assert '+    "prompt": "two and more"' in changed.difference.diff

    step = await replayed(bench, room, task_id, ["one", PAY, ("charge",), "two"])
    assert (step.difference.index, step.difference.recorded["name"], step.difference.asked["name"]) == (3, "pay", "charge")

    question = await replayed(bench, room, task_id, ["one", runs.Question(text="Pay 9?"), ("pay",), "two"])
    assert (question.difference.index, question.difference.asked["question"]) == (2, "Pay 9?")
    assert question.difference.recorded["question"] == "Pay?"

    less = await replayed(bench, room, task_id, ["one", PAY, ("pay",)])
    assert (less.difference.index, less.difference.asked, less.difference.recorded["request"]) == (4, None, {"prompt": "two"})

    end = await replayed(bench, room, task_id, ["one", PAY, ("pay",), "two"], {"paid": False})
    assert (end.difference.kind, end.difference.asked["output"]) == ("end", {"paid": False})
    assert len(bench.asked) == 2, "no call went out"


async def test_a_question_named_anew_is_known_by_its_words(bench: recorded.Bench, room: replays.Replays) -> None:
    task_id = await original(bench)
    named = runs.Question(text=PAY.text, name="interrupt 8f3a")
    assert (await replayed(bench, room, task_id, ["one", named, ("pay",), "two"])).same
    twice = await replayed(bench, room, task_id, ["one", named, runs.Question(text=PAY.text, name="another"), ("pay",), "two"])
    assert (twice.difference.index, twice.difference.kind) == (3, "ask"), "it was answered once"


async def test_a_replay_does_no_harm(bench: recorded.Bench, room: replays.Replays) -> None:
    task_id = await original(bench)
    view = await room.start(rigs.CALLER, task_id)
    bench.task_id = view.task_id
    async with bench.attempt(lost=False) as again:
        await finish(bench, again.claim, {"code": "agent.failed", "cause": "x"}, phase=RunPhase.FAILED)
    shown: views.TaskView = await bench.rig.service.show(rigs.CALLER, view.task_id)
    assert (shown.status, shown.dead, shown.webhook) == ("failed", False, None), "it is no dead letter"
    report = await room.report(rigs.CALLER, view.task_id)
    assert (report.same, report.difference.kind, report.difference.asked["code"]) == (False, "end", "agent.failed")
    with pytest.raises(errors.Conflict) as again_of_it:
        await room.start(rigs.CALLER, view.task_id)
    assert again_of_it.value.code == "replay.of_replay"
    with pytest.raises(errors.Conflict) as none:
        await room.report(rigs.CALLER, task_id)
    assert none.value.code == "replay.none"


async def test_unfinished_and_foreign_tasks_are_not_replayed(bench: recorded.Bench, room: replays.Replays) -> None:
    await bench.submit()
    with pytest.raises(errors.Conflict) as early:
        await room.start(rigs.CALLER, bench.task_id)
    assert early.value.code == "task.not_finished"
    async with bench.attempt(lost=False) as first:
        await finish(bench, first.claim)
    other = rigs.principals.Principal(id="k2", tenant="other", roles=frozenset({rigs.principals.Role.ADMIN}))
    with pytest.raises(errors.NotFound):
        await room.start(other, bench.task_id)
