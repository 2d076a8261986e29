"""Connections that are kept, against a peer that answers, hangs up, dribbles and lies."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from nexus.kit import http_client, http_kept

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextlib.asynccontextmanager
async def peer(serve: Serve) -> AsyncIterator[tuple[http_kept.Kept, list[int]]]:
    """The client, and how many requests came on each connection."""
    folder, counts = Path(tempfile.mkdtemp(prefix="nxk-")), list[int]()
    ended: list[int] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(counts)
        counts.append(0)
        with contextlib.suppress(ConnectionError):
            while (head := await http_client.read_head(reader)) is not None:
                async for _ in http_client.read_body(reader, head, until_close=False):
                    pass
                counts[number] += 1
                await serve(reader, writer, number)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        ended.append(number)

    server = await asyncio.start_unix_server(connected, folder / "s")
    client = http_kept.Kept(str(folder / "s"))
    try:
        yield client, counts
    finally:
        client.close()
        while len(ended) < len(counts):
            await asyncio.sleep(0)
        server.close()
        shutil.rmtree(folder)


async def ask(client: http_kept.Kept, method: str = "GET", **more: float) -> http_client.Answer:
    return await client.request(method, "/x", headers={}, timeout_s=more.get("timeout_s", 5), limit=int(more.get("limit", 1000)))


async def test_one_connection_serves_one_request_after_the_other_and_two_at_once_need_two() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(OK)

    async with peer(serve) as (client, counts):
        for _ in range(5):
            assert (await ask(client)).body == b"ok"
        assert counts == [5]
        await asyncio.gather(ask(client), ask(client))
        assert sorted(counts) == [1, 6]


async def test_a_connection_that_was_closed_while_idle_is_replaced_and_a_lost_request_repeated_if_it_may_be() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        if number == 0 and asked:
            writer.close()  # it has read the request, and says nothing
            return
        asked.append(number)
        writer.write(OK)
        if number == 1:
            await writer.drain()
            writer.close()

    asked: list[int] = []
    async with peer(serve) as (client, counts):
        await ask(client)
        assert (await ask(client, "PUT")).body == b"ok"
        assert counts == [2, 1]
        assert (await ask(client, "POST")).body == b"ok"
        assert counts == [2, 1, 1]
    asked.clear()
    async with peer(serve) as (client, counts):
        await ask(client)
        with pytest.raises(ConnectionError):
            await ask(client, "POST")
        assert counts == [2]


@pytest.mark.parametrize(
    ("pieces", "body", "kept"),
    [
        ([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Le", b"ngth: 3\r\n\r", b"\nab", b"c"], b"abc", True),
        ([CHUNKED + b"3\r\nab", b"c\r\n1;x\r", b"\nd\r\n0\r\nT: 1\r\n", b"\r\n"], b"abcd", True),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], b"", True),
        ([b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na"], b"a", False),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab"], b"a", False),
    ],
)  # fmt: skip
async def test_an_answer_in_any_pieces_is_whole_or_not_there(pieces: list[bytes], body: bytes, kept: bool) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    async with peer(serve) as (client, counts):
        assert (await ask(client)).body == body
        assert (await ask(client)).body == body
        assert counts == ([2] if kept else [1, 1])


@pytest.mark.parametrize(
    "told",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"1\r\nabc\r\n",
        b"HTTP/1.1 2x0 OK\r\nContent-Length: 1\r\n\r\na",
        b"SSH-2.0\r\n\r\n",
    ],
)
async def test_what_is_no_answer_is_an_error_and_the_connection_is_not_used_again(told: bytes) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(told if number == 0 else OK)

    async with peer(serve) as (client, _):
        with pytest.raises(http_client.ProtocolError):
            await ask(client)
        assert (await ask(client)).body == b"ok"


async def test_a_request_that_was_given_up_leaves_its_answer_to_nobody() -> None:
    answering = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        if number == 0:
            await answering.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate")
        else:
            writer.write(OK)

    async with peer(serve) as (client, counts):
        with pytest.raises(TimeoutError):
            await ask(client, timeout_s=0.02)
        answering.set()
        assert (await ask(client)).body == b"ok"
        assert counts == [1, 1]


async def test_a_peer_that_is_starting_again_is_waited_for_and_one_that_stays_away_is_an_error() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await http_client.read_head(reader)
        writer.write(OK)
        writer.close()

    folder = Path(tempfile.mkdtemp(prefix="nxk-"))
    waiting = asyncio.create_task(ask(http_kept.Kept(str(folder / "s"), patience_s=9)))
    with pytest.raises(FileNotFoundError):
        await ask(http_kept.Kept(str(folder / "s")))
    server = await asyncio.start_unix_server(serve, folder / "s")
    assert (await waiting).body == b"ok"
    server.close()
    shutil.rmtree(folder)


def test_each_event_loop_has_connections_of_its_own() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(OK)

    async def twice(client: http_kept.Kept) -> None:
        for _ in range(2):
            await ask(client)
        client.close()
        await asyncio.sleep(0)

    async def both() -> None:
        async with peer(serve) as (client, counts):
            await ask(client)
            for _ in range(2):
                await asyncio.to_thread(asyncio.run, twice(client))
            await ask(client)
            assert counts == [2, 2, 2]

    asyncio.run(both())
