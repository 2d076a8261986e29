"""An agent that goes over a limit: only it ends, with an error that says which limit, how much, and how to raise it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import supervisor_rig

from nexus.core import instances
from nexus.core.phases import InstancePhase
from nexus.drivers.process import cgroups, disk_use, limits, probe, session_client
from nexus.testing.driver_contract import is_in, until, until_gone

Rig = supervisor_rig.SupervisorRig
READY, FAILED = InstancePhase.READY, InstancePhase.FAILED
AGENT = """
import os, subprocess, sys, threading, time

HOME = os.environ["HOME"]

def bomb():
    while True:
        try:
            if os.fork() == 0:
                bomb()
        except OSError:
            time.sleep(0.01)

def flood(size, keep):
    kept = []
    for number in range(200):
        file = open(f"{HOME}/{number}", "wb")
        file.write(os.urandom(size))
        file.flush()
        if keep:
            os.unlink(file.name)
            kept.append(file)
    time.sleep(60)

def many():
    for number in range(1_000_000):
        open(f"{HOME}/{number}", "w").close()

def deep():
    at = os.open(HOME, os.O_RDONLY)
    for _ in range(5000):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    time.sleep(60)

def fork():
    children = []
    try:
        while True:
            child = os.fork()
            if child == 0:
                time.sleep(60)
            children.append(child)
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)

def start():
    started = [subprocess.Popen(["/bin/sleep", "60"]) for _ in range(500)]

def thread():
    end = threading.Event()
    try:
        for _ in range(500):
            threading.Thread(target=end.wait, daemon=True).start()
    finally:
        end.set()

def one_file(where):
    try:
        with open(where + "/large", "wb") as file:
            for _ in range(200):
                file.write(bytes(1 << 20))
                file.flush()
    finally:
        os.unlink(where + "/large")

def run(input):
    return globals()[input[0]](*input[1:])
