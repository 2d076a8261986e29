"""Submitting, listing, following and cancelling through the service, for one tenant and against another."""

import asyncio

import pytest
import rig as rigs

from nexus.core import errors, principals
from nexus.kit import egress
from nexus.ports import task_store as port
from nexus.tasks import service, settings, tail
from nexus.wire import params

STRANGER = principals.Principal(id="key_9", tenant="other", roles=frozenset({principals.Role.DEVELOPER}))


def narrowed(**fields: object) -> principals.Principal:
    base = {"id": "key_2", "tenant": "default", "roles": frozenset({principals.Role.RUNNER})}
    return principals.Principal(**{**base, **fields})  # type: ignore[arg-type]


async def test_the_same_key_gives_the_same_task_and_another_request_is_a_conflict(rig: rigs.Rig) -> None:
    first = await rig.submit("a", key="k1")
    again = await rig.submit("a", key="k1")
    assert again.task_id == first.task_id
    for value, agent in (("b", "echo"), ("a", "other")):
        with pytest.raises(errors.Conflict) as caught:
            await rig.submit(value, agent=agent, key="k1")
        assert caught.value.code == "idempotency.key_reused"
    theirs = await rig.service.submit(STRANGER, "echo", params.SubmitParams(input="b"), idempotency_key="k1")
    assert theirs.task_id != first.task_id


async def test_simultaneous_submissions_with_one_key_make_one_task(rig: rigs.Rig) -> None:
    views = await asyncio.gather(*(rig.submit("a", key="once") for _ in range(20)))
    assert len({view.task_id for view in views}) == 1
    assert (await rig.service.queue_depths())[port.Lane(tenant="default", agent="echo", environment="production")] >= 1


