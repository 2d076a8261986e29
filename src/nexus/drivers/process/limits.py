"""The limits of an instance beside memory and CPU: how many processes it may have, and what it may write. Pure.

Memory and CPU are the control group's. The number of processes is too, but a refused `fork` ends nobody; the work directory has
no keeper in the kernel at all. So the node looks (`patrol`), and what goes on over its limit ends with an error that says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nexus.core import instances

PROCESSES = 1024
DISK_BYTES = 2 * 1024**3
BYTES_PER_FILE = 16 * 1024
MOST_DEPTH = 200
_LOOKS = 2
_NEARLY = 0.9

What = Literal["processes", "disk", "files", "depth"]


@dataclass(frozen=True, slots=True)
class Excess:
    """Which limit, how much it allows, and what was seen; `setting` is the key of `hosting` that raises it."""

    what: What
    limit: int
    seen: int

    @property
    def setting(self) -> str:
        return "processes" if self.what == "processes" else "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Processes and threads at once; bytes and files in everything the instance may write on this disk."""

    processes: int = PROCESSES
    disk_bytes: int = DISK_BYTES
    memory_bytes: int | None = None

    @property
    def files(self) -> int:
        return max(1000, self.disk_bytes // BYTES_PER_FILE)

    def to_environ(self) -> str:
        """What the worker is told, so that its errors can say how much."""
        known = {"processes": self.processes, "disk": self.disk_bytes, "memory": self.memory_bytes}
        return " ".join(f"{name}={value}" for name, value in known.items() if value is not None)


@dataclass(frozen=True, slots=True)
class Use:
    """What lies in an instance's folders; `deepest` is the deepest folder looked into."""

    size: int = 0
    files: int = 0
    deepest: int = 0


def read_limits(spec: instances.InstanceSpec) -> Limits:
    return Limits(
        processes=_count(spec.options, "processes", PROCESSES),
        disk_bytes=_count(spec.options, "disk", DISK_BYTES),
        memory_bytes=spec.memory_bytes,
    )


def judge_disk(use: Use, limits: Limits) -> Excess | None:
    if use.size > limits.disk_bytes:
        return Excess("disk", limits.disk_bytes, use.size)
    if use.files > limits.files:
        return Excess("files", limits.files, use.files)
    return Excess("depth", MOST_DEPTH, use.deepest) if use.deepest > MOST_DEPTH else None


@dataclass(slots=True)
class Forks:
    """Tells a process bomb from an agent that met its limit once: refused again and again, and full all the time."""

    refused: int = field(default=0, init=False)
    _looks: int = field(default=0, init=False)

    def judge(self, count: int, refused: int, limit: int) -> Excess | None:
        """After each look: how many were refused so far, and processes now, which matter only when there are more of those."""
        grown, self.refused = refused > self.refused, refused
        self._looks = self._looks + 1 if grown and count >= _NEARLY * limit else 0
        return Excess("processes", limit, count) if self._looks >= _LOOKS else None


def _count(options: Mapping[str, object], name: str, default: int) -> int:
    value = options.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default