"""
SMALL = {"disk": 32 << 20, "processes": 64}


async def start(rig: Rig, agent: str = AGENT, **changes: Any) -> instances.InstanceStatus:
    spec = rig.spec_of({"agent.py": agent}, **changes)
    await rig.driver.start(spec)
    status = await until(rig, spec.id, is_in(READY, FAILED))
    assert status.phase is READY, status.problem
    return status


async def told(rig: Rig, instance_id: str, *call: object) -> dict[str, Any]:
    """The problem that the worker answers."""
    return await told_at(rig.home.instance_socket(instance_id), *call)


async def told_at(socket: Path, *call: object, session: str = "ses_any") -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(str(socket))
    body = json.dumps({"input": list(call)}).encode()
    head = f"POST /run HTTP/1.1\r\nhost: a\r\nconnection: close\r\nnexus-session-id: {session}\r\n"
    writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


@pytest.mark.parametrize(
    ("call", "code", "flag", "cause"),
    [
        (["bomb"], "instance.out_of_processes", "--process-limit 128", "allows 64"),
        (["flood", 4 << 20, False], "instance.out_of_disk", "--disk-limit 64Mi", "allows 32Mi"),
        (["flood", 4 << 20, True], "instance.out_of_disk", "--disk-limit 64Mi", "allows 32Mi"),
        pytest.param(["many"], "instance.out_of_disk", "--disk-limit 64Mi", "2048", marks=pytest.mark.slow),
        pytest.param(["deep"], "instance.out_of_disk", "--disk-limit 64Mi", "200 deep", marks=pytest.mark.slow),
    ],
    ids=["processes", "disk", "deleted files", "inodes", "depth"],
)
async def test_a_flood_ends_its_own_instance_and_says_why(call: list[object], code: str, flag: str, cause: str) -> None:
    layout = cgroups.detect("nexus-test-probe")
    cgroups.release(layout)
    if call == ["bomb"] and not layout.has("pids"):
        pytest.skip("nothing counts processes here")
    async with supervisor_rig.started() as rig:
        neighbour = await start(rig, supervisor_rig.GOOD)
        status = await start(rig, options=SMALL)
        with pytest.raises((ConnectionError, TimeoutError)):
            await rig.run(status.id, call, timeout_s=25)
        after = await until(rig, status.id, lambda status: status.restarts == 1 and status.phase is READY)
        end = after.last_end or {}
        assert (end["code"], end["kind"], end["phase"]) == (code, "exhausted", "run")
        assert cause in str(end["cause"])
        assert flag in str(end["next_step"])
        folder = rig.home.instances / status.id / "work"
        assert disk_use.measure([folder], limits.Limits()).files <= 1
        assert await rig.run(neighbour.id, "alive") == "alive"
        assert (await rig.status(neighbour.id)).restarts == 0


async def test_what_an_agent_leaves_is_removed_however_deep() -> None:
    async with supervisor_rig.started() as rig:
        status = await start(rig)
        running = asyncio.ensure_future(rig.run(status.id, ["deep"]))
        folder = rig.home.instances / status.id
        async with asyncio.timeout(20):
            while disk_use.measure([folder / "work"], limits.Limits()).deepest < limits.MOST_DEPTH:
                await asyncio.sleep(0.01)
        await rig.driver.stop(status.id, grace_s=0)
        await until_gone(rig, status.id)
        assert not folder.exists()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_run_that_meets_a_limit_is_told_which_and_its_instance_lives() -> None:
    async with supervisor_rig.started(plain=False) as rig:
        status = await start(rig, options=SMALL, memory_bytes=256 << 20)
        for call, code, limit in (
            (["fork"], "run.processes", 64),
            (["thread"], "run.processes", 64),
            (["one_file", "/tmp"], "run.disk", 32 << 20),
            (["one_file", "/dev/shm"], "run.disk", 32 << 20),
        ):
            problem = await told(rig, status.id, *call)
            assert (problem.get("code"), problem.get("kind")) == (code, "exhausted"), problem
            assert str(limit) in problem["cause"]
            assert "raise hosting." in problem["next_step"]
        assert (await rig.status(status.id)).restarts == 0


def test_a_bomb_is_told_from_an_agent_that_met_its_limit_once() -> None:
    forks = limits.Forks()
    assert forks.judge(64, 10, 64) is None
    assert forks.judge(64, 10, 64) is None  # full and content
    assert forks.judge(64, 20, 64) is None
    assert forks.judge(10, 30, 64) is None  # refused meanwhile, and few by now
    assert forks.judge(64, 40, 64) is None
    assert forks.judge(63, 50, 64) == limits.Excess("processes", 64, 63)


@pytest.mark.slow
async def test_a_flood_in_one_session_ends_that_session_alone() -> None:
    """Its folders lie in memory with a size of their own, so a full one is an error of the run; a bomb is ended."""
    options = {"isolation": "session", "network": "isolated", **SMALL}
    async with supervisor_rig.started(plain=False) as rig:
        status = await start(rig, options=options, memory_bytes=512 << 20)
        node = session_client.ProcessSessions(rig.driver)
        address = {name: (await node.place([status.id], name)).address for name in ("hostile", "neighbour")}
        hostile, neighbour = (Path(one.removeprefix("unix:")) for one in address.values())
        full = await told_at(hostile, "one_file", "/dev/shm", session="hostile")
        assert (full["code"], full["kind"]) == ("run.disk", "exhausted")
        full = await told_at(hostile, "flood", 4 << 20, False, session="hostile")
        assert (full["code"], full["kind"]) == ("run.disk", "exhausted")
        layout = cgroups.detect("nexus-test-probe")
        cgroups.release(layout)
        if layout.has("pids"):
            with pytest.raises((ValueError, ConnectionError, TimeoutError)):
                await told_at(hostile, "bomb", session="hostile")
            path = f"/sessions/{status.id}/hostile/end?since=0&wait_s=2"
            end = json.loads((await probe.get(rig.home.supervisor_socket, path, timeout_s=10))[1])["problem"]
            assert end["code"] == "instance.out_of_processes"
            assert "--process-limit 128" in end["next_step"]
        assert (await told_at(neighbour, "fork", session="neighbour"))["code"] == "run.processes"
        assert (await rig.status(status.id)).restarts == 0