@pytest.mark.parametrize("key", ["", "a b", "ü", "x" * 256, "a\nb"])
async def test_an_unusable_idempotency_key_is_refused(rig: rigs.Rig, key: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        await rig.submit(key=key)
    assert caught.value.code == "idempotency.invalid_key"


async def test_an_unusable_session_or_input_is_refused(rig: rigs.Rig) -> None:
    with pytest.raises(errors.Invalid) as caught:
        await rig.submit(session_id="a/b")
    assert caught.value.code == "session.invalid_id"
    with pytest.raises(errors.Invalid) as caught:
        await rig.submit(float("nan"))
    assert caught.value.code == "body.invalid_json"
    with pytest.raises(errors.Invalid) as caught:
        await rig.submit("x" * (17 * 1024 * 1024))
    assert caught.value.code == "body.too_large"


async def test_hostile_text_survives_the_round_trip(rig: rigs.Rig) -> None:
    value = {"a": "\0\ud800'; DROP TABLE tasks; --", "b": [None, True, 1e300]}
    async with rigs.gateway(rig.socket, rigs.completes), rig.dispatcher():
        assert (await rig.finished((await rig.submit(value)).task_id)).output == value


async def test_another_tenants_task_looks_like_a_missing_one(rig: rigs.Rig) -> None:
    task = await rig.submit()
    texts = []
    for caller, task_id in ((STRANGER, task.task_id), (rigs.CALLER, "task_" + "0" * 26), (rigs.CALLER, "nonsense\0")):
        for verb in (rig.service.show, rig.service.cancel, rig.service.follow):
            with pytest.raises(errors.NotFound) as caught:
                await verb(caller, task_id)
            texts.append(caught.value.message.replace(repr(task_id), "ID"))
    assert len(set(texts)) == 1
    assert (await rig.service.list(STRANGER)).items == []


async def test_a_key_bound_to_agents_or_an_environment_sees_no_others(rig: rigs.Rig) -> None:
    echo, other = await rig.submit(), await rig.submit(agent="other")
    only_echo, only_staging = narrowed(agents=frozenset({"echo"})), narrowed(environment="staging")
    assert [view.task_id for view in (await rig.service.list(only_echo)).items] == [echo.task_id]
    with pytest.raises(errors.NotFound):
        await rig.service.show(only_echo, other.task_id)
    assert (await rig.service.list(only_staging)).items == []
    with pytest.raises(errors.Forbidden):
        await rig.service.submit(only_echo, "other", params.SubmitParams())
    viewer = narrowed(roles=frozenset({principals.Role.VIEWER}))
    with pytest.raises(errors.Forbidden):
        await rig.service.cancel(viewer, echo.task_id)


async def test_pages_lead_to_the_end(rig: rigs.Rig) -> None:
    made = [(await rig.submit(number)).task_id for number in range(5)]
    seen: list[str] = []
    cursor = None
    while True:
        page = await rig.service.list(rigs.CALLER, limit=2, cursor=cursor, status="pending")
        seen += [view.task_id for view in page.items]
        if (cursor := page.next) is None:
            break
    assert seen == made[::-1]
    for bad in ("x", "-1", "9" * 30, "²"):
        with pytest.raises(errors.Invalid):
            await rig.service.list(rigs.CALLER, cursor=bad)
    with pytest.raises(errors.Invalid):
        await rig.service.list(rigs.CALLER, status="done")


async def test_followers_see_every_event_once_live_and_from_any_position(rig: rigs.Rig) -> None:
    step = asyncio.Event()

    async def in_steps(call: rigs.Call) -> None:
        call.begin()
        for number in range(1, 4):
            call.send("message.delta", {"text": str(number)}, number)
        await call.writer.drain()
        await step.wait()
        call.send("run.completed", {"output": 1, "metadata": {}}, 4)
        call.end()

    async with rigs.gateway(rig.socket, in_steps), rig.dispatcher():
        task = await rig.submit()
        live = await rig.service.follow(rigs.CALLER, task.task_id)
        seen = []
        async with asyncio.timeout(rigs.PATIENCE_S):
            async for event in live:
                if event is not None:
                    seen.append(event.seq)
                    if event.seq == 3:
                        step.set()
        assert seen == [1, 2, 3, 4]
        resumed = await rig.service.follow(rigs.CALLER, task.task_id, after=2)
        assert [event.seq async for event in resumed if event is not None] == [3, 4]
        assert [event async for event in await rig.service.follow(rigs.CALLER, task.task_id, after=4)] == []
        with pytest.raises(errors.Invalid) as caught:
            await rig.service.follow(rigs.CALLER, task.task_id, after=5)
        assert caught.value.code == "events.unknown_position"


async def test_a_follower_repairs_itself_when_no_notification_comes(rig: rigs.Rig) -> None:
    task = await rig.submit()
    reader = tail.tail(rig.store, rig.wakeups, task.task_id, after=0, repair_s=0.05, idle_s=0.05)
    async with asyncio.timeout(rigs.PATIENCE_S):
        assert await anext(reader) is None
        await rig.store.request_cancel("default", task.task_id, event_data="{}")
        events = [event.name async for event in reader if event is not None]
    assert events == ["run.cancelled"]


async def test_a_finished_task_cannot_be_cancelled(rig: rigs.Rig) -> None:
    async with rigs.gateway(rig.socket, rigs.completes), rig.dispatcher():
        task = await rig.submit()
        await rig.finished(task.task_id)
    with pytest.raises(errors.Conflict) as caught:
        await rig.service.cancel(rigs.CALLER, task.task_id)
    assert caught.value.code == "task.finished"


async def test_a_full_queue_says_so_and_when_to_come_back(rig: rigs.Rig) -> None:
    async def resolve(caller: principals.Principal, agent: str, environment: str | None) -> str:
        return "production"

    small = service.TaskService(
        store=rig.store, resolve_target=resolve, wakeups=rig.wakeups, allowance=egress.Allowance(),
        settings=settings.TaskSettings(max_pending=3),
    )  # fmt: skip
    async with small:
        for _ in range(3):
            await small.submit(rigs.CALLER, "echo", params.SubmitParams())
        with pytest.raises(errors.Exhausted) as caught:
            await small.submit(rigs.CALLER, "echo", params.SubmitParams())
        assert (caught.value.code, caught.value.retry_after_s) == ("queue.full", 60.0)
        assert (await small.submit(STRANGER, "echo", params.SubmitParams())).status == "pending"
        assert await small.queue_depth("default", "echo", "production") == 3


async def test_a_database_that_is_away_refuses_instead_of_acknowledging(rig: rigs.Rig) -> None:
    import psycopg

    with psycopg.connect(rig.url, autocommit=True) as connection:
        connection.execute("ALTER TABLE tasks RENAME TO tasks_away")
        with pytest.raises(errors.Internal) as caught:
            await rig.submit("x")
        assert caught.value.code == "database.refused"
        connection.execute("ALTER TABLE tasks_away RENAME TO tasks")
    assert (await rig.submit("x")).status == "pending"
