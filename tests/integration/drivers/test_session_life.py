"""The life of session workers across deaths: the supervisor's, the zygote's, and their own while idle."""

import asyncio
import os
import signal
from pathlib import Path

import session_rig

from nexus.core.phases import InstancePhase
from nexus.core.sessions import How, SessionPhase

THREADED = session_rig.AGENT + "threading.Thread(target=threading.Event().wait, daemon=True, name='poller').start()\n"


async def test_sessions_outlive_a_supervisor_that_is_killed() -> None:
    """Live, frozen and saved ones; afterwards they are known again, and stopping the instance leaves nothing."""
    async with session_rig.supervisor() as supervisor:
        rig = await session_rig.ready(supervisor)
        before = {name: await rig.run(name, ["who"]) for name in ("live", "frozen")}
        await rig.run("live", ["write", "~/kept", "yes"])
        await rig.order("frozen", "freeze")
        address = (await rig.place("live")).address
        supervisor.kill()
        assert (await session_rig.call(address, "live", ["who"]))["pid"] == before["live"]["pid"], "nobody is needed for that"
        await supervisor.up()
        for name in ("live", "frozen"):
            assert (await rig.run(name, ["who"]))["pid"] == before[name]["pid"], name
        assert (await rig.place("live")).address == address
        await session_rig.start(supervisor, rig.spec)
        assert await rig.run("new", ["echo", 1]) == 1, "the zygote is found again, too"
        await supervisor.driver.stop(rig.spec.id, grace_s=5)
        async with asyncio.timeout(20):
            while await supervisor.driver.statuses():
                await asyncio.sleep(0.05)
        assert session_rig.leavings(supervisor) == []


async def test_a_worker_that_died_while_nobody_looked_is_made_anew() -> None:
    async with session_rig.supervisor() as supervisor:
        rig = await session_rig.ready(supervisor)
        await rig.run("one", ["echo", 1])
        record = await rig.record("one")
        supervisor.kill()
        os.kill(record["handle"]["pid"], signal.SIGKILL)
        await supervisor.up()
        await session_rig.start(supervisor, rig.spec)
        assert await rig.run("one", ["echo", 2]) == 2
        assert not [path for path in record["handle"]["groups"].values() if os.path.exists(path)]


async def test_sessions_outlive_their_zygote_and_its_box_goes_with_the_last_of_them() -> None:
    async with session_rig.supervisor() as supervisor:
        rig = await session_rig.ready(supervisor)
        before = await rig.run("old", ["who"])
        box = (await rig.record("old"))["box"]
        zygote = await rig.zygote()
        os.kill(zygote, signal.SIGKILL)
        async with asyncio.timeout(20):
            while (status := await supervisor.status(rig.spec.id)).pid in (
                zygote,
                None,
            ) or status.phase is not InstancePhase.READY:
                await asyncio.sleep(0.02)
        assert status.restarts == 1
        assert (await rig.run("old", ["who"]))["pid"] == before["pid"]
        assert await rig.run("new", ["echo", 1]) == 1
        assert (await rig.record("new"))["box"] != box
        supervisor.kill()  # and all of this is found again
        await supervisor.up()
        await session_rig.start(supervisor, rig.spec)
        assert (await rig.run("old", ["who"]))["pid"] == before["pid"]
        groups = [path for path in Path("/sys/fs/cgroup").glob(f"*/nexus-*/{box}")]
        await rig.order("old", "kill")
        assert not [path for path in groups if path.exists()], "nothing of the old box is left"
        assert await rig.run("new", ["echo", 2]) == 2


async def test_an_idle_session_is_frozen_then_stopped_and_comes_back_with_its_files() -> None:
    async with session_rig.supervisor() as supervisor:
        rig = await session_rig.ready(supervisor, session={"freeze_after_s": 0.5, "stop_after_s": 1.5})
        address = (await rig.place("idle")).address
        await session_rig.call(address, "idle", ["write", "~/kept", "yes"])
        frozen = await rig.reach("idle", SessionPhase.FROZEN)
        assert (await rig.reach("idle", SessionPhase.SAVED)).pid is None
        assert frozen.pid is not None
        assert not session_rig.alive(frozen.pid)
        assert await session_rig.call(address, "idle", ["read", "~/kept"]) == "yes", "a connection alone brings it back"
        found = await rig.status("idle")
        assert found.how is How.RESTORE
        assert found.usage.cpu_s > 0
        _reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
        await asyncio.sleep(2.5)  # longer than either: whoever is connected keeps it awake
        assert (await rig.status("idle")).phase is SessionPhase.LIVE
        writer.close()


