"""Who is asked and who answers while a worker rehearses: a door of the platform's that knows nothing, and no agent."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

from nexus.kit import http_client

_NOTHING = b'{"items": [], "ids": []}'
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_NOTHING), _NOTHING)


class Nobody:
    """The adapter of no agent."""

    name = "none"
    uses_state = False

    async def run(self, run: Any) -> Any:
        run.emit("progress", {"message": "rehearsal"})
        return {"output": 1}


def listen() -> socket.socket:
    """An abstract name: no file, and gone with the socket. Ours, for gVisor's kernel chooses none."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(b"\0nexus-warm-" + os.urandom(12).hex().encode())
    listener.setblocking(False)
    return listener


def door_path() -> str:
    """A name for the door that nobody has; uvloop connects to no abstract one."""
    return os.path.join(os.environ.get("TMPDIR") or "/tmp", f"door-{os.urandom(6).hex()}")  # noqa: S108


@contextlib.asynccontextmanager
async def door(path: str) -> AsyncIterator[None]:
    """Nothing is found at it, and everything is kept."""
    tasks: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(writer)
        with contextlib.suppress(OSError, http_client.ProtocolError):
            while (head := await http_client.read_head(reader)) is not None:
                async for _ in http_client.read_body(reader, head, until_close=False):
                    continue
                writer.write(_ANSWER)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()
        for writer in tasks:
            writer.close()
        with contextlib.suppress(OSError):
            os.unlink(path)
