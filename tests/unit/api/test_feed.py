"""The route feed on a real socket: snapshot, deltas, records and their acknowledgement."""

import asyncio
import json
import stat
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nexus.api import feed
from nexus.core import errors


class Gateway:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, **message: Any) -> None:
        self.writer.write(json.dumps(message).encode() + b"\n")
        await self.writer.drain()

    async def next(self, kind: str) -> Any:
        async with asyncio.timeout(10):
            while line := await self.reader.readline():
                if kind in (message := json.loads(line)):
                    return message[kind]
        raise ConnectionResetError


class Place:
    def __init__(self, path: Path) -> None:
        self.path, self.stored, self.broken = path, [], False
        self.writers: list[asyncio.StreamWriter] = []
        self.server = feed.FeedServer(sink=self.store)

    async def store(self, records: Sequence[Any]) -> None:
        if self.broken:
            raise errors.Unavailable("the database is away")
        self.stored.extend(records)

    async def connect(self, number: int = 0) -> Gateway:
        gateway = Gateway(*await asyncio.open_unix_connection(str(self.path), limit=2**24))
        self.writers.append(gateway.writer)
        await gateway.send(hello={"gateway": number})
        return gateway


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder) / "run" / "feed.sock")
        async with place.server.serve(place.path):
            yield place
            for writer in place.writers:
                writer.close()
            await asyncio.gather(*(writer.wait_closed() for writer in place.writers), return_exceptions=True)


async def test_a_snapshot_then_every_change(place: Place) -> None:
    place.server.publish("keys", {"key/a": {"id": "1"}})
    gateway = await place.connect()
    snapshot = await gateway.next("snapshot")
    assert snapshot["entries"] == {"key/a": {"id": "1"}}
    assert place.server.publish("keys", {"key/a": {"id": "1"}}) is False
    assert place.server.publish("hosting", {"deployment/x": {"id": "d"}}) is True
    assert place.server.publish("keys", {"key/b": {"id": "2"}}) is True
    first, second = await gateway.next("delta"), await gateway.next("delta")
    assert (first["previous"], first["version"]) == (snapshot["version"], snapshot["version"] + 1)
    assert first["set"] == {"deployment/x": {"id": "d"}}
    assert (second["previous"], second["set"], second["delete"]) == (first["version"], {"key/b": {"id": "2"}}, ["key/a"])
    later = await (await place.connect(1)).next("snapshot")
    assert (later["epoch"], later["version"]) == (snapshot["epoch"], second["version"])
    assert set(later["entries"]) == {"deployment/x", "key/b"}


async def test_it_says_that_it_is_alive(place: Place) -> None:
    gateway = await place.connect()
    assert await gateway.next("ping") == 0
    assert place.server.gateways == [0]


async def test_records_are_acknowledged_once_they_are_stored(place: Place) -> None:
    gateway = await place.connect()
    await gateway.send(records=[{"kind": "run", "id": "run_1"}], batch=7)
    assert await gateway.next("ack") == 7
    assert place.stored == [{"kind": "run", "id": "run_1"}]


async def test_records_that_could_not_be_stored_are_not_acknowledged(place: Place) -> None:
    gateway = await place.connect()
    place.broken = True
    await gateway.send(records=[{"id": "run_1"}], batch=1)
    with pytest.raises(ConnectionResetError):
        await gateway.next("ack")
    place.broken = False
    again = await place.connect()
    await again.send(records=[{"id": "run_1"}], batch=1)
    assert await again.next("ack") == 1


@pytest.mark.parametrize("line", [b"{}\n", b"not json\n", b"[1]\n", b'{"hello": {}}\n', b'{"hello": {"gateway": "x"}}\n'])
async def test_a_stranger_is_cut_off_and_others_go_on(place: Place, line: bytes) -> None:
    good = await place.connect()
    await good.next("snapshot")
    reader, writer = await asyncio.open_unix_connection(str(place.path))
    writer.write(line)
    async with asyncio.timeout(10):
        await reader.read()
    place.server.publish("keys", {"key/a": {}})
    assert (await good.next("delta"))["set"] == {"key/a": {}}
    writer.close()
    await writer.wait_closed()


async def test_a_gateway_that_does_not_read_is_cut_off(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "WRITE_TIMEOUT_S", 0.2)
    gateway = await place.connect()
    await gateway.next("snapshot")
    for number in range(feed.MOST_WAITING + 50):
        place.server.publish("keys", {"key/a": {"number": number, "filler": "x" * 2000}})
    with pytest.raises(ConnectionResetError):
        await gateway.next("never")
    snapshot = await (await place.connect()).next("snapshot")
    assert snapshot["entries"]["key/a"]["number"] == feed.MOST_WAITING + 49


def test_the_socket_is_the_owners_alone(tmp_path: Path) -> None:
    from nexus.kit import private_socket

    path = tmp_path / "s.sock"
    with private_socket.listen(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with private_socket.listen(path):
        assert path.is_socket()
