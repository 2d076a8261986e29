"""Priorities, delays, time-outs, limits, pauses, batches and dead letters, through a real queue and dispatcher."""

import asyncio
from typing import Any

import pytest
import rig as rigs

from nexus.core import errors, ids
from nexus.ports import task_store as port
from nexus.tasks import settings
from nexus.tasks import submission as planning
from nexus.wire import params

LANE = port.Lane(tenant="default", agent="echo", environment="production")


def submission(**more: Any) -> port.Submission:
    values = {"id": ids.new_id(ids.TASK), "lane": LANE, "principal": "key_1", "body": b'{"input":1,"context":{}}', "digest": "d"}
    return port.Submission(**{**values, **more})


async def put(rig: rigs.Rig, **more: Any) -> port.Task:
    ((task, _),) = await rig.store.submit([submission(**more)])
    return task


async def test_a_higher_priority_starts_first_also_when_it_was_changed_later(rig: rigs.Rig) -> None:
    low, high, raised = (await rig.submit(1), await rig.submit(2, priority=5), await rig.submit(3))
    changed = await rig.service.change(rigs.CALLER, raised.task_id, params.TaskChangeParams(priority=9))
    assert (high.priority, changed.priority) == (5, 9)
    one = settings.TaskSettings(concurrency=1, beat_s=0.1, poll_s=0.2)
    async with rigs.gateway(rig.socket, rigs.completes) as gateway, rig.dispatcher(config=one):
        for task in (low, high, raised):
            await rig.finished(task.task_id)
    assert [call.body["input"] for call in gateway.calls] == [3, 2, 1]
    with pytest.raises(errors.Conflict) as told:
        await rig.service.change(rigs.CALLER, low.task_id, params.TaskChangeParams(priority=1))
    assert told.value.code == "task.finished"


async def test_a_delayed_task_is_not_due_before_its_time(rig: rigs.Rig) -> None:
    late = await rig.submit(1, delay=3600)
    soon = await rig.submit(2, delay="200ms")
    assert late.run_at is not None
    assert late.run_at - late.created_at == pytest.approx(3600)
    assert await rig.service.queue_depth("default", "echo", "production") == 0
    async with rigs.gateway(rig.socket, rigs.completes), rig.dispatcher():
        done = await rig.finished(soon.task_id)
        assert (await rig.service.show(rigs.CALLER, late.task_id)).status == "pending"
    assert done.started_at is not None
    assert done.started_at - done.created_at >= 0.2
    with pytest.raises(errors.Invalid) as told:
        await rig.submit(3, delay=1, run_at="2030-01-01T00:00:00+02:00")
    assert told.value.code == "task.start_twice"


async def test_a_task_that_waits_too_long_fails_and_says_which_time_was_over(rig: rigs.Rig) -> None:
    queue = await rig.submit(1, queue_timeout=0.05)
    total = await rig.submit(2, total_timeout=0.05, webhook="http://127.0.0.1:9/hook")
    await asyncio.sleep(0.06)
    assert (await rig.store.tend()).expired == 2
    first, second = await rig.finished(queue.task_id), await rig.finished(total.task_id)
    assert first.error is not None
    assert second.error is not None
    assert (first.error["code"], second.error["code"]) == ("task.queue_timeout", "task.deadline")
    assert [event.name for event in await rig.events(queue.task_id)] == ["run.failed"]
    assert second.webhook is not None
    assert second.webhook["status"] == "pending"


async def test_a_run_that_outlives_its_own_or_the_total_time_is_stopped(rig: rigs.Rig) -> None:
    async def hangs(call: rigs.Call) -> None:
        call.begin()
        await call.closed.wait()

    async with rigs.gateway(rig.socket, hangs), rig.dispatcher():
        own = await rig.finished((await rig.submit(1, run_timeout=0.1)).task_id)
        total = await rig.finished((await rig.submit(2, total_timeout=0.3)).task_id)
    assert own.error is not None
    assert total.error is not None
    assert (own.error["code"], total.error["code"]) == ("run.timeout", "task.deadline")


