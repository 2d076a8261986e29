"""What agents print is read without anybody waiting for it: few lines at a time, floods slowly, the end in bounded time."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus.drivers.process import fifo_reader, log_lines, log_writer


class Taken:
    """What a reader hands on."""

    def __init__(self, fd: int, budget: log_lines.Budget | None = None) -> None:
        self.lines: list[bytes] = []
        self.most = self.dropped = 0
        self.reader = fifo_reader.FifoReader(fd, store=self.store, report=self.report, budget=budget)

    def store(self, lines: list[bytes]) -> None:
        self.lines += lines
        self.most = max(self.most, len(lines))

    def report(self, count: int) -> None:
        self.dropped += count


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[int]:
    fd = log_writer.open_fifo(tmp_path / "output")
    yield fd
    os.close(fd)


def fill(fd: int, line: bytes = b"x\n") -> int:
    """Lines until no more fit; how many."""
    count = 0
    while True:
        try:
            count += os.write(fd, line * (4096 // len(line))) // len(line)
        except BlockingIOError:
            return count


async def until(taken: Taken, lines: int) -> None:
    async with asyncio.timeout(20):
        while len(taken.lines) < lines:
            await asyncio.sleep(0)


async def test_a_piece_of_very_many_lines_is_stored_a_few_at_a_time(fifo: int) -> None:
    taken = Taken(fifo)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    taken.reader.start()
    os.write(fifo, b"".join(b"%d\n" % number for number in range(5000)))
    await until(taken, 5000)
    other.cancel()
    taken.reader.stop()
    assert taken.lines == [b"%d" % number for number in range(5000)]
    assert taken.most <= 64
    assert turns > 5000 // 64
    assert not taken.dropped


async def test_a_flood_waits_in_its_own_fifo(fifo: int) -> None:
    taken = Taken(fifo, log_lines.Budget(per_second=0, burst=1))
    fill(fifo)
    taken.reader.start()
    for _ in range(100):
        await asyncio.sleep(0)
    room = fill(fifo)
    assert room <= 64 * 1024, "one piece was taken, and then others have their turn"
    for _ in range(100):
        await asyncio.sleep(0)
    assert fill(fifo) == 0
    async with asyncio.timeout(20):
        while not fill(fifo):
            await asyncio.sleep(0.005)
    taken.reader.stop()


async def test_at_the_end_the_last_lines_are_kept_and_the_others_counted(fifo: int) -> None:
    taken = Taken(fifo)
    written = fill(fifo)
    os.read(fifo, 4096)
    os.write(fifo, b"why it ended\n")
    taken.reader.read_rest()
    assert taken.lines[-1] == b"why it ended"
    assert len(taken.lines) == 2000
    assert len(taken.lines) + taken.dropped == written - 2048 + 1


async def test_stopping_loses_nothing_that_was_read(fifo: int) -> None:
    taken = Taken(fifo)
    taken.reader.start()
    os.write(fifo, b"a\n" * 1000)
    await until(taken, 64)
    assert len(taken.lines) < 1000
    taken.reader.stop()
    assert len(taken.lines) == 1000
    await asyncio.sleep(0)
    assert len(taken.lines) == 1000
