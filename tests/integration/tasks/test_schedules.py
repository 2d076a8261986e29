"""Schedules on a real PostgreSQL: one task for each time, whoever looks and however often."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import rig as rigs
import sqlalchemy as sa

from nexus.core import errors, principals
from nexus.kit import egress
from nexus.stores.postgres import engine as engines
from nexus.stores.postgres import task_schedule_store
from nexus.tasks import schedules
from nexus.wire import params


async def resolve(caller: principals.Principal, agent: str, environment: str | None) -> str:
    return environment or "production"


class Clockwork:
    """Schedules, and a way to make one due: nothing waits for a real minute."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.store = task_schedule_store.PostgresScheduleStore(engine)
        self.rooms = self.another()

    def another(self) -> schedules.Schedules:
        return schedules.Schedules(store=self.store, resolve_target=resolve, allowance=egress.parse_allowance("127.0.0.0/8"))

    async def create(self, name: str = "nightly", **more: Any) -> Any:
        body = {"name": name, "agent": "echo", "task": {"input": {"n": 1}, "priority": 3}, **more}
        if "at" not in more:
            body.setdefault("cron", "0 * * * *")
        return await self.rooms.create(rigs.CALLER, params.ScheduleParams.model_validate(body))

    async def rewind(self, seconds: float) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(sa.text("UPDATE task_schedules SET next_at = next_at - :s"), {"s": seconds})

    async def show(self, name: str = "nightly") -> Any:
        return await self.rooms.show(rigs.CALLER, name)


@pytest.fixture
async def clockwork(rig: rigs.Rig) -> AsyncIterator[Clockwork]:
    async with engines.open_engine(rig.url, pool_size=6) as engine:
        yield Clockwork(engine)


async def test_a_due_schedule_makes_one_task_however_many_look(rig: rigs.Rig, clockwork: Clockwork) -> None:
    made = await clockwork.create()
    assert made.next_at - await clockwork.store.now() <= 3600
    assert await clockwork.rooms.tick() == 0
    await clockwork.rewind(3600)
    ticks = await asyncio.gather(*(clockwork.another().tick() for _ in range(5)))
    assert sum(ticks) == 1
    (task,) = (await rig.service.list(rigs.CALLER)).items
    assert (task.agent, task.origin, task.priority) == ("echo", made.id, 3)
    shown = await clockwork.show()
    assert (shown.fired, shown.last_task_id, shown.missed) == (1, task.task_id, 0)
    assert shown.next_at == made.next_at


async def test_a_time_that_fired_does_not_fire_again_when_the_clock_goes_back(rig: rigs.Rig, clockwork: Clockwork) -> None:
    await clockwork.create()
    await clockwork.rewind(3600)
    assert await clockwork.rooms.tick() == 1
    await clockwork.rewind(3600)
    assert await clockwork.rooms.tick() == 0, "the same moment is the same key"
    assert len((await rig.service.list(rigs.CALLER)).items) == 1


async def test_all_missed_times_are_made_up_for(rig: rigs.Rig, clockwork: Clockwork) -> None:
    await clockwork.create(catch_up="all")
    await clockwork.rewind(5 * 3600)
    assert await clockwork.rooms.tick() == 5
    await clockwork.create("daily", catch_up="skip", cron="0 0 1 1 *")
    assert (await clockwork.show("daily")).missed == 0


async def test_a_one_off_fires_once_even_when_its_time_has_passed(rig: rigs.Rig, clockwork: Clockwork) -> None:
    await clockwork.create("once", at="2026-01-01T00:00:00Z")
    assert await clockwork.rooms.tick() == 1
    assert await clockwork.rooms.tick() == 0
    assert (await clockwork.show("once")).next_at is None


async def test_a_paused_schedule_rests_and_goes_on_from_now(rig: rigs.Rig, clockwork: Clockwork) -> None:
    await clockwork.create()
    await clockwork.rooms.pause(rigs.CALLER, "nightly")
    await clockwork.rewind(10 * 3600)
    assert await clockwork.rooms.tick() == 0
    shown = await clockwork.rooms.resume(rigs.CALLER, "nightly")
    assert shown.next_at > await clockwork.store.now()
    assert await clockwork.rooms.tick() == 0
    await clockwork.rooms.delete(rigs.CALLER, "nightly")
    with pytest.raises(errors.NotFound):
        await clockwork.show()


async def test_what_is_wrong_is_said_when_it_is_created(clockwork: Clockwork) -> None:
    await clockwork.create()
    for wrong, code in (
        ({}, "schedule.exists"),
        ({"name": "a", "cron": "nonsense"}, "schedule.invalid_cron"),
        ({"name": "a", "cron": "0 0 30 2 *"}, "schedule.invalid_cron"),
        ({"name": "a", "timezone": "Mars/Olympus"}, "schedule.unknown_timezone"),
        ({"name": "a b"}, "name.invalid"),
        ({"name": "a", "task": {"session_id": "a b"}}, "session.invalid_id"),
        ({"name": "a", "task": {"webhook": "http://10.0.0.1/"}}, "webhook.url_refused"),
    ):
        with pytest.raises(errors.NexusError) as told:
            await clockwork.create(**wrong)
        assert told.value.code == code, wrong


async def test_another_tenant_and_a_narrow_key_see_nothing(clockwork: Clockwork) -> None:
    await clockwork.create()
    for other in (
        principals.Principal(id="k", tenant="other", roles=frozenset({principals.Role.ADMIN})),
        principals.Principal(
            id="k", tenant="default", roles=frozenset({principals.Role.DEVELOPER}), agents=frozenset({"another"})
        ),
        principals.Principal(id="k", tenant="default", roles=frozenset({principals.Role.DEVELOPER}), environment="staging"),
    ):
        assert await clockwork.rooms.list(other) == []
        with pytest.raises(errors.NotFound):
            await clockwork.rooms.show(other, "nightly")


async def test_the_loop_fires_by_itself(rig: rigs.Rig, clockwork: Clockwork) -> None:
    await clockwork.create()
    await clockwork.rewind(3600)
    async with rigs.gateway(rig.socket, rigs.completes), rig.dispatcher(), clockwork.rooms, asyncio.timeout(rigs.PATIENCE_S):
        while not (page := await rig.service.list(rigs.CALLER, status="completed")).items:
            await asyncio.sleep(0.02)
    assert page.items[0].output == {"n": 1}
