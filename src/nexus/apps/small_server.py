"""Answers a few questions of this node's own processes (`GET /health`) on a private unix socket, without an HTTP framework."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from nexus.kit import private_socket

_LONGEST_HEAD = 8192
_PATIENCE_S = 5.0


@asynccontextmanager
async def serve(path: Path, answers: Mapping[str, Callable[[], Any]]) -> AsyncIterator[None]:
    """While inside, `path` answers what `answers` names, as JSON; anything else is 404. One question a connection."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError, asyncio.LimitOverrunError, TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                writer.write(_answer(head.partition("\r\n")[0].split(), answers))
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(talk, sock=private_socket.listen(path), limit=_LONGEST_HEAD)
    try:
        yield
    finally:
        server.close()


def _answer(request: list[str], answers: Mapping[str, Callable[[], Any]]) -> bytes:
    found = answers.get(request[1]) if len(request) == 3 and request[0] == "GET" else None
    status, body = ("404 Not Found", b"{}") if found is None else ("200 OK", json.dumps(found()).encode())
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
