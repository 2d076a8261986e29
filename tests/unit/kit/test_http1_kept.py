"""A kept connection as transcripts: what the other side sends, in which pieces, and what comes of it."""

import asyncio
from typing import Any

import pytest

from nexus.kit import http1, http1_kept


class Wire:
    """Stands where the transport is."""

    def __init__(self) -> None:
        self.sent = b""
        self.aborted = False
        self.paused = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


def connected() -> tuple[http1_kept.Connection, Any]:
    made, wire = http1_kept.Connection(), Wire()
    made.connection_made(wire)  # type: ignore[arg-type]
    return made, wire


async def test_one_connection_serves_one_request_after_the_other() -> None:
    made, wire = connected()
    for number in (b"1", b"2"):
        made.send(b"ask " + number)
        made.data_received(b"HTTP/1.1 200 OK\r\nX-Number: %b\r\nContent-Length: 3\r\n\r\nab" % number)
        await made.head()
        made.data_received(b"c")
        assert (made.status, made.fields["x-number"], await made.body(10)) == (200, number.decode(), b"abc")
        assert made.reusable
    assert (wire.sent, wire.aborted) == (b"ask 1ask 2", False)


async def test_informational_answers_are_skipped() -> None:
    made, _ = connected()
    made.send(b"ask")
    made.data_received(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
    await made.head()
    assert (made.status, made.fields, await made.body(10), made.reusable) == (204, {}, b"", True)


async def test_chunks_come_as_they_arrive_and_the_waiting_reader_is_woken() -> None:
    made, _ = connected()
    made.send(b"ask")
    reading = asyncio.ensure_future(_all(made))
    for piece in (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chun", b"ked\r\n\r\n2\r\nhi\r\n", b"3\r\nyou\r\n", b"0\r\n\r\n"):
        await asyncio.sleep(0)
        made.data_received(piece)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert await reading == [b"hi", b"you"]
    assert made.reusable


async def _all(made: http1_kept.Connection) -> list[bytes]:
    await made.head()
    return [piece async for piece in made.chunks()]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "ended before the answer did"),
        (b"", "ended before the answer did"),
        (b"SSH-2.0 hello\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000, "endless header"),
    ],
)
async def test_what_is_no_whole_answer_is_broken(text: bytes, why: str) -> None:
    made, _ = connected()
    made.send(b"ask")
    made.data_received(text)
    if b"SSH" not in text and len(text) < 1000:
        made.connection_lost(None)
    with pytest.raises(http1.Broken, match=why):
        await _all(made)
    assert not made.reusable


async def test_an_answer_without_a_length_lasts_to_the_end_of_the_connection() -> None:
    made, _ = connected()
    made.send(b"ask")
    made.data_received(b"HTTP/1.1 200 OK\r\n\r\nall of it")
    made.connection_lost(None)
    await made.head()
    assert (await made.body(100), made.reusable) == (b"all of it", False)


async def test_what_comes_unasked_closes_the_connection() -> None:
    made, wire = connected()
    made.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert (made.closed, wire.aborted) == (True, True)
    with pytest.raises(http1.Broken):
        made.send(b"ask")


async def test_a_reader_that_does_not_read_stops_the_other_side() -> None:
    made, wire = connected()
    made.send(b"ask")
    made.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 2_000_000)
    assert wire.paused
    await made.head()
    reading = made.chunks()
    assert len(await anext(reading)) == 2_000_000
    assert not wire.paused
    await reading.aclose()  # type: ignore[attr-defined]


async def test_the_end_of_an_answer_may_come_after_its_reader_has_left() -> None:
    made, wire = connected()
    told: list[bool] = []
    made.send(b"ask")
    made.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    await made.head()
    made.when_done(60.0, lambda: told.append(made.reusable))
    assert told == []
    made.data_received(b"0\r\n\r\n")
    assert (told, wire.aborted) == ([True], False)


async def test_an_end_that_does_not_come_closes_the_connection() -> None:
    made, wire = connected()
    gone = asyncio.Event()
    made.send(b"ask")
    made.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    made.when_done(0.0, gone.set)
    while not wire.aborted:
        await asyncio.sleep(0)
    made.connection_lost(None)
    assert gone.is_set()
    assert not made.reusable
