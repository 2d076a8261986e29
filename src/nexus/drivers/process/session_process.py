"""The processes of one session: a keeper, pid 1 of its box, and the worker. Kill them, freeze them, count what they use."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nexus.drivers.process import appetite, cgroups, launcher, limits

_END_S = 5.0
_TOLD_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """What a new supervisor needs to find a session's box again. `name` is the worker's own, `pid` its keeper's."""

    name: str
    pid: int
    born: int
    boot: str
    worker: int = 0
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """`code` is None when nobody could tell; a signal is negative. `memory`/`processes`: how often that limit was hit.
    `excess`: the node ended it for going over this one."""

    code: int | None = None
    memory: int = 0
    processes: int = 0
    excess: limits.Excess | None = None


class Process:
    """Takes over `pidfd`. `ours`: it is our own child, whose exit we take; else its zygote tells, by `note_code`."""

    def __init__(self, handle: Handle, *, pidfd: int, group: cgroups.Group, ours: bool = False) -> None:
        self.handle = handle
        self.group = group
        self.code: int | None = None
        self.frozen = False
        self._pidfd = pidfd
        self._ours = ours
        self._cpu = 0.0
        self._forks = limits.Forks()
        self._refusals, self._used = group.refusal_counter(), group.cpu_counter()
        self._appetite = appetite.Appetite()
        self._excess: limits.Excess | None = None
        self._told = asyncio.Event()
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, self._on_end)

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    async def wait(self) -> Ended:
        """Returns once the keeper, and with it everything in the box, has ended."""
        await self._ended.wait()
        if not self._told.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TOLD_S):
                    await self._told.wait()
        return Ended(
            code=self.code, memory=self.group.memory_kills(), processes=self.group.process_refusals(), excess=self._excess
        )

    def note_code(self, code: int) -> None:
        """How the keeper ended: 128 and more is the worker's signal, as a shell tells it."""
        self.code = code
        self._told.set()

    def send(self, number: signal.Signals) -> None:
        """To the keeper, which hands it to the worker."""
        if self._pidfd >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, number)

    def hold(self, number: signal.Signals) -> None:
        """SIGSTOP or SIGCONT to the worker alone; the keeper goes on."""
        if self.handle.worker and not self.ended:
            with contextlib.suppress(OSError):
                os.kill(self.handle.worker, number)

    def kill(self) -> None:
        """Everything in the box: the kernel ends a process namespace with its first process."""
        if self.frozen:
            self.thaw()
        self.send(signal.SIGKILL)

    def look_at_processes(self, limit: int) -> None:
        """End it when it goes on making processes at its limit."""
        refused = self._refusals.count()
        count = self.group.process_count() if refused > self._forks.refused else 0
        excess = self._forks.judge(count, refused, limit)
        if excess is not None and not self.ended:
            self._excess = excess
            self.kill()

    @property
    def gives_way(self) -> bool:
        return self._appetite.gives_way

    def look_at_processor(self, now: float, much: float) -> None:
        """While it uses much of the processor, others come first."""
        before = self.gives_way
        if self._appetite.judge(self._used.count() / 1e9, now, much) != before:
            self.group.set_weight(low=not before)

    def _close_counters(self) -> None:
        self._refusals.close()
        self._used.close()

    def freeze(self) -> bool:
        """No CPU for anything in the box until `thaw`. False: it cannot be done here, or has ended."""
        if self.ended or not (self.group.can_freeze or self.handle.worker):
            return False  # another kernel's processes cannot be stopped one by one
        if self.group.can_freeze:
            if not self.group.freeze():
                return False
        else:
            for pid in self._tree():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGSTOP)
        self.frozen = True
        return True

    def thaw(self) -> None:
        if not self.frozen:
            return
        self.frozen = False
        if self.group.can_freeze:
            self.group.thaw()
        else:
            for pid in reversed(self._tree()):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGCONT)

    def cpu_s(self) -> float:
        """CPU seconds of everything in the box so far; never less than what was said before."""
        counted = self.group.cpu_s()
        if counted is None:
            counted = sum(_cpu_of(pid) for pid in self._tree())
        self._cpu = max(self._cpu, counted)
        return self._cpu

    @property
    def counted_cpu_s(self) -> float:
        """What `cpu_s` said last."""
        return self._cpu

    def memory_bytes(self) -> int:
        counted = self.group.memory_bytes()
        return counted if counted is not None else sum(_memory_of(pid) for pid in self._tree())

    async def close(self) -> None:
        """Kill what is left and forget it: no process, no control group, no descriptor. May be called again."""
        if self._pidfd < 0:
            return
        self.kill()
        with contextlib.suppress(TimeoutError):  # a process stuck in the kernel cannot be waited for
            async with asyncio.timeout(_END_S):
                await self._ended.wait()
        if not self.ended:
            asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._close_counters()
        if not self.group.remove():
            await asyncio.to_thread(cgroups.wait_removed, self.group)

    def detach(self) -> None:
        """Leave it running for the next supervisor."""
        if self._pidfd >= 0:
            if not self.ended:
                asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
            self._close_counters()

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if self._ours:
            self.note_code(launcher.take_exit(self._pidfd))
        self._ended.set()

    def _tree(self) -> list[int]:
        """Where no control group tells: the keeper and all below it, parents first."""
        found = [self.handle.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                found += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return found


def find(handle: Handle) -> Process | None:
    """The session's box that an earlier supervisor started, or None when it has ended."""
    if handle.boot != launcher.boot_id() or launcher.born(handle.pid) != handle.born:
        return None
    try:
        pidfd = os.pidfd_open(handle.pid)
    except OSError:
        return None
    if launcher.born(handle.pid) != handle.born:
        os.close(pidfd)
        return None
    group = cgroups.from_paths(handle.groups)
    group.set_weight(low=False)
    return Process(handle, pidfd=pidfd, group=group)


def _cpu_of(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        counted = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        threads = [f"/proc/{pid}/task/{thread}/schedstat" for thread in os.listdir(f"/proc/{pid}/task")]
        exact = sum(int(Path(thread).read_text().split()[0]) for thread in threads) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
    return max(counted, exact)  # the first knows ended threads too, the second less than a tick


def _memory_of(pid: int) -> int:
    """Resident pages that are not a file's; those shared with the zygote count for everybody."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")
