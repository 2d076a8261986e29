"""Tasks through a real queue, a real dispatcher and a gateway on a real socket that behaves as each test says."""

import asyncio
import json

import rig as rigs

from nexus.core.phases import RunPhase
from nexus.ports import task_store as port
from nexus.tasks import settings


async def test_a_task_runs_and_its_events_progress_and_result_are_kept(rig: rigs.Rig) -> None:
    async def works(call: rigs.Call) -> None:
        call.begin()
        call.send("run.started", {})
        call.send("progress", {"percent": 45, "message": "half\u2028way"}, 2)
        call.send("message.delta", {"text": "Grüße"}, 3)
        call.send("run.completed", {"output": {"a": "\ud800"}, "metadata": {"tokens_used": 9}}, 4)
        call.end()

    async with rigs.gateway(rig.socket, works) as gateway, rig.dispatcher():
        task = await rig.submit("hello")
        assert (task.status, task.task_id[:5]) == ("pending", "task_")
        done = await rig.finished(task.task_id)
    assert (done.status, done.output, done.metadata, done.attempt) == ("completed", {"a": "\ud800"}, {"tokens_used": 9}, 1)
    assert (done.progress, done.message) == (100, "half\u2028way")
    events = await rig.events(task.task_id)
    assert [(event.seq, event.name) for event in events] == [
        (1, "run.started"), (2, "progress"), (3, "message.delta"), (4, "run.completed"),
    ]  # fmt: skip
    assert json.loads(events[2].data) == {"text": "Grüße"}
    (call,) = gateway.calls
    assert call.body == {"input": "hello", "context": {}}
    expected = {
        "nexus-tenant": "default", "nexus-environment": "production", "nexus-run-id": task.task_id, "nexus-attempt": "1",
        "nexus-principal": "key_1", "authorization": "Bearer nxs_test", "accept": "text/event-stream",
    }  # fmt: skip
    assert {name: call.fields[name] for name in expected} == expected
    assert call.fields["nexus-session-id"] == task.session_id


async def test_a_run_that_is_cut_off_is_tried_again_in_the_same_session(rig: rigs.Rig) -> None:
    async def dies_once(call: rigs.Call) -> None:
        if call.attempt == 1:
            call.begin()
            call.send("run.started", {})
            return
        call.complete("second")

    async with rigs.gateway(rig.socket, dies_once) as gateway, rig.dispatcher():
        task = await rig.submit()
        done = await rig.finished(task.task_id)
    assert (done.status, done.output, done.attempt) == ("completed", "second", 2)
    names = [event.name for event in await rig.events(task.task_id)]
    assert names == ["run.started", "run.retried", "run.started", "run.completed"]
    assert len({call.fields["nexus-session-id"] for call in gateway.calls}) == 1


async def test_attempts_end_with_the_last_loss_as_the_cause(rig: rigs.Rig) -> None:
    async def dies(call: rigs.Call) -> None:
        call.begin()
        call.send("run.started", {})

    async with rigs.gateway(rig.socket, dies) as gateway, rig.dispatcher():
        task = await rig.submit()
        done = await rig.finished(task.task_id)
    assert (done.status, done.attempt, len(gateway.calls)) == ("failed", 3, 3)
    assert done.error is not None
    assert done.error["code"] == "task.attempts_exhausted"
    assert "ended before" in done.error["cause"] or "upstream.failed" in done.error["cause"]


async def test_an_agent_that_fails_is_not_asked_again(rig: rigs.Rig) -> None:
    async def fails(call: rigs.Call) -> None:
        call.begin()
        call.send("run.failed", {"code": "agent.failed", "kind": "agent_failed", "detail": "no", "cause": "ValueError: x"})
        call.end()

    async with rigs.gateway(rig.socket, fails) as gateway, rig.dispatcher():
        done = await rig.finished((await rig.submit()).task_id)
    assert (done.status, len(gateway.calls)) == ("failed", 1)
    assert done.error is not None
    assert done.error["cause"] == "ValueError: x"


async def test_an_answer_that_is_a_problem_or_plain_json_is_understood(rig: rigs.Rig) -> None:
    async def answers(call: rigs.Call) -> None:
        if call.body["input"] == "bad":
            call.answer(400, {"code": "body.too_deep", "kind": "invalid", "detail": "too deep", "status": 400})
        else:
            call.answer(200, {"output": 7, "metadata": {}})

    async with rigs.gateway(rig.socket, answers), rig.dispatcher():
        bad = await rig.finished((await rig.submit("bad")).task_id)
        good = await rig.finished((await rig.submit("good")).task_id)
    assert bad.error is not None
    assert (bad.status, bad.error["code"], good.status, good.output) == ("failed", "body.too_deep", "completed", 7)


async def test_tasks_of_a_stopped_agent_wait_without_using_up_attempts(rig: rigs.Rig) -> None:
    refusals = 0

    async def starts_late(call: rigs.Call) -> None:
        nonlocal refusals
        refusals += 1
        if refusals <= 5:
            call.answer(503, {"code": "deployment.not_ready", "kind": "unavailable", "detail": "no instance is ready"})
        else:
            call.complete()

    async with rigs.gateway(rig.socket, starts_late), rig.dispatcher():
        task = await rig.submit()
        done = await rig.finished(task.task_id)
    assert (done.status, done.attempt) == ("completed", 1)
    assert [event.name for event in await rig.events(task.task_id)] == ["run.started", "run.completed"]


async def test_tasks_wait_for_a_gateway_that_is_away(rig: rigs.Rig) -> None:
    async with rig.dispatcher():
        task = await rig.submit()
        async with asyncio.timeout(rigs.PATIENCE_S):
            while not (await rig.service.show(rigs.CALLER, task.task_id)).message:
                await asyncio.sleep(0.02)
        async with rigs.gateway(rig.socket, rigs.completes):
            done = await rig.finished(task.task_id)
    assert (done.status, done.attempt) == ("completed", 1)


