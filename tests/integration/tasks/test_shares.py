"""Limits of a lane for each API key, counted over several dispatchers: on the real store, and from configuration to claim."""

import asyncio
from collections import Counter

import rig as rigs

from nexus.core import ids, principals
from nexus.ports import task_store as port
from nexus.tasks import service, settings
from nexus.wire import params

LANE = port.Lane(tenant="default", agent="echo", environment="production")


def _entries(count: int, *, share: str = "", most: int | None = None) -> list[port.Submission]:
    return [
        port.Submission(
            id=ids.new_id(ids.TASK), lane=LANE, principal=share or "key", body=b"{}", digest="d", share=share, share_most=most
        )
        for _ in range(count)
    ]


async def _running(rig: rigs.Rig, *owners: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for owner in owners:
        for task_id, _ in await rig.store.held(owner):
            task = await rig.store.fetch("default", task_id)
            assert task is not None
            found[task.principal] += 1
    return found


async def test_no_key_has_more_than_its_share_over_all_dispatchers(rig: rigs.Rig) -> None:
    for owner in ("a", "b"):
        await rig.store.enlist(owner)
    await rig.store.submit([*_entries(10, share="one", most=2), *_entries(10, share="two", most=3), *_entries(4)])

    async def claim(owner: str) -> None:
        while await rig.store.claim(owner, limit=5, per_lane=50, paused=()):
            pass

    await asyncio.gather(claim("a"), claim("b"))
    await asyncio.gather(claim("b"), claim("a"))
    assert await _running(rig, "a", "b") == {"one": 2, "two": 3, "key": 4}


async def test_the_limit_of_the_lane_holds_over_its_shares(rig: rigs.Rig) -> None:
    await rig.store.enlist("a")
    await rig.store.limit_lane(LANE, 4)
    await rig.store.submit([*_entries(10, share="one", most=3), *_entries(10, share="two", most=3), *_entries(10)])
    while await rig.store.claim("a", limit=50, per_lane=50, paused=()):
        pass
    assert (await _running(rig, "a")).total() == 4


async def test_a_raised_share_counts_from_the_next_submission_and_an_idle_one_is_forgotten(rig: rigs.Rig) -> None:
    await rig.store.enlist("a")
    await rig.store.submit(_entries(5, share="one", most=1))
    while await rig.store.claim("a", limit=50, per_lane=50, paused=()):
        pass
    await rig.store.submit(_entries(1, share="one", most=4))
    while claims := await rig.store.claim("a", limit=50, per_lane=50, paused=()):
        assert claims
    assert await _running(rig, "a") == {"one": 4}


async def test_an_agent_that_limits_its_keys(rig: rigs.Rig) -> None:
    """From the agent's configuration: two keys submit, each has one task running at a time."""
    most: Counter[str] = Counter()
    active: Counter[str] = Counter()

    async def script(call: rigs.Call) -> None:
        key = call.fields["nexus-principal"]
        active[key] += 1
        most[key] = max(most[key], active[key])
        await asyncio.sleep(0.02)
        active[key] -= 1
        call.complete()

    async def policy_of(lane: port.Lane) -> settings.TaskPolicy:
        return settings.TaskPolicy(per_key=1)

    async def resolve(caller: principals.Principal, agent: str, environment: str | None) -> str:
        return "production"

    async with rigs.gateway(rig.socket, script), rig.dispatcher("one") as runner, rig.dispatcher("two"):
        rooms = service.TaskService(
            store=rig.store,
            resolve_target=resolve,
            wakeups=rig.wakeups,
            allowance=rigs.egress.parse_allowance(None),
            submitted=runner.wake,
            policy_of=policy_of,
            runner=runner,
        )
        async with rooms:
            tasks = []
            for number in range(12):
                caller = principals.Principal(
                    id=f"key_{number % 2}", tenant="default", roles=frozenset({principals.Role.DEVELOPER})
                )
                tasks.append(await rooms.submit(caller, "echo", params.SubmitParams(input=number)))
            for task in tasks:
                assert (await rig.finished(task.task_id)).status == "completed"
    assert most == {"key_0": 1, "key_1": 1}
