"""What every driver must do, as tests. Subclass `DriverContract` with a `rig` fixture; each adapter passes it unchanged."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from nexus.core import errors, ids, instances
from nexus.core.phases import INSTANCE_MOVES, InstancePhase
from nexus.ports import driver, logs

_PATIENCE_S = 30.0


class DriverWithLogs(driver.Driver, logs.LogSource, Protocol):
    """A driver whose instances' lines can be read."""


class Rig(Protocol):
    """What a driver's tests bring along."""

    driver: DriverWithLogs

    def spec(self, behaviour: str) -> instances.InstanceSpec:
        """A fresh spec of an agent that is `good` (becomes ready, having printed `hello`) or `bad` (never does)."""
        ...

    async def crash(self, instance_id: str) -> None:
        """Make the ready instance end by itself, once."""
        ...

    async def cut(self) -> None:
        """Make the node unreachable."""
        ...


async def until(rig: Rig, instance_id: str, wanted: Callable[[instances.InstanceStatus], bool]) -> instances.InstanceStatus:
    """The first status of the instance that fits, by asking again and again."""
    seen: instances.InstanceStatus | None = None
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                for status in await rig.driver.statuses():
                    if status.id == instance_id:
                        seen = status
                        if wanted(status):
                            return status
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it never came to that; last seen: {seen}") from None


async def until_gone(rig: Rig, instance_id: str) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while any(status.id == instance_id for status in await rig.driver.statuses()):  # noqa: ASYNC110 - only statuses tell
            await asyncio.sleep(0.02)


def is_in(*phases: InstancePhase) -> Callable[[instances.InstanceStatus], bool]:
    return lambda status: status.phase in phases


async def _code_of(call: Awaitable[object]) -> str | None:
    try:
        await call
    except errors.NexusError as error:
        return error.code
    return None


