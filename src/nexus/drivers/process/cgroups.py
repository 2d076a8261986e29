"""Control groups, version 1, 2 or both at once: limits, accounting, and one kill for all processes of an instance.

`detect` finds what this machine lets us use; `Group` is one instance's group in every hierarchy. Where a controller is missing
the driver says so in its capabilities and goes on without.
Source: Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst of the Linux kernel.
"""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nexus.drivers.process import limits

_LOG = logging.getLogger(__name__)
_MEMORY_V1 = ("memory.memsw.limit_in_bytes", "memory.limit_in_bytes")  # the sum first, it may not be the smaller one
_WANTED = ("memory", "pids", "cpu", "cpuacct", "freezer")
_MOST_READ = 64 * 1024
PROCESSES = limits.PROCESSES


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The folder, for each controller, below which groups may be made. `unified` is the version 2 hierarchy, if any.

    `v2` names the controllers that live there; those in `v1` have a hierarchy of their own.
    """

    v1: Mapping[str, Path] = field(default_factory=dict)
    v2: frozenset[str] = frozenset()
    unified: Path | None = None

    def has(self, controller: str) -> bool:
        return controller in self.v1 or controller in self.v2


def detect(name: str, *, mounts: str | None = None, own: str | None = None) -> Layout:
    """What can be used here; `name` is the folder (one for each host) that our groups go into."""
    mounts = Path("/proc/self/mounts").read_text() if mounts is None else mounts
    own = Path("/proc/self/cgroup").read_text() if own is None else own
    v1: dict[str, Path] = {}
    unified: Path | None = None
    v2: frozenset[str] = frozenset()
    found = parse_mounts(mounts)
    for controllers, mount in found:
        for controller in controllers & set(_WANTED):
            if (base := _first_usable(_candidates(mount, _path_of(own, controller)), name)) is not None:
                v1[controller] = base
    for controllers, mount in found:
        if not controllers and not v1.keys() >= set(_WANTED):  # a hierarchy without controllers only makes starts slow
            unified, v2 = _unified(mount, parse_own(own).get("", "/"), name)
    return Layout(v1=v1, v2=v2 - v1.keys(), unified=unified)


def parse_mounts(mounts: str) -> list[tuple[frozenset[str], Path]]:
    """`(controllers, mount point)` of every cgroup mount; no controllers means version 2."""
    found = []
    for line in mounts.splitlines():
        _, at, kind, options, *_ = [*line.split(" "), "", "", "", ""]
        if kind == "cgroup2":
            found.append((frozenset[str](), Path(at)))
        elif kind == "cgroup":
            controllers = frozenset(options.split(",")) & frozenset(_WANTED)
            if controllers:
                found.append((controllers, Path(at)))
    return found


def parse_own(own: str) -> dict[str, str]:
    """Our own group's path by controller list, as `/proc/self/cgroup` names it; `""` is version 2."""
    return {parts[1]: parts[2] for line in own.splitlines() if len(parts := line.split(":", 2)) == 3}


def _path_of(own: str, controller: str) -> str:
    return next((path for names, path in parse_own(own).items() if controller in names.split(",")), "/")


def _candidates(mount: Path, path: str) -> list[Path]:
    return [mount / path.strip("/"), mount]


def _first_usable(candidates: Sequence[Path], name: str) -> Path | None:
    for base in candidates:
        with contextlib.suppress(OSError):
            (base / name).mkdir(exist_ok=True)
            return base / name
    return None


