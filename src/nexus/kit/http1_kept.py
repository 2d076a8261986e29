"""The client side of HTTP/1.1 on a connection that is kept from one request to the next; one request at a time.

A tenth of what streams and a connection for each request cost. `closed` tells whether the connection can be used again.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import cast

import httptools

from nexus.kit.http1 import Broken

_MAX_HEAD = 64 * 1024
_HIGH_WATER = 1024 * 1024


class Connection(asyncio.Protocol):
    """Made by `loop.create_unix_connection` and the like. `send`, then `head`, then `chunks` or `body`; `done` after its end."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._held = 0
        self._fed = 0
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._ended: Callable[[], None] | None = None
        self._keeps = False
        self._head_done = False
        self.used = 0.0
        self.done = True
        self.closed = False
        self.status = 0
        self.fields: dict[str, str] = {}

    def send(self, request: bytes) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._pieces, self._held, self._fed = [], 0, 0
        self._head_done = self.done = self._keeps = False
        self.status, self.fields = 0, {}
        if self._transport is None or self.closed:
            raise Broken("the connection had ended before the request was sent")
        self._transport.write(request)

    async def head(self) -> None:
        """Wait for the answer's header (informational answers are skipped)."""
        while not self._head_done:
            if self._fed > _MAX_HEAD:
                raise Broken("the answer has an endless header")
            await self._more()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes; an answer without a length lasts until the connection ends."""
        while True:
            if self._pieces:
                pieces, self._pieces, held, self._held = self._pieces, [], self._held, 0
                if held > _HIGH_WATER and self._transport is not None and not self.closed:
                    self._transport.resume_reading()
                yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
            elif self.done:
                return
            else:
                await self._more()

    async def body(self, limit: int) -> bytes:
        """The whole body, or `Broken` when it has more than `limit` bytes."""
        whole = bytearray()
        async for piece in self.chunks():
            whole += piece
            if len(whole) > limit:
                raise Broken(f"the answer is larger than {limit} bytes")
        return bytes(whole)

    @property
    def reusable(self) -> bool:
        return self.done and self._keeps and not self.closed

    def when_done(self, seconds: float, then: Callable[[], None]) -> None:
        """Call `then` once the answer has ended, reading nothing more of it; after `seconds` the connection is closed first."""
        if self.done or self.closed:
            then()
            return
        timer = asyncio.get_running_loop().call_later(seconds, self.abort)

        def ended() -> None:
            timer.cancel()
            then()

        self._ended = ended

    def abort(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    async def _more(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._failure is not None and not self._pieces and not self.done:
            raise self._failure

    def _wake(self) -> None:
        if self._ended is not None and (self.done or self.closed):
            ended, self._ended = self._ended, None
            self._pieces = []
            ended()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        if self.done:  # nobody asked: the other side is out of step
            self.abort()
            return
        if not self._head_done:
            self._fed += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._failure = Broken(f"the answer is not HTTP ({error})")
            self.abort()
        if self._held > _HIGH_WATER and self._transport is not None and not self.closed:
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._head_done and not self.done and "content-length" not in self.fields and "transfer-encoding" not in self.fields:
            self.done = True
        elif self._failure is None:
            self._failure = Broken(
                "the connection ended before the answer did"
                if error is None
                else f"the connection broke ({type(error).__name__})"
            )
        self._wake()

    # what the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._head_done = self.status >= 200
        if not self._head_done:
            self.fields = {}

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._held += len(body)

    def on_message_complete(self) -> None:
        if self._head_done:
            self.done = True
            self._keeps = self._parser.should_keep_alive()
