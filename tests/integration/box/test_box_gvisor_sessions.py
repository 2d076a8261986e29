"""Sessions and the way out under gVisor: each session a container of its own, with the life that every other session has."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import names_rig
import pytest
import pytest_asyncio
import session_rig
import supervisor_rig
import test_box_egress

from nexus.apps import keeper_sweep
from nexus.core.sessions import How, SessionPhase

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("runsc") is None, reason="needs root and runsc"),
    pytest.mark.asyncio(loop_scope="module"),
]
GVISOR: dict[str, object] = {"runtime_class": "gvisor"}
CODE = session_rig.AGENT + "\ndef do_kernel(): return os.uname().release\n" + test_box_egress.AGENT.split("def run(")[0]
CODE += "\ndef do_tunnel(*args): return tunnel(*args)\ndef do_fetch_directly(url): return fetch_directly(url)\n"
CODE += "\ndef do_direct(*args): return direct(*args)\n"
CODE += "\ndef do_fork():\n    while True: os.fork()\n"


async def ready(supervisor: supervisor_rig.SupervisorRig, **options: Any) -> session_rig.SessionRig:
    session = {"warm": 0, **options.pop("session", {})}
    return await session_rig.ready(supervisor, code=CODE, options={**GVISOR, **options}, session=session)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig() -> AsyncIterator[session_rig.SessionRig]:
    async with session_rig.supervisor() as supervisor:
        yield await ready(supervisor, processes=30)  # of the agent's: the runtime's own are not counted to it


def tree(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        found += [int(child) for child in Path(f"/proc/{one}/task/{one}/children").read_text().split()]
    return found


def lines_of(rig: session_rig.SessionRig) -> list[str]:
    return [line for file in (rig.rig.home.root / "logs").rglob("*.jsonl") for line in file.read_text().splitlines()]


async def test_two_sessions_share_nothing_and_serve_what_comes(rig: session_rig.SessionRig) -> None:
    place = await rig.place("one")
    assert place.how is How.EXEC
    for name in ("one", "two"):
        assert await rig.run(name, ["kernel"]) != os.uname().release
    for path in ("~/note", "/tmp/note", "/dev/shm/note"):
        await rig.run("one", ["write", path, "mine"])
        assert await rig.run("one", ["read", path]) == "mine"
        assert await rig.run("two", ["read", path]) == "FileNotFoundError"
    environ = (await rig.run("one", ["who"]))["environ"]
    assert rig.spec.token not in environ.values()
    refused = await session_rig.call(place.address, "two", ["echo", 1])
    assert refused["code"] == "session.wrong_worker"
    assert len(await rig.run("one", ["echo", "x" * 2_000_000])) == 2_000_000
    assert await asyncio.gather(*(rig.run("one", ["echo", number]) for number in range(30))) == list(range(30))


async def test_a_command_runs_inside_and_what_is_printed_is_the_sessions(rig: session_rig.SessionRig) -> None:
    command = ["sh", "-c", "cat; echo said >&2; uname -r; exit 7"]
    lines = [dict(one) async for one in rig.sessions.exec(rig.spec.id, "one", command, stdin="hi\n", timeout_s=20)]
    assert lines[-1] == {"exit": 7}
    told = "".join(line["data"] for line in lines if line.get("stream") == "stdout").split()
    assert told[0] == "hi"
    assert told[1] != os.uname().release
    assert [line["data"] for line in lines if line.get("stream") == "stderr"] == ["said\n"]
    await rig.run("one", ["print", "a word of mine"])
    logs = rig.rig.home.root / "logs"
    async with asyncio.timeout(5):
        while not (
            found := [line for file in logs.rglob("*.jsonl") for line in file.read_text().splitlines() if "a word" in line]
        ):
            await asyncio.sleep(0.02)
    assert '"session_id":"one"' in found[0]


async def test_it_is_frozen_woken_counted_saved_and_restored(rig: session_rig.SessionRig) -> None:
    address = (await rig.place("cold")).address
    await rig.run("cold", ["write", "~/a/kept", "yes"])
    before = await rig.run("cold", ["who"])
    assert (await rig.order("cold", "freeze"))["phase"] == "frozen"
    assert (await session_rig.call(address, "cold", ["who"]))["random"] != before["random"], "a connection wakes it"
    status = await rig.status("cold")
    assert status.phase is SessionPhase.LIVE
    assert status.usage.cpu_s > 0.1
    assert status.usage.memory_bytes > 20 * 2**20, "gVisor's kernel is on its account too"
    assert (await rig.sessions.stop_session(rig.spec.id, "cold", grace_s=5)).phase is SessionPhase.ENDED
    assert await rig.run("cold", ["read", "~/a/kept"]) == "yes"
    assert (await rig.status("cold")).how is How.RESTORE


async def test_kill_leaves_nothing_of_it(rig: session_rig.SessionRig) -> None:
    await rig.run("doomed", ["daemon"])
    record = await rig.record("doomed")
    below = tree(record["handle"]["pid"])
    assert len(below) >= 4, "keeper, runsc, its sandbox and its gofer"
    await rig.order("doomed", "kill")
    await session_rig.gone(*below, timeout_s=2)
    name = record["handle"]["name"]
    assert [path for path in rig.rig.home.root.rglob(f"*{name}*")] == []
    assert [path for path in record["handle"]["groups"].values() if os.path.exists(path)] == []
    assert [line for line in Path("/proc/mounts").read_text().splitlines() if name in line] == []


async def test_what_ends_by_itself_says_why_and_is_there_again(rig: session_rig.SessionRig) -> None:
    address = (await rig.place("mortal")).address
    with pytest.raises(ConnectionError):
        await session_rig.call(address, "mortal", ["die", 3])
    problem = await rig.last_end("mortal")
    assert (problem["code"], "code 3" in problem["cause"]) == ("session.exited", True)
    assert await session_rig.call(address, "mortal", ["echo", "alive"]) == "alive", "the address outlives the worker"
    await rig.run("neighbour", ["echo", 1])
    with pytest.raises(ConnectionError):
        await rig.run("eater", ["eat", 1000])
    assert (await rig.last_end("eater"))["code"] == "instance.out_of_memory"
    assert await rig.run("neighbour", ["echo", 1]) == 1


async def test_its_work_directory_has_an_end(rig: session_rig.SessionRig) -> None:
    """It lies in memory, so neither this machine's disk nor another session hears of a flood."""
    script = "head -c 1G /dev/zero > ~/flood; wc -c < ~/flood"
    await rig.place("flood")
    lines = [dict(one) async for one in rig.sessions.exec(rig.spec.id, "flood", ["sh", "-c", script], stdin=None, timeout_s=60)]
    told = "".join(line["data"] for line in lines if line.get("stream") == "stdout").strip()
    assert told == str(128 * 2**20), lines


