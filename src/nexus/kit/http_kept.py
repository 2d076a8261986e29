"""Whole HTTP/1.1 answers over connections that are kept from one request to the next, for places without an HTTP library.

A request costs a third of what `http_client.request` takes for one with a connection of its own. The peer is one of ours.
"""

import asyncio
import select
import threading
from collections.abc import Mapping
from typing import cast

from nexus.kit.http_client import Answer, Head, ProtocolError, Target, chunk_size, parse_head, render_request

_MOST_HEAD = 128 * 1024
_PAUSE_S = 0.03
_SAFE_TO_REPEAT = ("GET", "PUT", "DELETE", "HEAD")


class Kept:
    """Connections to a unix socket. For any number of event loops in any threads; each keeps its own, at most `most` idle ones.

    A connection that was lost before it was used again is replaced. One that is lost while an answer is awaited is an
    `OSError`, unless the request may be repeated and the connection was an old one: then it is, once. Where nobody listens,
    somebody is waited for as long as `patience_s`: the peer may be starting again.
    """

    def __init__(self, path: str, *, most: int = 4, patience_s: float = 0.0) -> None:
        self._target = Target(unix=path, host="door")
        self._most, self._patience_s = most, patience_s
        self._mine = threading.local()

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes = b"",
        timeout_s: float,
        limit: int = 64 * 1024 * 1024,
    ) -> Answer:
        """One exchange within `timeout_s`. Raises OSError, TimeoutError or ProtocolError (above `limit` bytes, too)."""
        sent = render_request(method, self._target, path, headers, len(body)) + body
        async with asyncio.timeout(timeout_s):
            connection = self._idle()
            if connection is not None:
                try:
                    return await self._exchange(connection, sent, limit)
                except ConnectionError:
                    if method not in _SAFE_TO_REPEAT or connection.heard:
                        raise
            return await self._exchange(await self._connect(), sent, limit)

    def close(self) -> None:
        """Close the idle connections of the running loop, before it ends."""
        idle = self._pool()
        while idle:
            idle.pop().abort()

    async def _exchange(self, connection: "_Connection", sent: bytes, limit: int) -> Answer:
        try:
            answer = await connection.ask(sent, limit)
        except BaseException:  # a cancellation too: what comes for it now is nobody's
            connection.abort()
            raise
        idle = self._pool()
        if connection.keeps and len(idle) < self._most:
            idle.append(connection)
        else:
            connection.abort()
        return answer

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience_s
        while True:
            try:
                _, made = await loop.create_unix_connection(_Connection, self._target.unix)
            except (FileNotFoundError, ConnectionRefusedError):
                if loop.time() >= until:
                    raise
                await asyncio.sleep(_PAUSE_S)
            else:
                return made

    def _idle(self) -> "_Connection | None":
        idle = self._pool()
        while idle:
            connection = idle.pop()
            if connection.is_quiet():
                return connection
            connection.abort()
        return None

    def _pool(self) -> "list[_Connection]":
        loop = asyncio.get_running_loop()
        held: tuple[asyncio.AbstractEventLoop, list[_Connection]] | None = getattr(self._mine, "held", None)
        if held is None or held[0] is not loop:
            held = self._mine.held = (loop, [])
        return held[1]


class _Connection(asyncio.Protocol):
    """One exchange at a time. `heard`: a byte of the current answer has come; `keeps`: it can be used again."""

    def __init__(self) -> None:
        self.heard = self.keeps = False
        self._buffer = bytearray()
        self._head: Head | None = None
        self._limit = 0
        self._waiter: asyncio.Future[Answer] | None = None

    async def ask(self, sent: bytes, limit: int) -> Answer:
        self.heard = self.keeps = False
        self._head, self._limit = None, limit
        self._buffer.clear()
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(sent)
        answer: Answer = await waiter
        return answer

    def is_quiet(self) -> bool:
        """Whether the peer has neither closed nor said anything while it was idle."""
        if self._transport.is_closing():
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    def abort(self) -> None:
        self._transport.abort()

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            self._transport.abort()
            return
        self.heard = True
        self._buffer += data
        try:
            answer = self._parse()
        except (ProtocolError, ValueError) as error:
            waiter.set_exception(ProtocolError(str(error)))
            return
        if answer is not None:
            self._waiter = None
            waiter.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.keeps = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionResetError("the connection ended before its answer"))

    def _parse(self) -> Answer | None:
        """The answer once it is whole."""
        buffer = self._buffer
        while self._head is None:
            end = buffer.find(b"\r\n\r\n")
            if max(end, 0 if end >= 0 else len(buffer)) > _MOST_HEAD:
                raise ProtocolError("the answer has an endless head")
            if end < 0:
                return None
            head = parse_head(buffer[:end].decode("latin-1"))
            del buffer[: end + 4]
            self._head = None if 100 <= head.status < 200 else head
        head = self._head
        body = self._body(head)
        if body is None:
            if len(buffer) > self._limit:
                raise ProtocolError(f"the answer is larger than {self._limit} bytes")
            return None
        self.keeps = not buffer and "close" not in (head.get("connection") or "").lower()
        return Answer(head.status, head.headers, body)

    def _body(self, head: Head) -> bytes | None:
        buffer = self._buffer
        if head.status in (204, 304):
            return b""
        if head.chunked:
            return _take_chunks(buffer)
        length = head.length
        if length is None:
            raise ProtocolError("the answer has no length")
        if length > self._limit:
            raise ProtocolError(f"the answer is larger than {self._limit} bytes")
        if len(buffer) < length:
            return None
        body = bytes(buffer[:length])
        del buffer[:length]
        return body


def _take_chunks(buffer: bytearray) -> bytes | None:
    """The whole chunked body, taken from the buffer; None as long as its end is missing."""
    at, pieces = 0, []
    while True:
        end = buffer.find(b"\r\n", at)
        if end < 0:
            return None
        size = chunk_size(bytes(buffer[at:end]))
        start = end + 2
        if not size:
            break
        if len(buffer) < start + size + 2:
            return None
        pieces.append(bytes(buffer[start : start + size]))
        if buffer[start + size : start + size + 2] != b"\r\n":
            raise ProtocolError("a chunk does not end where it said")
        at = start + size + 2
    while (end := buffer.find(b"\r\n", start)) >= 0:
        last, start = end == start, end + 2
        if last:
            del buffer[:start]
            return b"".join(pieces)
    return None