async def test_a_lane_that_cannot_run_does_not_hold_up_another(rig: rigs.Rig) -> None:
    async def one_is_away(call: rigs.Call) -> None:
        if call.agent == "away":
            call.answer(503, {"code": "deployment.not_ready", "kind": "unavailable", "detail": "none"}, "Retry-After: 60\r\n")
        else:
            call.complete()

    config = settings.TaskSettings(concurrency=2, beat_s=0.1, poll_s=0.2)
    async with rigs.gateway(rig.socket, one_is_away) as gateway:
        away = [await rig.submit(agent="away") for _ in range(10)]
        async with rig.dispatcher(config=config):
            for _ in range(5):
                assert (await rig.finished((await rig.submit()).task_id)).status == "completed"
    assert (await rig.service.show(rigs.CALLER, away[-1].task_id)).status == "pending"
    assert len([call for call in gateway.calls if call.agent == "away"]) <= 4


async def test_cancelling_a_running_task_closes_its_connection(rig: rigs.Rig) -> None:
    begun = asyncio.Event()

    async def hangs(call: rigs.Call) -> None:
        call.begin()
        call.send("run.started", {})
        begun.set()
        await call.closed.wait()

    async with rigs.gateway(rig.socket, hangs) as gateway, rig.dispatcher():
        task = await rig.submit()
        async with asyncio.timeout(rigs.PATIENCE_S):
            await begun.wait()
            for _ in range(2):
                assert (await rig.service.cancel(rigs.CALLER, task.task_id)).task_id == task.task_id
            done = await rig.finished(task.task_id)
            await gateway.calls[0].closed.wait()
    assert done.status == "cancelled"
    assert (await rig.service.cancel(rigs.CALLER, task.task_id)).status == "cancelled"
    assert (await rig.events(task.task_id))[-1].name == "run.cancelled"


async def test_a_cancellation_that_nobody_heard_is_found_at_the_next_beat(rig: rigs.Rig) -> None:
    begun = asyncio.Event()

    async def hangs(call: rigs.Call) -> None:
        call.begin()
        begun.set()
        await call.closed.wait()

    async with rigs.gateway(rig.socket, hangs), rig.dispatcher(listen=False):
        task = await rig.submit()
        await asyncio.wait_for(begun.wait(), rigs.PATIENCE_S)
        await rig.service.cancel(rigs.CALLER, task.task_id)
        assert (await rig.finished(task.task_id)).status == "cancelled"


async def test_dispatchers_share_the_work_and_never_run_a_task_twice_at_once(rig: rigs.Rig) -> None:
    async with rigs.gateway(rig.socket, rigs.completes) as gateway:
        tasks = [await rig.submit(number) for number in range(60)]
        async with rig.dispatcher("o1"), rig.dispatcher("o2"):
            done = [await rig.finished(task.task_id) for task in tasks]
    assert [view.output for view in done] == list(range(60))
    assert {view.attempt for view in done} == {1}
    assert set(gateway.most_at_once.values()) == {1}
    assert len(gateway.calls) == 60


async def test_a_stopping_dispatcher_hands_its_runs_back_at_once(rig: rigs.Rig) -> None:
    begun = asyncio.Event()

    async def hangs_once(call: rigs.Call) -> None:
        if call.attempt == 1:
            call.begin()
            begun.set()
            await call.closed.wait()
        else:
            call.complete()

    async with rigs.gateway(rig.socket, hangs_once):
        async with rig.dispatcher("old"):
            task = await rig.submit()
            await asyncio.wait_for(begun.wait(), rigs.PATIENCE_S)
        left = await rig.service.show(rigs.CALLER, task.task_id)
        assert left.status == "pending"
        async with rig.dispatcher("new"):
            done = await rig.finished(task.task_id)
    assert (done.status, done.attempt) == ("completed", 2)


async def test_a_dead_dispatchers_task_is_taken_over_and_it_cannot_write_any_more(rig: rigs.Rig) -> None:
    """The dead one claimed and never beat again; its late result must not count."""
    task = await rig.submit()
    await rig.store.enlist("dead")
    (stale,) = await rig.store.claim("dead", limit=1, per_lane=9, paused=())
    async with rigs.gateway(rig.socket, rigs.completes), rig.dispatcher("alive"):
        done = await rig.finished(task.task_id)
    assert (done.status, done.attempt) == ("completed", 2)
    late = port.Finish(
        task_id=stale.id, fence=stale.fence, phase=RunPhase.FAILED, event=port.TaskEvent(seq=99, name="run.failed", data="{}")
    )
    assert list(await rig.store.write([late])) == [False]
    assert (await rig.service.show(rigs.CALLER, task.task_id)).status == "completed"


async def test_a_dispatcher_that_was_taken_for_dead_lets_go_and_lives_on(rig: rigs.Rig) -> None:
    first, second = asyncio.Event(), asyncio.Event()

    async def hangs_once(call: rigs.Call) -> None:
        if call.attempt == 1:
            call.begin()
            first.set()
            await call.closed.wait()
            second.set()
        else:
            call.complete("again")

    async with rigs.gateway(rig.socket, hangs_once), rig.dispatcher("slow"):
        task = await rig.submit()
        async with asyncio.timeout(rigs.PATIENCE_S):
            await first.wait()
            while not await rig.store.bury("slow", beats=(await rig.store.owners())["slow"][0]):
                await asyncio.sleep(0.01)
            await second.wait()
            done = await rig.finished(task.task_id)
    assert (done.output, done.attempt) == ("again", 2)
