"""Dispatchers as the host starts them, two processes on one database: killed again and again, they lose and double nothing."""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import rig as rigs

from nexus.apps import keeper_probe
from nexus.core import ids
from nexus.core.phases import RunPhase, is_terminal
from nexus.kit.home import Home
from nexus.ports import task_store as port

LIMITED = port.Lane(tenant="default", agent="limited", environment="production")
FREE = port.Lane(tenant="default", agent="free", environment="production")
LATE = port.Lane(tenant="late", agent="free", environment="production")
MOST = 3


@asynccontextmanager
async def process(home: Home, url: str, number: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m nexus.apps.dispatcher`, once it says that it is well."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NEXUS_")}
    environment |= {
        "NEXUS_HOME": str(home.root),
        "NEXUS_DATABASE_URL": url,
        "NEXUS_GATEWAYS": "1",
        "NEXUS_DISPATCHERS": "2",
        "NEXUS_DISPATCHER": str(number),
    }
    child = await asyncio.create_subprocess_exec(sys.executable, "-P", "-m", "nexus.apps.dispatcher", env=environment)
    try:
        async with asyncio.timeout(rigs.PATIENCE_S):
            while (await health(home, number)).get("pid") != child.pid:
                assert child.returncode is None
                await asyncio.sleep(0.02)
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def health(home: Home, number: int) -> dict[str, object]:
    found = await asyncio.to_thread(keeper_probe.ask, home.dispatcher_socket(number), "/health")
    return found[1] if found is not None else {}


def entries(lane: port.Lane, count: int) -> list[port.Submission]:
    body = json.dumps({"input": str(lane)}).encode()
    return [
        port.Submission(id=ids.new_id(ids.TASK), lane=lane, principal="key", body=body, digest="d", max_attempts=20)
        for _ in range(count)
    ]


class Agents:
    """Runs take a moment. `most` is how many of a lane were under way at once, `order` the tenants in the order of the ends."""

    def __init__(self) -> None:
        self.active: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.order: list[str] = []
        self.begun = asyncio.Event()
        self.hold: asyncio.Event | None = None

    async def __call__(self, call: rigs.Call) -> None:
        self.active[call.agent] += 1
        self.most[call.agent] = max(self.most[call.agent], self.active[call.agent])
        self.begun.set()
        try:
            await (asyncio.sleep(0.01) if self.hold is None else self.hold.wait())
            call.complete(call.body["input"])
            self.order.append(call.fields["nexus-tenant"])
        finally:
            self.active[call.agent] -= 1


async def _hold(rig: rigs.Rig, agents: Agents) -> list[port.Submission]:
    """A task whose run is under way until `agents.hold` is set."""
    agents.begun.clear()
    await rig.store.submit(made := entries(FREE, 1))
    await asyncio.wait_for(agents.begun.wait(), rigs.PATIENCE_S)
    return made


async def ends(rig: rigs.Rig, made: list[port.Submission]) -> None:
    async with asyncio.timeout(rigs.PATIENCE_S):
        for entry in made:
            while not is_terminal((await _task(rig, entry)).phase):
                await asyncio.sleep(0.02)


async def _task(rig: rigs.Rig, entry: port.Submission) -> port.Task:
    found = await rig.store.fetch(entry.lane.tenant, entry.id)
    assert found is not None
    return found


async def test_two_processes_share_the_queue_and_its_limits_and_each_may_be_killed(rig: rigs.Rig, tmp_path: Path) -> None:
    home, agents = Home(tmp_path / "home"), Agents()
    home.doors.mkdir(parents=True)
    await rig.store.limit_lane(LIMITED, MOST)
    async with rigs.gateway(home.door_socket(0), agents) as gateway, process(home, rig.url, 0) as first:
        async with process(home, rig.url, 1) as second:
            made = [*entries(LIMITED, 60), *entries(FREE, 600), *entries(LATE, 30)]
            await rig.store.submit(made)
            await asyncio.wait_for(agents.begun.wait(), rigs.PATIENCE_S)
            second.kill()
            await second.wait()
            assert (await health(home, 0))["claimed"]
        async with process(home, rig.url, 1) as second:
            first.kill()
            await first.wait()
            await ends(rig, made)
            assert (await health(home, 1))["claimed"]
            agents.hold = asyncio.Event()
            (held,) = await _hold(rig, agents)
            second.send_signal(signal.SIGHUP)
            async with asyncio.timeout(rigs.PATIENCE_S):
                while not (await health(home, 1))["draining"]:
                    await asyncio.sleep(0.02)
            await rig.store.submit(left := entries(FREE, 1))
            agents.hold.set()
            assert await asyncio.wait_for(second.wait(), rigs.PATIENCE_S) == 0
            task = await _task(rig, held)
            assert (task.phase, task.attempt) == (RunPhase.COMPLETED, 1), "what is in hand ends where it began"
            assert (await _task(rig, left[0])).phase is RunPhase.PENDING, "and nothing else is begun"
    for entry in made:
        task = await _task(rig, entry)
        names = [event.name for event in await rig.events(entry.id)]
        assert (task.phase, names.count("run.completed"), names[-1]) == (RunPhase.COMPLETED, 1, "run.completed")
    assert agents.most["limited"] <= MOST
    assert agents.order.index("late") < len(agents.order) / 2, (
        "a tenant that comes last does not wait for all that stand before it"
    )
    tokens = {call.fields["authorization"] for call in gateway.calls}
    assert tokens == {f"Bearer {home.service_token.read_text().strip()}"}
    assert home.service_token.stat().st_mode & 0o777 == 0o600
