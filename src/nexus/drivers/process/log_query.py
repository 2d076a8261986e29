"""Reading logs back: the newest matching lines of an agent over all its instances, and the live ones after them.

Files are opened and measured at the moment a follower subscribes, so no line is missed and none comes twice.
"""

import asyncio
import contextlib
import heapq
import json
import os
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

from nexus.drivers.process import log_lines, paths

_BLOCK = 64 * 1024
_QUEUE = 4096
MOST_LINES = 100_000

Line = dict[str, object]


class Hub:
    """Live lines to whoever follows. A follower that is too slow loses lines and is told how many."""

    def __init__(self) -> None:
        self._followers: dict[tuple[str, str], set[_Follower]] = {}

    def publish(self, tenant: str, agent: str, line: Line) -> None:
        for follower in self._followers.get((tenant, agent), ()):
            follower.offer(line)

    def _add(self, key: tuple[str, str]) -> "_Follower":
        follower = _Follower()
        self._followers.setdefault(key, set()).add(follower)
        return follower

    def _remove(self, key: tuple[str, str], follower: "_Follower") -> None:
        followers = self._followers.get(key, set())
        followers.discard(follower)
        if not followers:
            self._followers.pop(key, None)

    async def query(
        self, folder: Path, *, tenant: str, agent: str, wanted: log_lines.Filter, limit: int, follow: bool
    ) -> AsyncGenerator[Line, None]:
        """At most `limit` stored lines, oldest first; with `follow` then every new one, for ever."""
        key = (tenant, agent)
        follower = self._add(key) if follow else None
        try:
            for line in await asyncio.to_thread(newest, measure(folder), wanted, limit):
                yield line
            while follower is not None:
                line = await follower.next()
                if wanted.takes(line):
                    yield line
        finally:
            if follower is not None:
                self._remove(key, follower)


class _Follower:
    def __init__(self) -> None:
        self._queue: asyncio.Queue[Line] = asyncio.Queue(_QUEUE)
        self._lost = 0
        self._newest: Line = {}

    def offer(self, line: Line) -> None:
        try:
            self._queue.put_nowait(line)
        except asyncio.QueueFull:
            self._lost += 1
            self._newest = line

    async def next(self) -> Line:
        if self._lost and self._queue.empty():
            lost, self._lost = self._lost, 0
            message = f"{lost} lines skipped: this reader is too slow"
            return {**self._newest, "level": "warning", "logger": "nexus", "message": message}
        return await self._queue.get()


def measure(folder: Path) -> list[tuple[int, int]]:
    """`(descriptor, size)` of every log file as it is now; `newest` closes them."""
    found: list[tuple[int, int]] = []
    for path in sorted(folder.glob("*.jsonl")):
        with contextlib.suppress(OSError):
            fd = paths.open_regular(path)
            found.append((fd, os.fstat(fd).st_size))
    return found


def newest(files: list[tuple[int, int]], wanted: log_lines.Filter, limit: int) -> list[Line]:
    """The newest matching lines over all files, oldest first. Reads backwards and stops as soon as it can."""
    try:
        streams = [_matching(fd, size, wanted) for fd, size in files]
        merged = heapq.merge(*streams, key=_time, reverse=True)
        lines = [line for line, _ in zip(merged, range(max(0, min(limit, MOST_LINES))), strict=False)]
        return lines[::-1]
    finally:
        for fd, _ in files:
            os.close(fd)


def _time(line: Line) -> float:
    at = line.get("at")
    return float(at) if isinstance(at, int | float) else 0.0


def _matching(fd: int, size: int, wanted: log_lines.Filter) -> Iterator[Line]:
    for raw in backwards(fd, size):
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if not isinstance(line, dict):
            continue
        if wanted.since is not None and _time(line) < wanted.since - 60:
            return  # lines stand in order, give or take clocks a minute apart
        if wanted.takes(line):
            yield line


def backwards(fd: int, size: int) -> Iterator[bytes]:
    """Whole lines from the end to the beginning; half a line at the end (a crash while writing) is left out."""
    rest, at = b"", size
    first = True
    while at > 0:
        length = min(_BLOCK, at)
        at -= length
        block = os.pread(fd, length, at) + rest
        rest, *lines = block.split(b"\n")
        if first:
            first = False
            lines = lines[:-1] if lines else lines
        for line in reversed(lines):
            if line:
                yield line
    if rest and not first:
        yield rest