class DriverContract:
    """See `ports.driver.Driver` and `ports.logs.LogSource` for the words behind each test."""

    async def test_capabilities_are_data(self, rig: Rig) -> None:
        found = await rig.driver.capabilities()
        assert found.name
        assert found.isolation
        assert all(isinstance(line, str) and line for line in found.missing)

    async def test_a_good_agent_becomes_ready_and_says_whose_it_is(self, rig: Rig) -> None:
        spec = rig.spec("good")
        await rig.driver.start(spec)
        status = await until(rig, spec.id, is_in(InstancePhase.READY, InstancePhase.FAILED))
        assert status.phase is InstancePhase.READY, status.problem
        assert status.address
        assert status.problem is None
        assert (status.tenant, status.agent, status.version_id, status.deployment_id) == (
            spec.tenant,
            spec.agent,
            spec.version_id,
            spec.deployment_id,
        )
        assert status.started_at is not None

    async def test_starting_twice_is_starting_once(self, rig: Rig) -> None:
        spec = rig.spec("good")
        await rig.driver.start(spec)
        first = await until(rig, spec.id, is_in(InstancePhase.READY))
        await rig.driver.start(spec)
        again = await until(rig, spec.id, is_in(InstancePhase.READY))
        assert (again.pid, again.restarts) == (first.pid, 0)
        assert len([status for status in await rig.driver.statuses() if status.id == spec.id]) == 1

    async def test_a_bad_agent_fails_for_good_with_a_problem(self, rig: Rig) -> None:
        spec = rig.spec("bad")
        await rig.driver.start(spec)
        status = await until(rig, spec.id, is_in(InstancePhase.FAILED, InstancePhase.READY))
        assert status.phase is InstancePhase.FAILED
        assert status.address is None
        assert status.problem is not None
        assert {"code", "kind", "detail", "phase", "cause"} <= status.problem.keys()

    async def test_a_failed_instance_can_be_tried_again(self, rig: Rig) -> None:
        spec = rig.spec("bad")
        await rig.driver.start(spec)
        await until(rig, spec.id, is_in(InstancePhase.FAILED))
        async with _watching(rig) as seen:
            await rig.driver.start(spec)
            await _seen(seen, spec.id, InstancePhase.STARTING)
            await _seen(seen, spec.id, InstancePhase.FAILED)

    async def test_a_crashed_instance_is_started_again(self, rig: Rig) -> None:
        spec = rig.spec("good")
        await rig.driver.start(spec)
        await until(rig, spec.id, is_in(InstancePhase.READY))
        await rig.crash(spec.id)
        status = await until(rig, spec.id, lambda status: status.restarts == 1 and status.phase is InstancePhase.READY)
        assert status.problem is None

    async def test_stopping_forgets_and_is_idempotent(self, rig: Rig) -> None:
        spec = rig.spec("good")
        await rig.driver.start(spec)
        await until(rig, spec.id, is_in(InstancePhase.READY))
        await rig.driver.stop(spec.id, grace_s=5)
        await until_gone(rig, spec.id)
        await rig.driver.stop(spec.id, grace_s=5)

    async def test_a_failed_instance_stays_known_until_it_is_stopped(self, rig: Rig) -> None:
        spec = rig.spec("bad")
        await rig.driver.start(spec)
        await until(rig, spec.id, is_in(InstancePhase.FAILED))
        await rig.driver.stop(spec.id, grace_s=0)
        await until_gone(rig, spec.id)

    async def test_stopping_what_never_was_succeeds(self, rig: Rig) -> None:
        await rig.driver.stop(ids.new_id(ids.INSTANCE), grace_s=0)

    async def test_watching_shows_each_step_and_every_step_is_legal(self, rig: Rig) -> None:
        spec = rig.spec("good")
        async with _watching(rig) as seen:
            await rig.driver.start(spec)
            await _seen(seen, spec.id, InstancePhase.READY)
            await rig.driver.stop(spec.id, grace_s=5)
            await _seen(seen, spec.id, InstancePhase.STOPPED)
        phases = [status.phase for status in seen if status.id == spec.id]
        for before, after in itertools.pairwise(phases):
            assert before is after or after in INSTANCE_MOVES[before], (before, after)

    async def test_what_an_instance_says_can_be_read_and_followed(self, rig: Rig) -> None:
        spec = rig.spec("good")
        query = logs.LogQuery(tenant=spec.tenant, agent=spec.agent, follow=True)
        async with asyncio.timeout(_PATIENCE_S), contextlib.aclosing(rig.driver.logs(query)) as lines:  # type: ignore[type-var]
            await rig.driver.start(spec)
            async for line in lines:
                if line["instance_id"] == spec.id and line["message"] == "hello":
                    assert (line["agent"], line["version"], line["level"]) == (spec.agent, spec.version, "info")
                    break
        assert "hello" in await rig.driver.log_tail(spec.id, lines=50)
        stored = [line async for line in rig.driver.logs(logs.LogQuery(tenant=spec.tenant, agent=spec.agent))]
        assert "hello" in [line["message"] for line in stored]
        for other in (
            logs.LogQuery(tenant="stranger", agent=spec.agent),
            logs.LogQuery(tenant=spec.tenant, agent=spec.agent, run_id="run_of_nobody"),
            logs.LogQuery(tenant=spec.tenant, agent=spec.agent, since=4e9),
        ):
            assert [line async for line in rig.driver.logs(other)] == []

    async def test_a_level_that_does_not_exist_is_refused(self, rig: Rig) -> None:
        query = logs.LogQuery(tenant="t", agent="a", level="loud")
        assert await _code_of(anext(aiter(rig.driver.logs(query)))) == "logs.bad_level"

    async def test_the_tail_of_a_stranger_is_empty(self, rig: Rig) -> None:
        assert list(await rig.driver.log_tail(ids.new_id(ids.INSTANCE), lines=5)) == []

    async def test_a_node_that_is_gone_is_unreachable_for_every_verb(self, rig: Rig) -> None:
        spec = rig.spec("good")
        await rig.cut()
        calls: list[Awaitable[object]] = [
            rig.driver.capabilities(),
            rig.driver.start(spec),
            rig.driver.stop(spec.id, grace_s=0),
            rig.driver.statuses(),
            rig.driver.log_tail(spec.id, lines=1),
            anext(aiter(rig.driver.watch())),
            anext(aiter(rig.driver.logs(logs.LogQuery(tenant="t", agent="a")))),
        ]
        assert [await _code_of(call) for call in calls] == ["driver.unreachable"] * len(calls)


@contextlib.asynccontextmanager
async def _watching(rig: Rig) -> AsyncIterator[list[instances.InstanceStatus]]:
    """A list that grows with every status; watching has begun when this is entered."""
    seen: list[instances.InstanceStatus] = []

    async def collect() -> None:
        async for status in rig.driver.watch():
            seen.append(status)  # noqa: PERF401 - it grows while others look

    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(collect())
        probe = rig.spec("bad")
        async with asyncio.timeout(_PATIENCE_S):
            while not seen:  # a watch says nothing by itself: a throwaway instance shows that it has begun
                await rig.driver.start(probe)
                await asyncio.sleep(0.05)
        try:
            yield seen
        finally:
            watching.cancel()


async def _seen(seen: list[instances.InstanceStatus], instance_id: str, phase: InstancePhase) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while not any(status.id == instance_id and status.phase is phase for status in seen):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
