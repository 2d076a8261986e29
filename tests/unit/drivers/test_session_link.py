"""The supervisor's end of a session's messages: who waits hears of the end, and another's descriptor is left alone."""

import asyncio
import os

import pytest

from nexus.drivers.process import session_link


async def test_closing_wakes_whoever_waits_and_takes_nothing_of_the_next_one() -> None:
    first, theirs = session_link.pair()
    waiting = asyncio.create_task(first.receive())
    await asyncio.sleep(0)
    first.close()
    second, others = session_link.pair()  # has the number that the first one had
    hearing = asyncio.create_task(second.receive())
    with pytest.raises(session_link.Closed):
        await waiting
    others.send(b'{"is": "here"}')
    async with asyncio.timeout(5):
        said, pid = await hearing
    assert (said, pid) == ({"is": "here"}, os.getpid())
    second.close()
    theirs.close()
    others.close()


@pytest.mark.parametrize("sent", [b"no json", b"[1]", b"\xff\xfe", b"[" * 10_000])
async def test_what_is_no_message_is_the_end(sent: bytes) -> None:
    ours, theirs = session_link.pair()
    theirs.send(sent)
    with pytest.raises(session_link.Closed):
        await ours.receive()
    ours.close()
    theirs.close()


async def test_descriptors_that_nobody_asked_for_are_closed() -> None:
    ours, theirs = session_link.pair()
    reading, writing = os.pipe()
    session_link.socket.send_fds(theirs, [b"{}"], [writing])
    os.close(writing)
    await ours.receive()
    ours.close()
    assert os.read(reading, 1) == b"", "nobody holds the other end"
    os.close(reading)
    theirs.close()
