"""The node's look at what no kernel limit ends: disk and processes of its instances.

Every second the processes; the folders of each instance every ten seconds, and all of them at once as soon as the disk loses
much: so a flood is ended within about a second, and an idle instance costs next to nothing.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

_EVERY_S = 0.5
_PROCESSES = 2
_ORDINARY_S = 10.0
_MUCH_BYTES = 64 * 1024**2
_MUCH_FILES = 4096


class Watched(Protocol):
    """What `instance.Instance` offers."""

    def look_at_processes(self) -> None: ...

    async def look_at_disk(self, *, deleted: bool) -> None:
        """`deleted`: count files that were deleted and are still held, too."""
        ...


class Patrol:
    """`run` never returns. `instances` gives those that live now."""

    def __init__(self, folder: Path, instances: Callable[[], Iterable[Watched]]) -> None:
        self._folder = folder
        self._instances = instances
        self._left: tuple[int, int] | None = None

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        looked, count = loop.time(), 0
        while True:
            await asyncio.sleep(_EVERY_S)
            count += 1
            watched = list(self._instances())
            if count % _PROCESSES == 0:
                for one in watched:
                    one.look_at_processes()
            alarmed = self._lost_much()
            if alarmed or loop.time() - looked >= _ORDINARY_S:
                for one in watched:
                    await one.look_at_disk(deleted=alarmed)
                looked = loop.time()

    def _lost_much(self) -> bool:
        """Whether the disk has lost much since the last alarm; what became free lets the mark rise again."""
        now = os.statvfs(self._folder)
        left = (now.f_bavail * now.f_frsize, now.f_favail)
        if self._left is None:
            self._left = left
        lost = self._left[0] - left[0] >= _MUCH_BYTES or self._left[1] - left[1] >= _MUCH_FILES
        self._left = left if lost else (max(self._left[0], left[0]), max(self._left[1], left[1]))
        return lost
