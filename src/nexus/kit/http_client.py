"""A small HTTP/1.1 client on asyncio streams, for places that may not depend on an HTTP library.

Sources: RFC 9112 (message framing). One request a connection unless the caller keeps the streams itself.
"""

import asyncio
import contextlib
import re
import ssl
import urllib.parse
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

_HEAD_LIMIT = 128 * 1024
_HEX = re.compile(rb"[0-9A-Fa-f]{1,15}")
Headers = Sequence[tuple[str, str]]


class ProtocolError(Exception):
    """The peer did not speak HTTP/1.1 as it should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to connect: a unix socket path, or host and port. `path` is put before every request path."""

    host: str = "localhost"
    port: int = 80
    tls: bool = False
    path: str = ""
    unix: str | None = None

    @property
    def authority(self) -> str:
        return self.host if self.port == (443 if self.tls else 80) else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Head:
    """A start line's three parts and the headers (names in lower case, in order)."""

    line: tuple[str, str, str]
    headers: Headers

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def status(self) -> int:
        return int(self.line[1])

    @property
    def chunked(self) -> bool:
        return "chunked" in (self.get("transfer-encoding") or "").lower()

    @property
    def length(self) -> int | None:
        value = self.get("content-length")
        if value is None or self.chunked:
            return None
        if not (value.isascii() and value.isdigit()):
            raise ProtocolError(f"content-length is {value[:40]!r}")
        return int(value)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Headers
    body: bytes


def parse_target(url: str) -> Target:
    """A target from `http://host:port/prefix`. Raises ValueError for anything else."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http or https address")
    tls = parts.scheme == "https"
    return Target(host=parts.hostname, port=parts.port or (443 if tls else 80), tls=tls, path=parts.path.rstrip("/"))


async def connect(target: Target, *, timeout_s: float = 10.0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(timeout_s):
        if target.unix is not None:
            return await asyncio.open_unix_connection(target.unix, limit=_HEAD_LIMIT)
        context = ssl.create_default_context() if target.tls else None
        return await asyncio.open_connection(target.host, target.port, ssl=context, limit=_HEAD_LIMIT)


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """The next message's head; None when the peer closed before its first byte. Raises ProtocolError."""
    try:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise ProtocolError("the connection ended inside a message head") from error
    except asyncio.LimitOverrunError as error:
        raise ProtocolError(f"a message head is larger than {_HEAD_LIMIT} bytes") from error
    return parse_head(text[:-4])


def parse_head(text: str) -> Head:
    """The head before its empty line. Raises ProtocolError."""
    first, *lines = text.split("\r\n")
    parts = first.split(" ", 2)
    if len(parts) < 2:
        raise ProtocolError(f"not a start line: {first[:80]!r}")
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise ProtocolError(f"not a header: {line[:80]!r}")
        headers.append((name.lower(), value.strip()))
    return Head((parts[0], parts[1], parts[2] if len(parts) > 2 else ""), headers)


async def read_body(reader: asyncio.StreamReader, head: Head, *, until_close: bool) -> AsyncIterator[bytes]:
    """The body's pieces as they come. `until_close`: a body without length ends with the connection (responses)."""
    if head.chunked:
        async for piece in _chunks(reader):
            yield piece
        return
    left = head.length
    if left is None:
        while until_close and (piece := await reader.read(65536)):
            yield piece
        return
    while left:
        piece = await reader.read(min(left, 65536))
        if not piece:
            raise ProtocolError("the connection ended inside a body")
        left -= len(piece)
        yield piece


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    try:
        while size := chunk_size(await reader.readuntil(b"\r\n")):
            while size:
                piece = await reader.read(min(size, 65536))
                if not piece:
                    raise ProtocolError("the connection ended inside a chunk")
                size -= len(piece)
                yield piece
            if await reader.readexactly(2) != b"\r\n":
                raise ProtocolError("a chunk does not end where it said")
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise ProtocolError("the connection ended inside a chunked body") from error


def chunk_size(line: bytes) -> int:
    digits = line.split(b";", 1)[0].strip()
    if not _HEX.fullmatch(digits):
        raise ProtocolError(f"not a chunk size: {digits[:20]!r}")
    return int(digits, 16)


def render_request(method: str, target: Target, path: str, headers: Mapping[str, str], length: int | None) -> bytes:
    lines = [f"{method} {target.path}{path} HTTP/1.1", f"Host: {target.authority}"]
    lines.extend(f"{name}: {value}" for name, value in headers.items())
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@contextlib.asynccontextmanager
async def open_answer(
    method: str, target: Target, path: str, *, headers: Mapping[str, str], body: bytes = b"", timeout_s: float
) -> AsyncIterator[tuple[Head, AsyncIterator[bytes]]]:
    """Send one request; the head and the body's pieces. `timeout_s` bounds the wait for the head, not the body.

    Raises OSError, TimeoutError or ProtocolError; leaving the block closes the connection.
    """
    reader, writer = await connect(target)
    try:
        writer.write(render_request(method, target, path, {**headers, "Connection": "close"}, len(body)) + body)
        async with asyncio.timeout(timeout_s):
            await writer.drain()
            head = await read_head(reader)
            while head is not None and 100 <= head.status < 200:
                head = await read_head(reader)
        if head is None:
            raise ProtocolError("the peer closed without an answer")
        yield head, read_body(reader, head, until_close=True)
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


async def request(
    method: str,
    target: Target,
    path: str,
    *,
    headers: Mapping[str, str],
    body: bytes = b"",
    timeout_s: float,
    limit: int = 64 * 1024 * 1024,
) -> Answer:
    """One whole exchange within `timeout_s`; an answer above `limit` bytes is a ProtocolError."""
    async with asyncio.timeout(timeout_s):
        async with open_answer(method, target, path, headers=headers, body=body, timeout_s=timeout_s) as (head, pieces):
            if head.status in (204, 304):
                return Answer(head.status, head.headers, b"")
            whole = bytearray()
            async for piece in pieces:
                whole += piece
                if len(whole) > limit:
                    raise ProtocolError(f"the answer is larger than {limit} bytes")
            return Answer(head.status, head.headers, bytes(whole))