async def test_a_session_that_never_sleeps_gives_way_to_the_others_until_it_does() -> None:
    """Also one that a supervisor before this one had told to."""
    burning = session_rig.AGENT + "def do_burn():\n    while not os.path.exists(os.environ['HOME'] + '/enough'): pass\n"
    async with session_rig.supervisor() as supervisor:
        rig = await session_rig.ready(supervisor, code=burning)

        async def weight(name: str) -> int:
            groups = (await rig.record(name))["handle"]["groups"]
            path = Path(groups["cpu"], "cpu.shares") if "cpu" in groups else Path(groups[""], "cpu.weight")
            return int(path.read_text())

        async def reach(low: bool) -> None:
            async with asyncio.timeout(20):
                while (await weight("busy") < usual / 10) is not low:
                    await asyncio.sleep(0.02)

        await rig.run("calm", ["echo", 1])
        usual = await weight("calm")
        address = (await rig.place("busy")).address
        run = asyncio.ensure_future(session_rig.call(address, "busy", ["burn"], timeout_s=60))
        await reach(low=True)
        assert await weight("calm") == usual
        supervisor.kill()
        await supervisor.up()
        await reach(low=True)
        async for _ in rig.sessions.exec(rig.spec.id, "busy", ["sh", "-c", "touch ~/enough"], stdin=None, timeout_s=20):
            pass
        await run
        await reach(low=False)
        assert await weight("calm") == usual


async def test_what_cannot_be_forked_is_started_from_the_beginning() -> None:
    async with session_rig.supervisor() as supervisor:
        rig = await session_rig.ready(supervisor, code=THREADED, session={"warm": 0})
        assert (await rig.place("one")).how is How.EXEC
        one, two = await rig.run("one", ["who"]), await rig.run("two", ["who"])
        assert one["environ"]["HOME"] != two["environ"]["HOME"]
        assert rig.spec.token not in one["environ"].values()
        await rig.run("one", ["write", "~/kept", "yes"])
        assert (await supervisor.status(rig.spec.id)).detail == "sessions: exec (1 thread started (poller))"
        script = ["sh", "-c", "head -c 1G /dev/zero > ~/flood 2>/dev/null; wc -c < ~/flood; rm ~/flood"]
        said = [line async for line in rig.sessions.exec(rig.spec.id, "one", script, stdin=None, timeout_s=20)]
        assert 0 <= rig.spec.memory_bytes // 2 - int(said[0]["data"]) < 65536, "its work directory has an end of its own"
        supervisor.kill()
        await supervisor.up()
        assert (await rig.run("one", ["who"]))["pid"] == one["pid"]
        await rig.order("one", "stop")
        await session_rig.start(supervisor, rig.spec)
        assert await rig.run("one", ["read", "~/kept"]) == "yes"
        assert supervisor.down() == 0
        assert session_rig.leavings(supervisor) == []


async def test_an_instance_that_is_stopped_saves_its_sessions_for_the_next() -> None:
    async with session_rig.supervisor() as supervisor:
        rig = await session_rig.ready(supervisor)
        await rig.run("mover", ["write", "~/kept", "yes"])
        other = supervisor.spec_of({"agent.py": session_rig.AGENT}, agent=rig.spec.agent, options=rig.spec.options)
        await session_rig.start(supervisor, other)
        assert (await rig.sessions.place([other.id, rig.spec.id], "mover")).instance_id == rig.spec.id, "where it lives wins"
        await supervisor.driver.stop(rig.spec.id, grace_s=5)
        async with asyncio.timeout(20):
            while len(await supervisor.driver.statuses()) > 1:
                await asyncio.sleep(0.05)
        moved = session_rig.SessionRig(supervisor, other)
        assert (await moved.place("mover")).instance_id == other.id
        assert await moved.run("mover", ["read", "~/kept"]) == "yes"


async def test_the_longest_idle_session_makes_room_for_another_and_comes_back() -> None:
    async with session_rig.supervisor() as supervisor:
        rig = await session_rig.ready(supervisor, options={"isolation": "session", "session": {"most": 2, "warm": 0}})
        await rig.run("first", ["write", "~/kept", "yes"])
        await rig.run("second", ["echo", 1])
        assert await rig.run("third", ["echo", 1]) == 1
        await rig.reach("first", SessionPhase.SAVED)
        assert await rig.run("first", ["read", "~/kept"]) == "yes"


async def test_a_zygote_has_room_for_more_sessions_than_its_own_memory_would_do_for() -> None:
    """What forks cost before the children stand in groups of their own stays on the zygote's account."""
    async with session_rig.supervisor() as supervisor:
        rig = await session_rig.ready(supervisor, memory_bytes=96 * 2**20, session={"persist": False, "warm": 0})
        for number in range(60):
            assert await rig.run(f"many-{number}", ["echo", number]) == number
        assert (await supervisor.status(rig.spec.id)).restarts == 0