async def test_the_retry_policy_decides_which_failures_are_tried_again(rig: rigs.Rig) -> None:
    async def fails(call: rigs.Call) -> None:
        call.begin()
        call.send("run.failed", {"code": "agent.failed", "kind": "agent_failed", "detail": "no"})
        call.end()

    retry = port.Retry(first_s=0.01, longest_s=0.02, kinds=("agent_failed",))
    async with rigs.gateway(rig.socket, fails) as gateway, rig.dispatcher():
        task = await put(rig, retry=retry, max_attempts=3)
        done = await rig.finished(task.id)
    assert (done.status, done.attempt, len(gateway.calls)) == ("failed", 3, 3)
    assert done.error is not None
    assert done.error["code"] == "agent.failed", "the last attempt's own failure is the result"
    assert done.dead


async def test_a_limit_of_an_agent_holds_over_all_dispatchers(rig: rigs.Rig) -> None:
    await rig.store.limit_lane(LANE, 2)
    await rig.store.enlist("o")
    await rig.store.submit([submission() for _ in range(5)])
    claims = await asyncio.gather(*(rig.store.claim("o", limit=9, per_lane=9, paused=()) for _ in range(4)))
    assert sum(len(found) for found in claims) == 2, "as many as the limit, whoever claims at the same moment"
    assert await rig.store.claim("o", limit=9, per_lane=9, paused=()) == []
    await rig.store.limit_lane(LANE, None)
    assert len(await rig.store.claim("o", limit=9, per_lane=9, paused=())) == 3


async def test_tenants_share_the_slots_whatever_the_number_of_their_agents(rig: rigs.Rig) -> None:
    await rig.store.enlist("o")
    for agent in range(8):
        lane = port.Lane(tenant="many", agent=f"a{agent}", environment="production")
        await rig.store.submit([submission(lane=lane) for _ in range(4)])
    await rig.store.submit([submission(lane=port.Lane(tenant="one", agent="a", environment="production")) for _ in range(9)])
    claims = await rig.store.claim("o", limit=8, per_lane=50, paused=())
    assert sum(claim.lane.tenant == "one" for claim in claims) == 4
    more = await rig.store.claim("o", limit=50, per_lane=50, per_tenant=5, paused=())
    assert sum(claim.lane.tenant == "one" for claim in [*claims, *more]) == 5


async def test_a_paused_task_rests_and_goes_on_when_it_is_resumed(rig: rigs.Rig) -> None:
    begun = asyncio.Event()

    async def hangs_once(call: rigs.Call) -> None:
        if call.attempt == 1:
            call.begin()
            begun.set()
            await call.closed.wait()
        else:
            call.complete("second")

    queued = await rig.submit(1, delay=3600)
    assert (await rig.service.pause(rigs.CALLER, queued.task_id)).status == "waiting"
    async with rigs.gateway(rig.socket, hangs_once) as gateway, rig.dispatcher():
        task = await rig.submit(2)
        async with asyncio.timeout(rigs.PATIENCE_S):
            await begun.wait()
            await rig.service.pause(rigs.CALLER, task.task_id)
            await gateway.calls[0].closed.wait()
            while (await rig.service.show(rigs.CALLER, task.task_id)).status != "waiting":
                await asyncio.sleep(0.01)
        assert (await rig.service.resume(rigs.CALLER, task.task_id)).paused is False
        done = await rig.finished(task.task_id)
    assert (done.output, done.attempt) == ("second", 2)
    assert (await rig.service.resume(rigs.CALLER, queued.task_id)).status == "pending"


async def test_a_paused_task_can_be_cancelled(rig: rigs.Rig) -> None:
    task = await rig.submit(1)
    await rig.service.pause(rigs.CALLER, task.task_id)
    assert (await rig.service.cancel(rigs.CALLER, task.task_id)).status == "cancelled"


