"""A program run inside a session's box for somebody outside: its input given, its output told as it comes, then how it ended."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from typing import Any

from nexus.core import errors
from nexus.drivers.process import session

_MOST_OUTPUT, _CHUNK, _QUEUE = 64 * 1024 * 1024, 64 * 1024, 64
_LAST_WORDS_S = 1.0

Line = dict[str, Any]
Queue = asyncio.Queue[Line | None]


async def run(one: session.Session, command: list[str], stdin: bytes, *, timeout_s: float) -> AsyncGenerator[Line, None]:
    """`{"stream", "data"}` …, at last `{"exit": code}`, with a `problem` where it could not be run or took too long.

    Whoever stops listening closes the program's output.
    """
    queue: Queue = asyncio.Queue(_QUEUE)
    running = asyncio.ensure_future(_run(one, command, stdin, timeout_s, queue))
    try:
        while (line := await queue.get()) is not None:
            yield line
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def _run(one: session.Session, command: list[str], stdin: bytes, timeout_s: float, queue: Queue) -> None:
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
    carriers = [
        asyncio.ensure_future(_feed(pipes[0][1], stdin)),
        asyncio.ensure_future(_drain(pipes[1][0], "stdout", queue)),
        asyncio.ensure_future(_drain(pipes[2][0], "stderr", queue)),
    ]
    try:
        try:
            last: Line = {"exit": await one.run_command(command, (theirs[0], theirs[1], theirs[2]), timeout_s=timeout_s)}
        except errors.NexusError as error:
            last = {"exit": None, "problem": {"code": error.code, "detail": error.message, "cause": error.cause}}
        except TimeoutError:
            detail = f"it took longer than {timeout_s:g} s; it goes on in the session"
            last = {"exit": None, "problem": {"code": "session.exec_timeout", "detail": detail}}
        while theirs:
            os.close(theirs.pop())
        await asyncio.wait(carriers[1:], timeout=_LAST_WORDS_S)
        await queue.put(last)
        await queue.put(None)
    finally:
        while theirs:
            os.close(theirs.pop())
        for carrier in carriers:
            carrier.cancel()
        await asyncio.gather(*carriers, return_exceptions=True)


async def _feed(number: int, data: bytes) -> None:
    transport, _ = await asyncio.get_running_loop().connect_write_pipe(asyncio.BaseProtocol, os.fdopen(number, "wb", buffering=0))
    transport.write(data)
    transport.close()


async def _drain(number: int, stream: str, queue: Queue) -> None:
    reader = asyncio.StreamReader(limit=_CHUNK)
    file = os.fdopen(number, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    total = 0
    try:
        while (chunk := await reader.read(_CHUNK)) and total < _MOST_OUTPUT:
            total += len(chunk)
            await queue.put({"stream": stream, "data": chunk.decode("utf-8", "replace")})
    finally:
        transport.close()
