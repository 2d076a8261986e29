"""Which sessions are idle, judged from outside: whether anything is connected to them, and whether they use the processor.

What a worker says of itself is not asked. Source of the columns: net/unix/af_unix.c of Linux, `unix_seq_show`.
"""

import asyncio
import collections
import os
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Literal

from nexus.core.sessions import SessionPhase
from nexus.drivers.process import rounds, session_plans

_SOCKETS = Path("/proc/net/unix")
_LISTENING = b"00010000"
_PIECE = 64 * 1024  # the kernel gives one page of lines at a time, whatever is asked
IDLE_CPU = 0.01
Move = Literal["keep", "freeze", "stop", "end"]


class Census:
    """How many connections each socket of a folder has, those included that wait to be accepted.

    The table names every socket of the machine: it is read and judged in slices, once for all who ask at the same time.
    """

    def __init__(self, folder: Path, *, table: Path = _SOCKETS) -> None:
        self._beginning = f" {folder}/".encode()
        self._table = table
        self._running: asyncio.Task[Mapping[str, int]] | None = None
        self._next: asyncio.Task[Mapping[str, int]] | None = None

    async def count(self) -> Mapping[str, int]:
        """As it was at some moment after this was called. Raises OSError."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._count_after(self._running))
        return await asyncio.shield(self._next)

    async def _count_after(self, earlier: asyncio.Task[Mapping[str, int]] | None) -> Mapping[str, int]:
        if earlier is not None:
            await asyncio.wait({earlier})
        self._running, self._next = self._next, None  # who asks from here on has to wait for another one
        found: collections.Counter[str] = collections.Counter()
        async with aclosing(rounds.in_slices(self._pieces())) as pieces:
            async for lines in pieces:
                for line in lines:
                    at = line.find(self._beginning)
                    if at >= 0 and line.split(None, 4)[3] != _LISTENING:
                        found[os.fsdecode(line[at + 1 :])] += 1
        return found

    def _pieces(self) -> Iterator[list[bytes]]:
        """The lines of the table, some at a time."""
        fd = os.open(self._table, os.O_RDONLY | os.O_CLOEXEC)
        try:
            rest = b""
            while piece := os.read(fd, _PIECE):
                *lines, rest = (rest + piece).split(b"\n")
                yield lines
            yield [rest]
        finally:
            os.close(fd)


def decide(phase: SessionPhase, policy: session_plans.Policy, *, idle_s: float, expired: bool, connected: bool) -> Move:
    """What becomes of a session that has done nothing for `idle_s`. One whose time is over ends when nobody is connected, and in
    any case at twice its time."""
    if expired and not connected:
        return "end"
    if connected or phase not in (SessionPhase.LIVE, SessionPhase.FROZEN):
        return "keep"
    if idle_s >= policy.stop_after_s:
        return "stop"
    if phase is SessionPhase.LIVE and idle_s >= policy.freeze_after_s:
        return "freeze"
    return "keep"