async def test_a_batch_is_accepted_whole_in_order_and_once(rig: rigs.Rig) -> None:
    batch = params.BatchParams.model_validate({"tasks": [{"input": number} for number in range(3000)]})
    made = await rig.service.submit_batch(rigs.CALLER, "echo", batch, idempotency_key="b")
    again = await rig.service.submit_batch(rigs.CALLER, "echo", batch, idempotency_key="b")
    assert [view.task_id for view in made] == [view.task_id for view in again]
    assert len({view.task_id for view in made}) == 3000
    wrong = params.BatchParams.model_validate({"tasks": [{"input": 1}, {"input": 2, "session_id": "a b"}]})
    with pytest.raises(errors.Invalid) as told:
        await rig.service.submit_batch(rigs.CALLER, "other", wrong)
    assert told.value.message.startswith("task 1 of the batch")
    assert await rig.service.queue_depth("default", "other", "production") == 0


async def test_a_dead_letter_is_listed_requeued_once_and_purged(rig: rigs.Rig) -> None:
    async def fails_first(call: rigs.Call) -> None:
        if len(gateway.calls) <= 2:
            call.answer(400, {"code": "body.too_deep", "kind": "invalid", "detail": "x", "status": 400})
        else:
            call.complete(call.body["input"])

    async with rigs.gateway(rig.socket, fails_first) as gateway, rig.dispatcher():
        dead = [await rig.finished((await rig.submit(number)).task_id) for number in (7, 8)]
        page = await rig.service.list(rigs.CALLER, dead=True)
        assert {view.task_id for view in page.items} == {view.task_id for view in dead}
        named = params.DeadLettersParams(task_ids=[dead[0].task_id])
        first, second = await rig.service.requeue(rigs.CALLER, named), await rig.service.requeue(rigs.CALLER, named)
        assert [view.task_id for view in first.tasks] == [view.task_id for view in second.tasks]
        done = await rig.finished(first.tasks[0].task_id)
    assert (done.output, done.origin) == (7, dead[0].task_id)
    assert (await rig.service.show(rigs.CALLER, dead[0].task_id)).status == "failed", "what has ended stays as it ended"
    assert (await rig.service.purge(rigs.CALLER, params.DeadLettersParams(agent="echo"))).deleted == 1
    assert (await rig.service.list(rigs.CALLER, dead=True)).items == []
    with pytest.raises(errors.NotFound):
        await rig.service.show(rigs.CALLER, dead[1].task_id)


async def test_what_ended_long_ago_is_deleted_unless_its_webhook_is_owed(rig: rigs.Rig) -> None:
    async with rigs.gateway(rig.socket, rigs.completes), rig.dispatcher():
        plain = await rig.finished((await rig.submit(1)).task_id)
        owed = await rig.finished((await rig.submit(2, webhook="http://127.0.0.1:9/hook")).task_id)
    assert await rig.store.sweep(keep_completed_s=3600, keep_failed_s=3600, limit=10) == 0
    assert await rig.store.sweep(keep_completed_s=-1, keep_failed_s=3600, limit=10) == 1
    assert (await rig.service.show(rigs.CALLER, owed.task_id)).status == "completed"
    assert await rig.store.fetch("default", plain.task_id) is None


async def test_a_full_queue_says_when_there_will_be_room(rig: rigs.Rig) -> None:
    for _ in range(3):
        await put(rig)
    with pytest.raises(errors.Exhausted) as told:
        await planning.settle_depth(planning.Depths(rig.store), LANE, most=100, most_of_lane=3)
    assert (told.value.code, told.value.retry_after_s) == ("queue.full", 60.0)
    assert planning.plan_retry_after(10, ended=60) == 10
    assert planning.plan_retry_after(1, ended=6000) == 1
    assert planning.plan_retry_after(10**6, ended=1) == 3600


async def test_waiting_ends_with_the_task(rig: rigs.Rig) -> None:
    async with rigs.gateway(rig.socket, rigs.completes), rig.dispatcher():
        task = await rig.submit(5)
        done = await rig.service.wait(rigs.CALLER, task.task_id, seconds=rigs.PATIENCE_S)
    assert (done.status, done.output) == ("completed", 5)
    later = await rig.submit(6)
    assert (await rig.service.wait(rigs.CALLER, later.task_id, seconds=0.01)).status == "pending"
