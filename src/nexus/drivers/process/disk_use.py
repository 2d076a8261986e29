"""What an instance has written: its folders, and files it deleted and still holds. Nothing it can do leads the look elsewhere.

Folders are opened one below the other by descriptor and no link is followed; a tree that is too deep or holds too many files is
given up at the limit, so a look takes bounded time. Blocks are counted, so a sparse file counts as what it takes.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from nexus.drivers.process import limits

_BLOCK = 512
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_MOST_DESCRIPTORS = 65_536


def measure(folders: Sequence[Path], allowed: limits.Limits, *, holders: Iterable[int] = ()) -> limits.Use:
    """`holders`: processes whose deleted files count too (a look at every descriptor: not for every time)."""
    look = _Look(allowed)
    for folder in folders:
        with contextlib.suppress(OSError):
            look.walk(os.open(folder, _OPEN))
    devices = {entry.st_dev for folder in folders if (entry := _status(str(folder)))}
    for pid in holders:
        look.add_held(pid, devices)
    return limits.Use(look.size, look.files, look.deepest)


class _Look:
    def __init__(self, allowed: limits.Limits) -> None:
        self._allowed = allowed
        self.size = self.files = self.deepest = 0
        self._seen: set[tuple[int, int]] = set()

    def walk(self, top: int) -> None:
        """Depth first with one descriptor for each level; takes over `top`."""
        levels = [(top, _names(top))]
        while levels:
            fd, names = levels[-1]
            name = names.pop() if names else None
            if name is None or self._over():
                os.close(fd)
                levels.pop()
                continue
            with contextlib.suppress(OSError):
                entry = os.stat(name, dir_fd=fd, follow_symlinks=False)
                self._add(entry)
                if stat.S_ISDIR(entry.st_mode):
                    self.deepest = max(self.deepest, len(levels) + 1)
                    below = os.open(name, _OPEN, dir_fd=fd)
                    levels.append((below, _names(below)))

    def add_held(self, pid: int, devices: set[int]) -> None:
        """Files on these devices that only this process's descriptors and mappings keep."""
        for folder in (f"/proc/{pid}/fd", f"/proc/{pid}/map_files"):
            with contextlib.suppress(OSError):
                for name in os.listdir(folder)[:_MOST_DESCRIPTORS]:
                    entry = _status(f"{folder}/{name}")
                    if entry is not None and entry.st_nlink == 0 and entry.st_dev in devices and stat.S_ISREG(entry.st_mode):
                        self._add(entry, once=True)

    def _add(self, entry: os.stat_result, *, once: bool = False) -> None:
        if once or (entry.st_nlink > 1 and not stat.S_ISDIR(entry.st_mode)):
            if (entry.st_dev, entry.st_ino) in self._seen:
                return
            self._seen.add((entry.st_dev, entry.st_ino))
        self.size += entry.st_blocks * _BLOCK
        self.files += 1

    def _over(self) -> bool:
        return limits.judge_disk(limits.Use(self.size, self.files, self.deepest), self._allowed) is not None


def _names(fd: int) -> list[str]:
    try:
        return os.listdir(fd)
    except OSError:
        return []


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None
