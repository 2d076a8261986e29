"""The tiers that the probe runs in, each on a real supervisor, and what the harness puts outside for it to find."""

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import supervisor_rig

from nexus.core import instances
from nexus.core.phases import InstancePhase
from nexus.drivers.process import launcher, session_client
from nexus.kit.home import Home
from nexus.ports import session_node
from nexus.testing.driver_contract import is_in, until

PROBE = Path(__file__).with_name("probe.py").read_text()
NOBODY = 65534
NAMED = ["api.example.com", "127.0.0.1", "localhost", "169.254.169.254", "10.0.0.1", "[::1]"]
OPTIONS: dict[str, dict[str, object]] = {
    "restricted": {},
    "isolated": {"network": "isolated"},
    "egress": {"network": "egress", "egress": NAMED},
    "baseline": {"security_context": "baseline"},
    "user": {},
    "unboxed": {},
    "session": {"isolation": "session", "network": "isolated", "session": {"freeze_after_s": 3600.0}},
    "gvisor": {"runtime_class": "gvisor", "network": "isolated"},
    "gvisor-egress": {"runtime_class": "gvisor", "network": "egress", "egress": NAMED},
    "gvisor-session": {
        "runtime_class": "gvisor",
        "isolation": "session",
        "network": "isolated",
        "session": {"freeze_after_s": 3600.0, "warm": 0},
    },
}
HOST_VARIABLE = "PROBE_HOST_SECRET"
OF_THE_HOST = ("session", "gvisor", "gvisor-egress", "gvisor-session")  # tiers whose worker is the host's own


class UserRig(supervisor_rig.SupervisorRig):
    """A supervisor that is an ordinary user's, on an interpreter that this user may read."""

    def command(self) -> list[str]:
        return [
            "setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
            "--",
            user_python(),
            *super().command()[1:],
        ]


class WeakRig(supervisor_rig.SupervisorRig):
    """A supervisor on a machine that refuses one layer."""

    layer = "namespaces"

    def command(self) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("without.py")), self.layer, "--", *super().command()]


def user_python() -> str:
    """An interpreter of our own version outside of any private folder; empty when there is none."""
    name = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    return name if os.path.exists(name) and shutil.which("setpriv") and os.geteuid() == 0 else ""


def lacking(tier: str) -> str:
    """Why this tier cannot be made here; empty when it can."""
    if not sys.platform.startswith("linux"):
        return "the box is Linux's"
    if tier == "user" and not user_python():
        return "needs root, setpriv and a /usr/bin/python of this version"
    if tier == "unboxed" and os.geteuid() != 0:
        return "playing a weak machine needs root"
    if tier.startswith("gvisor") and (os.geteuid() != 0 or shutil.which("runsc") is None):
        return "needs root and runsc (Debian: apt install runsc)"
    return ""


@contextlib.asynccontextmanager
async def supervised(tier: str) -> AsyncIterator[supervisor_rig.SupervisorRig]:
    root = Path(tempfile.mkdtemp(prefix="nexus-escape-"))
    rig = {"user": UserRig, "unboxed": WeakRig}.get(tier, supervisor_rig.SupervisorRig)(root, plain=tier not in OF_THE_HOST)
    rig.environ = {HOST_VARIABLE: "canary", "PYTHONDONTWRITEBYTECODE": "1", "SSH_AUTH_SOCK": str(root / "keys")}
    if tier == "user":
        shutil.chown(root, NOBODY, NOBODY)
        packages = [entry for entry in sys.path if entry.endswith("site-packages")]
        source = str(Path(supervisor_rig.launcher.__file__).parents[3])
        rig.environ |= {"PYTHONPATH": os.pathsep.join([source, *packages]), "HOME": str(root), "TMPDIR": "/tmp"}
        rig.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    try:
        await rig.up()
        yield rig
    finally:
        await rig.close()
        shutil.rmtree(root, ignore_errors=True)


async def started(rig: supervisor_rig.SupervisorRig, options: dict[str, object], **changes: Any) -> instances.InstanceStatus:
    mark = f"# {changes.get('tenant', 'acme')}\n"  # or both would share one unpacked source
    spec = rig.spec_of({"agent.py": mark + PROBE}, options=options, **changes)
    for package in rig.home.packages.iterdir():
        package.chmod(0o644)
    await rig.driver.start(spec)
    status = await until(rig, spec.id, is_in(InstancePhase.READY, InstancePhase.FAILED))
    assert status.phase is InstancePhase.READY, status.problem
    return status


