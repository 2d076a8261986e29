"""What is launched and found again: plans, handles, and a running instance. `box_launcher` starts them."""

import asyncio
import contextlib
import fcntl
import functools
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

import psutil

from nexus.core import errors
from nexus.drivers.process import cgroups, limits, sandbox

_REAP_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a launch needs. `output` is a descriptor the child inherits as standard output and error, `extra` one more that
    it finds as `box_entry.EXTRA`. `box` names a zygote's box, of which an instance may have several in turn, and its control
    group.
    """

    instance_id: str
    command: Sequence[str]
    environ: Mapping[str, str] = field(repr=False)
    folder: Path
    output: int
    memory_bytes: int | None
    cpu_millis: int | None
    wish: sandbox.Wish | None = None
    extra: int | None = None
    box: str = ""
    allowed: limits.Limits = field(default_factory=limits.Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """What is needed to find the process again: its pid is only trusted with the same start time in the same boot.

    In a box `pid` is the box's init, whose end is the end of all, and `worker` the agent's own process.
    """

    pid: int
    born: int
    boot: str
    groups: Mapping[str, str] = field(default_factory=dict)
    instance_id: str = ""
    worker: int = 0
    box: str = ""

    @property
    def shown(self) -> int:
        """The process that people want to see: the worker."""
        return self.worker or self.pid


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How it ended; `code` and `signal` are None for an adopted process, whose parent hears it instead of us."""

    code: int | None = None
    signal: int | None = None
    out_of_memory: bool = False
    excess: limits.Excess | None = None

    def text(self) -> str:
        if self.out_of_memory:
            return "it used all the memory it may have"
        if self.signal is not None:
            return f"it was ended by {signal.Signals(self.signal).name}"
        return "it ended" if self.code is None else f"it exited with code {self.code}"


class Launcher(Protocol):
    """Starts and finds processes. `launch` may block for some milliseconds and raises `errors.NexusError`."""

    def look(self) -> sandbox.Layers:
        """The layers of isolation in force on this machine. May block for some milliseconds the first time."""
        ...

    def launch(self, plan: Plan) -> "Running": ...

    def adopt(self, handle: Handle) -> "Running | None":
        """The process that the handle names, or None when it has ended."""
        ...