async def test_it_outlives_a_supervisor_that_is_killed() -> None:
    async with session_rig.supervisor() as supervisor:
        rig = await ready(supervisor, session={"warm": 1})
        await rig.run("stays", ["write", "~/kept", "yes"])
        pid = (await rig.status("stays")).pid
        supervisor.kill()
        await supervisor.up()
        assert await rig.run("stays", ["read", "~/kept"]) == "yes"
        assert (await rig.status("stays")).pid == pid
        await rig.order("stays", "stop")
        await session_rig.start(supervisor, rig.spec)
        assert await rig.run("stays", ["read", "~/kept"]) == "yes"
        assert supervisor.down() == 0
        assert session_rig.leavings(supervisor) == []


async def test_what_a_killed_supervisor_leaves_is_found_and_ended() -> None:
    async with session_rig.supervisor() as supervisor:
        rig = await ready(supervisor)
        await rig.run("left", ["daemon"])
        below = [*tree((await rig.record("left"))["handle"]["pid"]), *tree(await rig.zygote())]
        supervisor.kill()
        assert keeper_sweep.kill_agents(supervisor.home) >= 2
        await session_rig.gone(*below)


async def test_a_spare_is_ready_when_a_session_is_wanted() -> None:
    async with session_rig.supervisor() as supervisor:
        rig = await ready(supervisor, session={"warm": 1})
        names = (f"quick-{number}" for number in range(10))
        while (await rig.place(name := next(names))).how is not How.SPARE:
            assert await rig.run(name, ["echo", 1]) == 1
        assert await rig.run(name, ["echo", 1]) == 1


@pytest.mark.parametrize("isolation", ["instance", "session"])
async def test_named_hosts_are_reached_by_any_library_and_no_others(isolation: str) -> None:
    async with (
        test_box_egress.a_server() as (port, heads),
        test_box_egress.a_server() as (other, never),
        names_rig.knowing_names(plain=False) as supervisor,
    ):
        options = {**GVISOR, "network": "egress", "egress": [f"api.test:{port}"], "isolation": isolation}
        spec = supervisor.spec_of({"agent.py": CODE}, options=options)
        await session_rig.start(supervisor, spec)
        rig = session_rig.SessionRig(supervisor, spec)

        async def ask(*given: Any) -> Any:
            return await (supervisor.run(spec.id, given) if isolation == "instance" else rig.run("one", given))

        assert await ask("fetch_directly", f"http://api.test:{port}/plain") == "got 0"
        assert heads[-1].startswith("GET /plain HTTP/1.1\r\n")
        said = "POST / HTTP/1.1\r\ncontent-length: 5000\r\n\r\n" + "x" * 5000
        assert (await ask("tunnel", f"api.test:{port}", said)).endswith("got 5000")
        assert (await ask("tunnel", f"localhost:{other}", said)).startswith("HTTP/1.1 403")
        assert await ask("direct", "192.0.2.1", 443) != "connected"
        assert await ask("direct", "127.0.0.1", other) != "connected"
        assert never == []
        (line, *_) = await test_box_egress.connections(supervisor, spec.agent, 1)
        assert line["run_id"]
        assert isolation == "instance" or line["session_id"] == "one"