@contextlib.contextmanager
def outside(home: Path) -> Any:
    """What lies outside and must stay there: a secret file, a process, an abstract socket, a port."""
    secret = home / "host.secret"
    secret.write_text("canary")
    secret.chmod(0o644)
    process = subprocess.Popen(["sleep", "600"])
    abstract = f"nexus-escape-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener, socket.create_server(("127.0.0.1", 0)) as server:
        listener.bind("\0" + abstract)
        listener.listen()
        try:
            yield {
                "host_file": str(secret),
                "home": str(home),
                "pid": process.pid,
                "abstract": abstract,
                "port": server.getsockname()[1],
                "host_variable": HOST_VARIABLE,
            }
        finally:
            process.kill()
            process.wait()


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where an agent is asked: an instance, or one of an instance's sessions."""

    socket: Path
    pid: int | None
    instance_id: str
    session: str = "ses_any"

    async def ask(self, given: object, *, timeout_s: float = 30.0) -> Any:
        body = json.dumps({"input": given}).encode()
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(str(self.socket), limit=2**24)
            head = f"POST /run HTTP/1.1\r\nhost: a\r\nconnection: close\r\nnexus-session-id: {self.session}\r\n"
            writer.write(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
            answer = await reader.read()
            writer.close()
        told = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert "output" in told, told
        return told["output"]


async def places(rig: supervisor_rig.SupervisorRig, options: dict[str, object]) -> tuple[Place, Place]:
    """A neighbour and a prober: two tenants' instances, or two sessions of one instance."""
    if options.get("isolation") != "session":
        pair = await started(rig, options, tenant="other"), await started(rig, options)
        found = [Place(rig.home.instance_socket(one.id), one.pid, one.id) for one in pair]
        return found[0], found[1]
    instance = await started(rig, options)
    node = session_client.ProcessSessions(rig.driver)
    made = []
    for name in ("neighbour", "prober"):
        place = await node.place([instance.id], name)
        pid = next(one.pid for one in await node.sessions(session_node.SessionQuery(tenant="acme")) if one.session_id == name)
        made.append(Place(Path(place.address.removeprefix("unix:")), pid, instance.id, name))
    return made[0], made[1]


async def attack(rig: supervisor_rig.SupervisorRig, options: dict[str, object]) -> dict[str, list[str]]:
    """Every probe in one box, while a neighbour's box stands beside it."""
    door = rig.home.door_socket(0)
    if not door.exists():
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(door))
        door.chmod(0o666)
    neighbour, prober = await places(rig, options)
    planted = await neighbour.ask({"do": "plant"})
    with outside(rig.home.root) as target:
        target |= {
            "supervisor": str(rig.home.supervisor_socket),
            "record": str(rig.home.instances / prober.instance_id / "status.json"),
            "door": str(door),
            "neighbour": {**planted, "pid": neighbour.pid, "published": str(neighbour.socket)},
        }
        before = fingerprint(*code_of(rig.home))
        found: dict[str, list[str]] = await prober.ask({"do": "probe", "target": target}, timeout_s=200)
        assert fingerprint(*code_of(rig.home)) == before, "it changed code that others run"
    return found


def code_of(home: Home) -> list[Path]:
    """What every agent of a host runs, and none may change."""
    return [home.packages, home.root / "sources", home.environments, home.worker_copies, home.doors]


def fingerprint(*folders: Path) -> dict[str, tuple[int, ...]]:
    """Each file below them with what changes when somebody touches it."""
    found = {}
    for folder in folders:
        for directory, folders_, files in os.walk(folder):
            for name in (*folders_, *files):
                entry = os.lstat(os.path.join(directory, name))
                found[os.path.join(directory, name)] = (
                    entry.st_ino, entry.st_mode, entry.st_uid, entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns
                )  # fmt: skip
    return found


def left_behind(rig: supervisor_rig.SupervisorRig) -> list[str]:
    """What is still of a host that has ended: processes, control groups, mounts."""
    root, marks = str(rig.home.root), [one.encode() for one in (str(rig.home.root), *rig.instance_ids)]
    found = [line for line in Path("/proc/mounts").read_text().splitlines() if root in line]
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            told = Path(f"/proc/{name}/cmdline").read_bytes() + Path(f"/proc/{name}/environ").read_bytes()
            if int(name) != os.getpid() and launcher.born(int(name)) and any(mark in told for mark in marks):
                found.append(f"process {name}: {told[:200]!r}")
    for folder, folders, _ in os.walk("/sys/fs/cgroup"):  # others come and go meanwhile, which a walk takes as it finds
        found += [f"{folder}/{name}" for name in folders if name.startswith(tuple(rig.instance_ids))]
    return found


async def lasting(rig: supervisor_rig.SupervisorRig) -> list[str]:
    """What is left behind and stays, when the kernel was given a moment to let go of it."""
    for _ in range(50):
        if not left_behind(rig):
            break
        await asyncio.sleep(0.1)
    return left_behind(rig)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if launcher.born(pid) is not None]


def main() -> None:
    """Print which tiers this machine has, and why it lacks the others."""
    for tier in OPTIONS:
        print(f"{tier:16} {lacking(tier) or 'here'}")


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
