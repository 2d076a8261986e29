"""How many connections each socket has, read from the table of all sockets of the machine."""

import asyncio
import socket
import tempfile
from pathlib import Path

import pytest

from nexus.drivers.process import session_watch

TABLE = """Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 101 /run/s/aa.sock
0000000000000000: 00000003 00000000 00000000 0001 03 102 /run/s/aa.sock
0000000000000000: 00000003 00000000 00000000 0001 03 103 /run/s/aa.sock
0000000000000000: 00000002 00000000 00000000 0001 02 104 /run/s/bb.sock
0000000000000000: 00000003 00000000 00000000 0001 03 105
0000000000000000: 00000003 00000000 00000000 0001 03 106 @/run/s/aa.sock
0000000000000000: 00000003 00000000 00000000 0001 03 107 /elsewhere/run/s/aa.sock
0000000000000000: 00000002 00000000 00010000 0001 01 108 /run/s/cc.sock
"""


def line(name: str) -> str:
    return f"0000000000000000: 00000003 00000000 00000000 0001 03 109 /run/s/{name}.sock\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    written = tmp_path / "unix"
    written.write_text(TABLE)
    return written


async def test_connections_are_counted_by_socket(table: Path) -> None:
    """As the kernel writes it: a listening socket, two connections, one that waits to be accepted, and others' sockets."""
    census = session_watch.Census(Path("/run/s"), table=table)
    assert await census.count() == {"/run/s/aa.sock": 2, "/run/s/bb.sock": 1}


async def test_a_table_of_many_pieces_is_read_whole(table: Path) -> None:
    table.write_text(TABLE + "".join(line(f"{number:05}") for number in range(5000)))
    found = await session_watch.Census(Path("/run/s"), table=table).count()
    assert len(found) == 5002
    assert set(found.values()) == {1, 2}


async def test_who_asks_while_it_is_read_hears_of_a_later_reading(table: Path) -> None:
    """What is frozen must not be judged by a table that was read before it was."""
    table.write_text("".join(line(f"{number:05}") for number in range(20_000)))
    census = session_watch.Census(Path("/run/s"), table=table)
    first = asyncio.ensure_future(census.count())
    while census._running is None:
        await asyncio.sleep(0)
    assert not first.done()
    following = [asyncio.ensure_future(census.count()) for _ in range(3)]
    await asyncio.sleep(0)
    table.unlink()
    table.write_text(line("later"))
    assert len(await first) == 20_000
    for one in following:
        assert await one == {"/run/s/later.sock": 1}
    assert following[0].result() is following[2].result(), "one reading for all who wait"


async def test_a_table_that_cannot_be_read_is_an_error_for_all_who_asked_and_the_next_reading_works(tmp_path: Path) -> None:
    census = session_watch.Census(Path("/run/s"), table=tmp_path / "unix")
    told = await asyncio.gather(census.count(), census.count(), return_exceptions=True)
    assert all(isinstance(one, FileNotFoundError) for one in told)
    (tmp_path / "unix").write_text(TABLE)
    assert len(await census.count()) == 2


async def test_the_table_of_this_machine_is_understood() -> None:
    with tempfile.TemporaryDirectory(prefix="nx-") as folder, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/it.sock")
        server.listen()
        census = session_watch.Census(Path(folder))
        assert await census.count() == {}
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{folder}/it.sock")
            assert await census.count() == {f"{folder}/it.sock": 1}