def _unified(mount: Path, path: str, name: str) -> tuple[Path | None, frozenset[str]]:
    """A group beside our own (a group with processes may not hand controllers down), or below the root."""
    own = mount / path.strip("/")
    for parent in [own if own == mount else own.parent, mount]:
        base = _first_usable([parent], name)
        if base is None:
            continue
        for controller in ("memory", "pids", "cpu"):
            for folder in (parent, base):
                with contextlib.suppress(OSError):
                    (folder / "cgroup.subtree_control").write_text(f"+{controller}")
        return base, frozenset(_read(base / "cgroup.subtree_control").split()) & frozenset(_WANTED)
    return None, frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One instance's folders, in version 1 by controller and in version 2. Survives us: `paths()` is what adoption needs."""

    v1: Mapping[str, Path] = field(default_factory=dict)
    unified: Path | None = None

    def paths(self) -> dict[str, str]:
        return {**{name: str(path) for name, path in self.v1.items()}, **({"": str(self.unified)} if self.unified else {})}

    def join(self, pid: int) -> None:
        for folder in self._folders():
            with contextlib.suppress(OSError):
                (folder / "cgroup.procs").write_text(str(pid))

    def join_version_2(self, pid: int) -> None:
        """For a process that has gone through `open_entrances`: what is left of it."""
        if self.unified is not None:
            with contextlib.suppress(OSError):
                (self.unified / "cgroup.procs").write_text(str(pid))

    def open_entrances(self) -> list[int]:
        """Descriptors, the caller's to close: a process of one thread that writes "0" to each is in the group as far as version 1
        goes. Who is moved by another waits for a grace period of the kernel, milliseconds, and holds up every fork meanwhile.

        Source: `cgroup_procs_write_start` in kernel/cgroup/cgroup.c since Linux 5.5. Raises OSError.
        """
        opened: list[int] = []
        try:
            opened.extend(os.open(folder / "tasks", os.O_WRONLY | os.O_CLOEXEC) for folder in dict.fromkeys(self.v1.values()))
        except OSError:
            for number in opened:
                os.close(number)
            raise
        return opened

    def holds(self, pid: int) -> bool:
        """Whether that process stands in it: who was to enter by itself may not have."""
        try:
            own = Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            return False
        return all(Path(_path_of(own, controller)).name == folder.name for controller, folder in self.v1.items())

    @property
    def can_freeze(self) -> bool:
        return self.unified is not None or "freezer" in self.v1

    def freeze(self) -> bool:
        """No CPU for any process in it until `thaw`. False where that cannot be done."""
        return self._set_frozen("1", "FROZEN")

    def thaw(self) -> bool:
        return self._set_frozen("0", "THAWED")

    def _set_frozen(self, unified: str, v1: str) -> bool:
        try:
            if self.unified is not None:
                (self.unified / "cgroup.freeze").write_text(unified)
            elif "freezer" in self.v1:
                (self.v1["freezer"] / "freezer.state").write_text(v1)
            else:
                return False
        except OSError:
            return False
        return True

    def processes(self) -> list[int]:
        """Every process in the group, whatever its parent."""
        for folder in self._folders():
            with contextlib.suppress(OSError, ValueError):
                return [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
        return []

    def kill(self) -> None:
        """SIGKILL for every process in the group; new ones forked meanwhile die too."""
        if self.unified is not None:
            with contextlib.suppress(OSError):
                (self.unified / "cgroup.kill").write_text("1")
                return
        for _ in range(50):
            pids = self.processes()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            self.thaw()  # version 1 lets nobody who is frozen die
            if not pids:
                return

    def memory_kills(self) -> int:
        """How often the kernel killed here because the memory limit was reached."""
        if "memory" in self.v1:
            return _count(self.v1["memory"] / "memory.oom_control", "oom_kill")
        return _count(self.unified / "memory.events", "oom_kill") if self.unified else 0

    def process_count(self) -> int:
        """Processes and threads now; 0 when they are not counted here."""
        return _number(folder / "pids.current") if (folder := self._counting()) else 0

    def process_refusals(self) -> int:
        """How often a process or a thread was refused because there were too many."""
        return _count(folder / "pids.events", "max") if (folder := self._counting()) else 0

    def refusal_counter(self) -> "Counter":
        """The same for who asks again and again; the caller's to close."""
        return Counter(folder / "pids.events" if (folder := self._counting()) else None, lambda table: _find(table, "max"))

    def cpu_counter(self) -> "Counter":
        """Nanoseconds of CPU; the caller's to close."""
        if "cpuacct" in self.v1:
            return Counter(self.v1["cpuacct"] / "cpuacct.usage", int)
        path = self.unified / "cpu.stat" if self.unified is not None else None
        return Counter(path, lambda table: _find(table, "usage_usec") * 1000)

    def set_weight(self, *, low: bool) -> None:
        """Its share of a busy processor: as everybody's, or a sixteenth of that."""
        if "cpu" in self.v1:
            path, weight = self.v1["cpu"] / "cpu.shares", "64" if low else "1024"
        elif self.unified is not None:
            path, weight = self.unified / "cpu.weight", "6" if low else "100"
        else:
            return
        with contextlib.suppress(OSError):
            path.write_text(weight)

    def _counting(self) -> Path | None:
        return self.v1.get("pids", self.unified)

    def allow_memory(self, size: int) -> None:
        """Raise the limit of a group that has one; never lowers it."""
        for folder, names in ((self.v1.get("memory"), _MEMORY_V1), (self.unified, ("memory.max",))):
            for name in names if folder is not None else ():
                with contextlib.suppress(OSError, ValueError):
                    if int((folder / name).read_text()) < size:  # type: ignore[operator]
                        (folder / name).write_text(str(size))  # type: ignore[operator]

    def memory_bytes(self) -> int | None:
        """Memory in use that cannot be reclaimed at once (what `kubectl top` shows); None when it is not counted here."""
        if "memory" in self.v1:
            used, inactive = _number(self.v1["memory"] / "memory.usage_in_bytes"), "total_inactive_file"
            folder = self.v1["memory"]
        elif self.unified is not None and (self.unified / "memory.current").exists():
            used, inactive, folder = _number(self.unified / "memory.current"), "inactive_file", self.unified
        else:
            return None
        return max(0, used - _count(folder / "memory.stat", inactive))

    def cpu_s(self) -> float | None:
        if "cpuacct" in self.v1:
            return _number(self.v1["cpuacct"] / "cpuacct.usage") / 1e9
        if self.unified is not None and (self.unified / "cpu.stat").exists():
            return _count(self.unified / "cpu.stat", "usage_usec") / 1e6
        return None

    def remove(self) -> bool:
        """True when every folder is gone. A killed process may hold its folder for a moment: ask again."""
        gone = True
        for folder in self._folders():
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        return gone

    def _folders(self) -> list[Path]:
        return [*dict.fromkeys(self.v1.values()), *([self.unified] if self.unified else [])]


def make(
    layout: Layout, instance_id: str, *, memory_bytes: int | None, cpu_millis: int | None, processes: int = PROCESSES
) -> Group:
    """The group with its limits set, made anew or taken over. A limit that cannot be set is logged."""
    group = Group(
        v1={controller: base / instance_id for controller, base in layout.v1.items()},
        unified=layout.unified / instance_id if layout.unified else None,
    )
    for folder in group._folders():
        with contextlib.suppress(OSError):
            folder.mkdir(exist_ok=True)
    for folder, name, value in _settings(layout, group, memory_bytes, cpu_millis, processes):
        try:
            (folder / name).write_text(value)
        except OSError as error:
            _LOG.warning("cannot set %s of %s to %s: %s", name, instance_id, value, error.strerror)
    return group


class Counter:
    """A number that is asked of a group again and again: its file is kept open, which makes a look ten times as cheap."""

    def __init__(self, path: Path | None, read: Callable[[str], int]) -> None:
        self._path, self._parse = path, read
        self._fd = -1

    def count(self) -> int:
        """So far; 0 when it is not counted here."""
        if self._path is None:
            return 0
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return self._parse(os.pread(self._fd, _MOST_READ, 0).decode("ascii", "replace"))
        except (OSError, ValueError):
            return 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._path, self._fd = None, -1


def from_paths(paths: Mapping[str, str]) -> Group:
    """The group a record names."""
    return Group(
        v1={name: Path(path) for name, path in paths.items() if name},
        unified=Path(paths[""]) if paths.get("") else None,
    )


def leftovers(layout: Layout, keep: set[str]) -> list[Group]:
    """Groups of ours that no known instance owns, as after a crash of the machine's supervisor."""
    bases = {"": layout.unified, **layout.v1}
    names = {folder.name for base in bases.values() if base for folder in base.iterdir() if folder.is_dir()} - keep
    return [
        Group(v1={key: base / name for key, base in layout.v1.items()}, unified=layout.unified / name if layout.unified else None)
        for name in sorted(names)
    ]


def release(layout: Layout) -> None:
    """Remove our folders where no group is left in them."""
    for base in {*layout.v1.values(), *([layout.unified] if layout.unified else [])}:
        with contextlib.suppress(OSError):
            base.rmdir()


def _settings(layout: Layout, group: Group, memory: int | None, cpu: int | None, processes: int) -> list[tuple[Path, str, str]]:
    settings: list[tuple[Path, str, str]] = []
    period = 100_000
    if "pids" in group.v1:
        settings.append((group.v1["pids"], "pids.max", str(processes)))
    if memory is not None and "memory" in group.v1:
        settings.append((group.v1["memory"], "memory.limit_in_bytes", str(memory)))
        if (group.v1["memory"] / "memory.memsw.limit_in_bytes").exists():
            settings.append((group.v1["memory"], "memory.memsw.limit_in_bytes", str(memory)))
    if cpu is not None and "cpu" in group.v1:
        settings.append((group.v1["cpu"], "cpu.cfs_period_us", str(period)))
        settings.append((group.v1["cpu"], "cpu.cfs_quota_us", str(max(1000, cpu * period // 1000))))
    if group.unified is not None:
        if "pids" in layout.v2:
            settings.append((group.unified, "pids.max", str(processes)))
        if memory is not None and "memory" in layout.v2:
            settings += [(group.unified, "memory.max", str(memory)), (group.unified, "memory.oom.group", "1")]
            if (group.unified / "memory.swap.max").exists():
                settings.append((group.unified, "memory.swap.max", "0"))
        if cpu is not None and "cpu" in layout.v2:
            settings.append((group.unified, "cpu.max", f"{max(1000, cpu * period // 1000)} {period}"))
    return settings


def _read(path: Path) -> str:
    """At most a page or so, as the kernel gives it; not through a file object, which costs three times as much."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, _MOST_READ).decode("ascii", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def _number(path: Path) -> int:
    text = _read(path).strip()
    return int(text) if text.isdigit() else 0


def _count(path: Path, name: str) -> int:
    return _find(_read(path), name)


def _find(table: str, name: str) -> int:
    for line in table.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0


def wait_removed(group: Group, *, tries: int = 100, pause_s: float = 0.01) -> bool:
    """Kill and remove, waiting for the kernel to let go (call it from a thread)."""
    for _ in range(tries):
        group.kill()
        if group.remove():
            return True
        time.sleep(pause_s)
    return False


def thaw(pid: int) -> None:
    """Before it is killed: version 1 lets nobody die who is frozen. Nothing happens to a process that is not."""
    with contextlib.suppress(OSError):
        path = _path_of(Path(f"/proc/{pid}/cgroup").read_text(), "freezer").strip("/")
        mounts = parse_mounts(Path("/proc/self/mounts").read_text()) if path else []
        for controllers, mount in mounts:
            if "freezer" in controllers:
                (mount / path / "freezer.state").write_text("THAWED")
