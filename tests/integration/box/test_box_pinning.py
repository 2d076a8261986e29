"""The broker judges the address it connects to: no name that changes its meaning gets in (D02), no redirect is followed (D03)."""

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nexus.drivers.process import egress_broker, egress_meter, egress_rules
from nexus.kit import egress

PUBLIC, PRIVATE = "203.0.113.7", "127.0.0.1"


class Names:
    """A resolver that answers as it is told, one answer after the other."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers, self.asked = list(answers), 0

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        self.asked += 1
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]


@contextlib.asynccontextmanager
async def a_way(
    monkeypatch: pytest.MonkeyPatch, names: Names, *, allow: str = ""
) -> AsyncIterator[tuple[egress_broker.Way, Path]]:
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", names.getaddrinfo)
    with tempfile.TemporaryDirectory(prefix="nxw-") as folder:
        rules = egress_rules.parse_rules(["api.example.com", "api.example.com:8080"])
        policy = egress_broker.Policy(rules=rules, allowance=egress.parse_allowance(allow))
        way = egress_broker.Way(Path(folder), policy, note=lambda message, level, caller: None)
        await way.open()
        try:
            yield way, Path(folder, egress_broker.SOCKET)
        finally:
            await way.close()


async def asked(path: Path, line: str, more: bytes = b"") -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(f"{line} HTTP/1.1\r\n\r\n".encode() + more)
    writer.write_eof()
    try:
        return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("answers", [([PRIVATE],), ([PUBLIC, PRIVATE],), (["169.254.169.254"],), (["10.1.2.3", "203.0.113.9"],)])
async def test_a_name_that_means_something_inside_is_refused(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[list[str], ...]
) -> None:
    async with a_way(monkeypatch, Names(*answers)) as (way, path):
        assert b" 403 " in await asked(path, "CONNECT api.example.com:443")
        assert way.meter.total == egress_meter.Tally(refused=1)


async def test_a_name_keeps_the_meaning_that_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[str] = []

    async def connect(host: str, port: int, **_: Any) -> Any:
        connected.append(host)
        raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr(egress_broker.asyncio, "open_connection", connect)
    names = Names(["1.1.1.1"], [PRIVATE])
    async with a_way(monkeypatch, names) as (_, path):
        for _ in range(3):
            assert b" 502 " in await asked(path, "CONNECT api.example.com:443")
    assert connected == ["1.1.1.1"] * 3
    assert names.asked == 1


async def test_a_redirect_is_the_callers_to_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, PRIVATE, 0)
    port = server.sockets[0].getsockname()[1]
    real = asyncio.open_connection

    async def connect(host: str, _: int, **more: Any) -> Any:
        return await real(host, port, **more)

    monkeypatch.setattr(egress_broker.asyncio, "open_connection", connect)
    async with server, a_way(monkeypatch, Names([PRIVATE]), allow=PRIVATE) as (_, path):
        answer = await asked(path, "GET http://api.example.com:8080/")
        assert answer.startswith(b"HTTP/1.1 302")
        assert b" 403 " in await asked(path, "GET http://169.254.169.254/")


async def test_as_many_connections_as_are_held_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, PRIVATE, 0)
    port = server.sockets[0].getsockname()[1]
    real = asyncio.open_connection

    async def connect(host: str, _: int, **more: Any) -> Any:
        return await real(host, port, **more)

    monkeypatch.setattr(egress_broker.asyncio, "open_connection", connect)
    monkeypatch.setattr(egress_broker, "_MOST", 20)
    async with server, a_way(monkeypatch, Names([PRIVATE]), allow=PRIVATE) as (way, path):
        held = []
        for _ in range(10):  # each takes a link in and one out
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"CONNECT api.example.com:8080 HTTP/1.1\r\n\r\n")
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            held.append(writer)
        assert b" 503 " in await asked(path, "CONNECT api.example.com:8080")
        for writer in held:
            writer.close()
        async with asyncio.timeout(5):
            while way._links:
                await asyncio.sleep(0.01)
        assert way.meter.total.connections == 10


async def test_a_flood_of_silent_connections_is_not_heard_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_broker, "_MOST", 5)
    async with a_way(monkeypatch, Names([PUBLIC])) as (way, path):
        silent = [await asyncio.open_unix_connection(path) for _ in range(10)]
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_unix_connection(path)
            assert await reader.read() == b""
        writer.close()
        for _, one in silent:
            one.close()
        async with asyncio.timeout(5):
            while way._links:
                await asyncio.sleep(0.01)
