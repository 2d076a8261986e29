"""A very small HTTP/1.1 client side: read one answer as it comes, and post one body to a pinned address.

One connection for one request. Used where an HTTP library would cost more than the request, and where the address that was
judged must be the address that is called.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

import httptools

_CHUNK = 64 * 1024
_MAX_HEAD = 64 * 1024
_CLOSE_S = 1.0


class Broken(Exception):
    """The answer ended before its end, is not HTTP, or is too large; the text says which."""


class AnswerStream:
    """One answer: after `head`, `status` and `fields` (lower-case names) are there; the body comes from `chunks`."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._head_bytes = 0
        self._head_done = False
        self._done = False
        self.status = 0
        self.fields: dict[str, str] = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._head_done = self.status >= 200

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._done = self._head_done

    async def head(self) -> None:
        """Read up to the end of the header (informational answers are skipped)."""
        while not self._head_done:
            self._head_bytes += await self._feed()
            if self._head_bytes > _MAX_HEAD and not self._head_done:
                raise Broken("the answer has an endless header")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes; an answer without a length lasts until the connection ends."""
        while True:
            if self._body:
                pieces, self._body = self._body, []
                yield b"".join(pieces)
            elif self._done:
                return
            else:
                await self._feed()

    async def body(self, limit: int) -> bytes:
        """The whole body, or `Broken` when it has more than `limit` bytes."""
        whole = bytearray()
        async for piece in self.chunks():
            whole += piece
            if len(whole) > limit:
                raise Broken(f"the answer is larger than {limit} bytes")
        return bytes(whole)

    async def _feed(self) -> int:
        try:
            data = await self._reader.read(_CHUNK)
        except OSError as error:
            raise Broken(f"the connection broke ({type(error).__name__})") from error
        if not data:
            if self._head_done and "content-length" not in self.fields and "transfer-encoding" not in self.fields:
                self._done = True
                return 0
            raise Broken("the connection ended before the answer did")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise Broken(f"the answer is not HTTP ({error})") from error
        return len(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`body` holds at most as much as was asked for; the rest was not read."""

    status: int
    fields: Mapping[str, str]
    body: bytes


def render_post(path: str, fields: Mapping[str, str], body: bytes) -> bytes:
    """A request as bytes. Raises ValueError when a value would break out of its line."""
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header value holds a line break")
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "Connection: close", "", ""]).encode("latin-1") + body


async def post(
    addresses: Sequence[str],
    *,
    port: int,
    server_name: str | None,
    path: str,
    fields: Mapping[str, str],
    body: bytes,
    max_answer: int,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """Post to the first address that accepts. `server_name` None: plain HTTP; else TLS, the certificate checked for that name.

    Follows nothing, reads at most `max_answer` bytes; the caller sets the timeout. Raises OSError (TLS included) or `Broken`.
    """
    reader, writer = await _connect(addresses, port, server_name, tls)
    try:
        writer.write(render_post(path, fields, body))
        stream = AnswerStream(reader)
        await stream.head()
        read = bytearray()
        async for piece in stream.chunks():
            read += piece
            if len(read) >= max_answer:
                break
        return Answer(status=stream.status, fields=stream.fields, body=bytes(read[:max_answer]))
    finally:
        writer.transport.abort()


async def _connect(
    addresses: Sequence[str], port: int, server_name: str | None, tls: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = None if server_name is None else tls or ssl.create_default_context()
    last: OSError = OSError("there is no address to connect to")
    for address in addresses:
        try:
            return await asyncio.open_connection(
                address, port, ssl=context, server_hostname=server_name if context is not None else None, limit=_CHUNK
            )
        except OSError as error:
            last = error
    raise last