class Running:
    """One running instance: signal it, wait for its end, kill all of it, count what it used."""

    def __init__(
        self,
        handle: Handle,
        *,
        pidfd: int,
        group: cgroups.Group,
        child: subprocess.Popen[bytes] | None,
        ours: bool | None = None,
    ) -> None:
        """`ours`: it is a child of this process, so its exit is for us to take; with `child` that goes without saying."""
        self.handle = handle
        self._pidfd = pidfd
        self._group = group
        self._child = child
        self._ours = child is not None if ours is None else ours
        self._kills = group.memory_kills()
        self._forks = limits.Forks()
        self._excess: limits.Excess | None = None
        self._exit: Exit | None = None

    async def wait(self) -> Exit:
        """Returns once the process has ended; may be called again."""
        if self._exit is None:
            loop = asyncio.get_running_loop()
            ended: asyncio.Future[None] = loop.create_future()
            watched = os.dup(self._pidfd)
            loop.add_reader(watched, _resolve, ended)
            try:
                await ended
            finally:
                loop.remove_reader(watched)
                os.close(watched)
            self._exit = self._reap()
        return self._exit

    def send(self, number: signal.Signals) -> None:
        """The signal to the first process only; nothing when it has ended."""
        if self._pidfd < 0:
            return
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, number)

    def end_for(self, excess: limits.Excess) -> None:
        """Kill it for going over this limit; its exit says so."""
        if self._exit is None and self._excess is None:
            self._excess = excess
            self.kill_all()

    def count_processes(self, limit: int) -> limits.Excess | None:
        """What its control group tells of a process bomb; None: none, or not counted here."""
        return self._forks.judge(self._group.process_count(), self._group.process_refusals(), limit)

    def processes(self) -> list[int]:
        """By our numbers, as its control group knows them; without one, the first process and what comes of it."""
        return self._group.processes() or [process.pid for process in self._tree()]

    def kill_all(self) -> None:
        """SIGKILL for every process of the instance."""
        boxed = self.handle.worker != 0  # then nothing outlives the first process
        tree = self._tree() if self._exit is None and not boxed else []
        self.send(signal.SIGKILL)
        self._group.kill()
        if born(self.handle.pid) in (None, self.handle.born):  # else the number belongs to a stranger by now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.handle.pid, signal.SIGKILL)
        for process in tree:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if not self.handle.groups and not boxed:
            kill_marked(self.handle.instance_id)

    def usage(self) -> tuple[float, int]:
        """CPU seconds and bytes of memory of all processes of the instance."""
        cpu, memory = self._group.cpu_s(), self._group.memory_bytes()
        if cpu is None or memory is None:
            tree_cpu, tree_memory = 0.0, 0
            for process in self._tree():
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    tree_cpu += times.user + times.system
                    tree_memory += process.memory_info().rss
            cpu = tree_cpu if cpu is None else cpu
            memory = tree_memory if memory is None else memory
        return cpu, memory

    def secrets_of(self, names: Sequence[str]) -> dict[str, str]:
        """Values of these variables as the process was given them: how an adopting supervisor learns what is never on disk."""
        try:
            block = Path(f"/proc/{self.handle.shown}/environ").read_bytes()
        except OSError:
            return {}
        pairs = (entry.partition(b"=") for entry in block.split(b"\0"))
        values = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
        return {name: values[name] for name in names if name in values}

    async def close(self) -> None:
        """Kill whatever of it is left, take its exit so that no zombie stays, and remove its group. May be called again."""
        self.kill_all()
        if self._pidfd >= 0:
            with contextlib.suppress(TimeoutError):  # a process stuck in the kernel cannot be waited for
                async with asyncio.timeout(_REAP_S):
                    await self.wait()
        await asyncio.to_thread(cgroups.wait_removed, self._group)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def release(self) -> cgroups.Group:
        """Give the process up to somebody else, with its group."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        return self._group

    def _tree(self) -> list[psutil.Process]:
        try:
            first = psutil.Process(self.handle.pid)
            return [first, *first.children(recursive=True)]
        except psutil.Error:
            return []

    def _reap(self) -> Exit:
        out_of_memory = self._group.memory_kills() > self._kills
        if not self._ours:
            return Exit(out_of_memory=out_of_memory, excess=self._excess)
        code = self._child.wait(timeout=5) if self._child is not None else take_exit(self._pidfd)
        if self.handle.worker and code > 128 and code - 128 in signal.valid_signals():
            code = 128 - code  # as the box's init tells that the worker was ended by a signal
        if code >= 0:
            return Exit(code=code)
        killed = -code == signal.SIGKILL
        return Exit(signal=-code, out_of_memory=out_of_memory and killed, excess=self._excess if killed else None)


def take_exit(pidfd: int) -> int:
    """The exit code of a child that has ended, a signal as a negative number."""
    found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    if found is None:
        return 0
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def _resolve(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


def marked(instance_id: str) -> list[int]:
    """Processes that were given this instance's id: how a daemon is found that left its session, where no group holds it."""
    mark = b"NEXUS_INSTANCE_ID=" + instance_id.encode()
    found = []
    for name in os.listdir("/proc"):
        if instance_id and name.isdigit():
            with contextlib.suppress(OSError):
                if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found.append(int(name))
    return found


def kill_marked(instance_id: str) -> None:
    for pid in marked(instance_id):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
            cgroups.thaw(pid)


@functools.cache
def boot_id() -> str:
    """This boot of this kernel: pids of another one mean nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def born(pid: int) -> int | None:
    """A process's start time in clock ticks since boot; None when it is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def parent(pid: int) -> int | None:
    """The number of a process's parent; None when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


@dataclass(slots=True)
class Lock:
    """Holds one supervisor per home: a lock on a file that ends with the process."""

    path: Path
    _file: int = -1

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._file)
            raise errors.Conflict(
                f"another supervisor runs on {self.path.parent}",
                code="host.already_running",
                next_step="see it with: nexus status",
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
