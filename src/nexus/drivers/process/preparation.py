"""What must stand before a launch: unpacked source, built environment, worker copy; and the launch itself as data."""

import asyncio
import contextlib
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexus.core import errors, instances
from nexus.drivers.process import box_relay, egress_broker, egress_rules, environment_plans, environments, limits, paths, sandbox
from nexus.kit.home import Home
from nexus.wire import archive

_PYTHON = re.compile(r"\d+\.\d+(\.\d+)?")
OnStep = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The three folders a launch needs."""

    source: Path
    environment: Path
    worker_copy: Path


class Preparation:
    """Shared by all instances of a node: each package is unpacked once and each environment built once."""

    def __init__(self, home: Home, built: environments.Environments, worker_copy: Callable[[], Awaitable[Path]]) -> None:
        self._home = home
        self._environments = built
        self._worker_copy = worker_copy
        self._unpacking: dict[str, asyncio.Lock] = {}

    async def prepare(self, spec: instances.InstanceSpec, on_step: OnStep) -> Prepared:
        """Raises `errors.NexusError` with phase `build`."""
        source = paths.source(self._home, spec.package_digest)
        if not source.is_dir():
            on_step("unpacking", "")
            await self._unpack(spec.package_digest, source)
        python = spec.options.get("python")
        plan = await asyncio.to_thread(
            environment_plans.plan_environment,
            source,
            package_digest=spec.package_digest,
            host_python=environments.host_python(),
            python=_checked_python(python) if python is not None else None,
        )
        await asyncio.to_thread(open_to_agents, source)  # what is built from source is another user's too
        environment = await self._environments.ensure(plan, on_step)
        copy = await self._worker_copy()
        for folder in (environment, copy):
            await asyncio.to_thread(open_to_agents, folder)
        touch(source)
        touch(environment)
        return Prepared(source=source, environment=environment, worker_copy=copy)

    async def _unpack(self, digest: str, target: Path) -> None:
        async with self._unpacking.setdefault(digest, asyncio.Lock()):
            if target.is_dir():  # noqa: ASYNC240 - one stat
                return
            try:
                await asyncio.to_thread(archive.unpack, paths.package(self._home, digest), target)
            except errors.NexusError as error:
                error.phase = error.phase or "build"
                raise
        self._unpacking.pop(digest, None)


def _checked_python(value: object) -> str:
    text = str(value)
    if not _PYTHON.fullmatch(text) or tuple(int(part) for part in text.split(".")[:2]) < (3, 11):
        raise errors.AgentFailed(
            f"Python {text[:20]!r} cannot run an agent",
            code="build.python_missing",
            phase="build",
            cause="3.11 or newer is needed",
            next_step="change hosting.python",
        )
    return text


def make_folders(at: paths.InstancePaths, *, empty: bool = False) -> None:
    """The instance's own folders, with an empty temporary one, and with `empty` an empty work directory.

    Raises `Exhausted` (`disk.full`) or `Unavailable`.
    """
    try:
        if empty:
            remove_tree(at.work)
        at.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        at.work.mkdir(exist_ok=True, mode=0o700)
        remove_tree(at.temporary)
        at.temporary.mkdir(mode=0o700)
        at.stage.mkdir(exist_ok=True, mode=0o700)
        at.socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        remove_tree(at.shared)
        at.shared.mkdir(mode=0o700)
        at.socket.unlink(missing_ok=True)
    except OSError as error:
        raise errors.Exhausted(
            f"cannot make the folders of an instance below {at.root.parent}",
            code="disk.full" if error.errno == 28 else "disk.failed",
            phase="start",
            cause=error.strerror,
            next_step="see what the disk is short of with: df -h",
        ) from error


def touch(folder: Path) -> None:
    """Say that it is in use, for `prune`."""
    with contextlib.suppress(OSError):
        os.utime(folder)


def prune(folder: Path, *, before: float) -> list[str]:
    """Remove what was not touched since `before`; each is renamed first, so nobody meets half of it."""
    gone = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.stat().st_mtime >= before:
            continue
        aside = entry.with_name(f".{entry.name}.gone")
        remove_tree(aside)
        with contextlib.suppress(OSError):
            entry.rename(aside)
            gone.append(entry.name)
    for aside in folder.glob(".*.gone"):
        remove_tree(aside)
    return gone


def remove_tree(folder: Path) -> None:
    """Whatever an agent made of it. Follows no link."""
    with contextlib.suppress(RecursionError):  # a tree deeper than Python's stack
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        subprocess.run(["/bin/rm", "-rf", "--", folder], check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def forget(at: paths.InstancePaths) -> None:
    """Nothing of the instance stays but its log. Never follows links that the agent left there."""
    with contextlib.suppress(OSError):
        at.socket.unlink(missing_ok=True)
    for folder in (at.shared, at.way, at.root):
        remove_tree(folder)


def render_environ(spec: instances.InstanceSpec, at: paths.InstancePaths, ready: Prepared, *, temporary: Path) -> dict[str, str]:
    """Every variable of the box and nothing of the host's. Ours win over the author's, secrets over settings."""
    environ = {
        "PATH": os.pathsep.join([str(ready.environment / "bin"), "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": str(at.work),
        "LANG": "C.UTF-8",
        "TMPDIR": str(temporary),
        "PYTHONUNBUFFERED": "1",
        "VIRTUAL_ENV": str(ready.environment),
        **(egress_broker.environment(box_relay.PORT) if spec.options.get("network") == "egress" else {}),
        **{name: str(value) for name, value in spec.env.items()},
        **spec.secrets,
        "NEXUS_INSTANCE_ID": spec.id,
        "NEXUS_AGENT": spec.agent,
        "NEXUS_AGENT_VERSION": spec.version,
        "NEXUS_ENVIRONMENT": spec.environment,
        "NEXUS_SOURCE": str(ready.source),
        "NEXUS_ENTRYPOINT": spec.entrypoint,
        "NEXUS_SOCKET": str(at.worker_socket),
        "NEXUS_DOOR": spec.door,
        "NEXUS_TOKEN": spec.token,
        "NEXUS_STATUS_FILE": str(at.worker_status),
        "NEXUS_LIMITS": limits.read_limits(spec).to_environ(),
        "NEXUS_RUN_TIMEOUT_S": f"{spec.run_timeout_s:g}",
        "NEXUS_HEALTH_PATH": spec.health.path,
        "NEXUS_GRACE_S": f"{spec.run_timeout_s:g}",  # the supervisor ends its patience by a second SIGTERM
    }
    if concurrency := spec.options.get("concurrency"):
        environ["NEXUS_CONCURRENCY"] = str(concurrency)
    session = spec.options.get("session")
    if isinstance(session, Mapping) and session.get("on_message", "queue") != "queue":
        environ["NEXUS_ON_MESSAGE"] = str(session["on_message"])
    if spec.options.get("traces"):
        environ["NEXUS_TRACES"] = "1"
    return environ


def render_wish(spec: instances.InstanceSpec, at: paths.InstancePaths, ready: Prepared, *, doors: Path) -> sandbox.Wish:
    """What the instance sees of this machine: its own folders, and to read its code, its environment and the doors."""
    options = spec.options
    network = str(options.get("network", "host"))
    needed, links = sandbox.interpreter(ready.environment / "bin" / "python", private=at.root)
    door = Path(spec.door)
    return sandbox.Wish(
        stage=at.stage,
        folder=ready.source,
        home=at.work,
        output=at.output,
        read=[
            *(ready.source, ready.environment, ready.worker_copy, doors if door.parent == doors else door),
            *([at.way] if network == "egress" else []),
            *needed,
        ],
        write=[at.work, at.shared, at.temporary],
        links=links,
        **_isolation(options),
        way=at.way / egress_broker.SOCKET if network == "egress" else None,
        pins=egress_rules.plan_pins(egress_rules.read_rules(options)) if network == "egress" else (),
        memory_bytes=spec.memory_bytes,
    )


def draft_wish(spec: instances.InstanceSpec, at: paths.InstancePaths) -> sandbox.Wish:
    """What it asks of the machine, before anything is built for it: enough to refuse it."""
    forks = spec.options.get("isolation") == "session"
    return sandbox.Wish(stage=at.stage, folder=at.root, home=at.work, output=at.output, zygote=forks, **_isolation(spec.options))


def _isolation(options: Mapping[str, object]) -> dict[str, Any]:
    return {
        "context": str(options.get("security_context", sandbox.RESTRICTED)),
        "network": str(options.get("network", "host")),
        "read_only_root": options.get("read_only_root") is not False,
        "untrusted": options.get("untrusted") is True,
        "runtime": str(options.get("runtime_class") or ""),
    }


def open_to_agents(folder: Path) -> None:
    """Agents are other users: let them read what is theirs to read. The folders above stay their owner's alone. Once each."""
    if folder.stat().st_mode & 0o005 == 0o005:
        return
    for directory, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode) and mode & 0o004 == 0:
                os.chmod(path, stat.S_IMODE(mode) | 0o044 | (mode & 0o100) >> 3 | (mode & 0o100) >> 6)
        os.chmod(directory, 0o755)  # noqa: S103 - the top one last: it says that all of it is done


def render_command(ready: Prepared) -> list[str]:
    return [str(ready.environment / "bin" / "python"), "-P", str(ready.worker_copy / "boot.py")]
