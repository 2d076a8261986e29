"""Sessions with workers of their own on a real supervisor: place them, talk to them, look at what is left of them."""

import asyncio
import atexit
import contextlib
import functools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import supervisor_rig

from nexus.core import instances, sessions
from nexus.core.phases import InstancePhase
from nexus.drivers.process import launcher, session_client
from nexus.ports import session_node

AGENT = """
import os, random, socket, sys, tempfile, threading, uuid

def run(given):
    what, *rest = given if isinstance(given, list) else [given]
    return globals()["do_" + what](*rest)

def do_echo(value=None): return value
def do_who():
    return {"pid": os.getpid(), "host": socket.gethostname(), "random": random.random(), "temporary": tempfile.mktemp(),
            "uuid": str(uuid.uuid1()), "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
            "environ": dict(os.environ), "groups": open("/proc/self/cgroup").read()}
def do_write(path, text):
    path = path.replace("~", os.environ["HOME"])
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, "w").write(text)
def do_read(path):
    try: return open(path.replace("~", os.environ["HOME"])).read()
    except OSError as error: return type(error).__name__
def do_list(path): return sorted(os.listdir(path.replace("~", os.environ["HOME"])))
def do_die(code): os._exit(code)
def do_eat(mib):
    kept = bytearray()
    for _ in range(mib): kept += os.urandom(1024) * 1024
    return len(kept)
def do_print(text): print(text, flush=True)
def do_daemon():
    import subprocess
    subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000"], start_new_session=True)
def do_descriptors(): return sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{n}"))
"""  # noqa: E501


class SessionRig:
    """`instance` is ready. `sessions` is the client of the supervisor that control uses."""

    def __init__(self, rig: supervisor_rig.SupervisorRig, spec: instances.InstanceSpec) -> None:
        self.rig, self.spec = rig, spec
        self.sessions = session_client.ProcessSessions(rig.driver)

    async def place(self, session_id: str, *others: instances.InstanceSpec) -> sessions.SessionPlace:
        return await self.sessions.place([self.spec.id, *(one.id for one in others)], session_id)

    async def run(self, session_id: str, given: Any, *, timeout_s: float = 30.0) -> Any:
        """Place the session and run something in it."""
        place = await self.place(session_id)
        return await call(place.address, session_id, given, timeout_s=timeout_s)

    async def status(self, session_id: str) -> sessions.SessionStatus:
        found = await self.all()
        return next(one for one in found if one.session_id == session_id)

    async def all(self) -> list[sessions.SessionStatus]:
        return list(await self.sessions.sessions(session_node.SessionQuery(tenant=self.spec.tenant, agent=self.spec.agent)))

    async def reach(self, session_id: str, phase: sessions.SessionPhase, *, timeout_s: float = 20.0) -> sessions.SessionStatus:
        async with asyncio.timeout(timeout_s):
            while (found := await self.status(session_id)).phase is not phase:
                await asyncio.sleep(0.02)
        return found

    async def order(self, session_id: str, verb: str) -> dict[str, Any]:
        return await self.rig.driver.ask("POST", f"/sessions/{self.spec.id}/{session_id}/{verb}", content=b"{}")

    async def last_end(self, session_id: str) -> dict[str, Any]:
        path = f"/sessions/{self.spec.id}/{session_id}/end"
        return dict((await self.rig.driver.ask("GET", path, params={"wait_s": "5"}))["problem"])

    async def zygote(self) -> int:
        pid = (await self.rig.status(self.spec.id)).pid
        assert pid is not None
        return pid

    async def record(self, session_id: str) -> dict[str, Any]:
        """What a next supervisor would find, once it is written."""
        async with asyncio.timeout(20.0):
            while True:
                for file in (self.rig.home.instances / self.spec.id / "sessions").glob("*.json"):
                    found = json.loads(file.read_text())
                    if found.get("session_id") == session_id:
                        return dict(found)
                await asyncio.sleep(0.005)


async def call(address: str, session_id: str, given: Any, *, timeout_s: float = 30.0) -> Any:
    """`POST /run` on a session's socket: the output, or the problem. ConnectionError when it dies meanwhile."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"), limit=2**24)
        try:
            body = json.dumps({"input": given}).encode()
            writer.write(
                b"POST /run HTTP/1.1\r\nhost: instance\r\nconnection: close\r\ncontent-type: application/json\r\n"
                b"nexus-session-id: %s\r\ncontent-length: %d\r\n\r\n" % (session_id.encode(), len(body)) + body
            )
            answer = await reader.read()
        finally:
            writer.close()
    try:
        value = json.loads(answer.partition(b"\r\n\r\n")[2])
    except ValueError:
        raise ConnectionError("it died") from None
    return value.get("output", value)


async def ready(rig: supervisor_rig.SupervisorRig, *, code: str = AGENT, **changes: Any) -> SessionRig:
    """An instance of a new agent whose sessions have workers of their own."""
    session = {"freeze_after_s": 3600, "stop_after_s": 7200, **changes.pop("session", {})}
    options = {"isolation": "session", "network": "isolated", "session": session, **changes.pop("options", {})}
    spec = rig.spec_of({"agent.py": code}, options=options, **{"memory_bytes": 256 * 2**20, **changes})
    await start(rig, spec)
    return SessionRig(rig, spec)


async def start(rig: supervisor_rig.SupervisorRig, spec: instances.InstanceSpec) -> None:
    await rig.driver.start(spec)
    async with asyncio.timeout(60):
        while (status := await rig.status(spec.id)).phase is not InstancePhase.READY:
            assert status.phase is not InstancePhase.FAILED, status.problem
            await asyncio.sleep(0.02)


@functools.cache
def shared() -> Path:
    """Worker copy and environments of all homes of this process: made once."""
    folder = Path(tempfile.mkdtemp(prefix="nexus-shared-"))
    folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextlib.asynccontextmanager
async def supervisor() -> AsyncIterator[supervisor_rig.SupervisorRig]:
    root = Path(tempfile.mkdtemp(prefix="nexus-node-"))
    for name in ("worker", "environments"):
        (shared() / name).mkdir(exist_ok=True)
        (root / name).symlink_to(shared() / name)
    rig = supervisor_rig.SupervisorRig(root, plain=False)
    try:
        await rig.up()
        yield rig
    finally:
        await rig.close()
        shutil.rmtree(root, ignore_errors=True)


def alive(pid: int) -> bool:
    return launcher.born(pid) is not None


async def gone(*pids: int, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while any(alive(pid) for pid in pids):
            await asyncio.sleep(0.01)


def leavings(rig: supervisor_rig.SupervisorRig) -> list[str]:
    """Whatever of sessions is still on this machine: processes, groups, sockets, files."""
    root = str(rig.home.root)
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if any(part.startswith(os.fsencode(root)) and part.endswith(b"boot.py") for part in command):
                found.append(f"process {pid}")
    found += [str(path) for path in (rig.home.run / "s").glob("*")]
    found += [str(path) for path in rig.home.instances.glob("*/sessions/*")]
    for hierarchy in Path("/sys/fs/cgroup").glob("*/nexus-*"):
        found += [str(group) for group in hierarchy.glob("ins_*.*") if any(one in group.name for one in rig.instance_ids)]
    return found
