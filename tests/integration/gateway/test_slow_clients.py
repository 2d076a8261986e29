"""Clients that take their time, against limits short enough to wait for: the server side runs on this test's own loop."""

import asyncio
import dataclasses

import pytest

from nexus.gateway import process, server, settings
from nexus.kit import home


@pytest.fixture
async def short(tmp_path):
    """A port served with limits of a twentieth of a second, and a call that plays the sweep."""
    where = home.Home(tmp_path)
    where.run.mkdir()
    config = settings.Settings(home=where, header_timeout_s=0.05, body_idle_s=0.05, keep_alive_s=0.05, linger_s=0.05)
    here = process.build_world(config)
    listener = await asyncio.get_running_loop().create_server(lambda: server.ClientConnection(here, inside=False), "127.0.0.1", 0)

    async def sweep():
        async with asyncio.timeout(10):
            while True:
                await asyncio.sleep(0.01)
                for connection in list(here.connections):
                    connection.check(here.loop.time())

    sweeping = asyncio.ensure_future(sweep())
    yield here, listener.sockets[0].getsockname()[1]
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)
    for connection in list(here.connections):
        connection.transport.abort()
    listener.close()
    here.rates.close()


async def told(port, data):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        async with asyncio.timeout(8):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("data", [b"GET", b"GET / HTTP/1.1\r\nHost: loc", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n"])
async def test_a_head_that_never_ends_gets_408(short, data):
    assert (await told(short[1], data)).startswith(b"HTTP/1.1 408 ")


async def test_silence_is_closed_without_a_word(short):
    assert await told(short[1], b"") == b""


async def test_an_idle_connection_is_closed_after_its_answer(short):
    answer = await told(short[1], b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.count(b"HTTP/1.1") == 1


async def test_a_body_that_stops_coming_gets_408(short):
    here, port = short
    here.swap(dataclasses.replace(here.table, version=1))
    body = b"POST /openapi.json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc"
    connected = asyncio.Event()

    async def control(reader, writer):
        connected.set()
        await reader.read()
        writer.close()

    listener = await asyncio.start_unix_server(control, str(here.settings.home.control_socket))
    answer = await told(port, body)
    listener.close()
    assert connected.is_set()
    assert answer.startswith(b"HTTP/1.1 408 ")


async def test_more_connections_than_allowed_are_turned_away(short):
    here, port = short
    here.settings = dataclasses.replace(here.settings, max_connections=0)
    assert (await told(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")).startswith(b"HTTP/1.1 429 ")
