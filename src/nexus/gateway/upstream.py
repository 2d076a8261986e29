"""Connections to whatever answers (workers, control, model providers): dialled once, kept alive, checked before reuse.

A connection serves one exchange at a time. What it reads is parsed strictly and handed to the exchange's `on_…` methods;
anything a peer sends that was not asked for ends the connection.
"""

import asyncio
import collections
import select
import ssl
from typing import TYPE_CHECKING, Any, Protocol, cast

import httptools

from nexus.gateway import http1, routes, settings

if TYPE_CHECKING:
    from nexus.gateway.express import Express

_MOST_HEADERS = 200
_MOST_INTERIM = 16
_FRESH_S = 0.002


class BadAnswer(Exception):
    """The peer's answer breaks HTTP, or our limits; the text says how and holds nothing of its content."""


class Receiver(Protocol):
    """What an upstream connection tells the exchange it serves. One of `on_answer_end`, `on_bad_answer` and
    `on_upstream_lost` ends an answer; `flush` is called after each read that did not."""

    def on_answer(self, status: int, headers: list[http1.Header], *, length: int | None, chunked: bool) -> None: ...
    def on_answer_data(self, parts: list[bytes]) -> None: ...
    def on_answer_end(self, *, reusable: bool) -> None: ...
    def on_bad_answer(self, reason: str) -> None: ...
    def on_upstream_lost(self, error: Exception | None) -> None: ...
    def wants_tunnel(self) -> bool: ...
    def on_tunnel(self, headers: list[http1.Header]) -> None: ...
    def on_tunnel_data(self, data: bytes) -> None: ...
    def flush(self) -> None: ...
    def pause_body(self) -> None: ...
    def resume_body(self) -> None: ...


class Upstream(asyncio.Protocol):
    """One connection. `answered` tells whether any byte of the current answer has come, `fresh` whether it was never used,
    `express` the run on the short way that it serves."""

    __slots__ = (
        "_chunked", "_done", "_head_bytes", "_headers", "_headless", "_interim", "_length", "_naked", "_parser", "_parts",
        "_poll", "_reusable", "_status", "_tunnel", "address", "answered", "express", "fresh", "idle_since", "pool", "receiver",
        "transport",
    )  # fmt: skip

    def __init__(self, pool: "Pool", address: str) -> None:
        self.pool = pool
        self.address = address
        self.receiver: Receiver | None = None
        self.express: Express | None = None
        self._tunnel = False
        self.fresh = True
        self.answered = False
        self.idle_since = 0.0
        self._parser: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=self.pool.buffer_bytes)
        self._poll = select.poll()
        sock = transport.get_extra_info("socket")
        self._poll.register(sock.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLRDHUP)

    def _unfold(self) -> None:
        """The run that was carried is no longer a plain one; `begin` is called in here."""
        express, self.express = self.express, None
        if express is not None:
            express.unfold()

    def begin(self, receiver: Receiver, *, headless: bool) -> None:
        """Serve one exchange. `headless`: its request is HEAD, so the answer has no body whatever it says."""
        self.receiver = receiver
        self.answered = self._done = self._reusable = self._naked = False
        self._headless = headless
        self._interim = 0
        if self._parser is None or headless:
            self._parser = httptools.HttpResponseParser(self)
        self.on_message_begin()

    def is_quiet(self, now: float) -> bool:
        """Whether an idle connection has neither been closed by its peer nor sent anything: one system call, no race lost
        that a write would have won. The loop itself has just looked at a connection that rests only since this very turn."""
        if self.transport.is_closing():
            return False
        return now - self.idle_since < _FRESH_S or not self._poll.poll(0)

    def close(self) -> None:
        """Drop the connection at once; the exchange, if any, hears nothing more."""
        self.receiver = None
        self.transport.abort()

    def release(self, *, reusable: bool) -> None:
        self.receiver = None
        self.fresh = False
        if reusable and not self._headless:
            self.pool.give_back(self)
        else:
            self.transport.close()

    # what uvloop calls

    def data_received(self, data: bytes) -> None:
        express = self.express
        if express is not None:
            if express.finish(data):
                return
            self._unfold()
        receiver = self.receiver
        if receiver is None:
            self.transport.abort()
            return
        self.answered = True
        if self._tunnel:
            receiver.on_tunnel_data(data)
            return
        self._parts: list[bytes] = []
        problem = self._parse(data)
        if self._tunnel and not problem:
            return
        if self.receiver is None:
            return
        if self._parts:
            receiver.on_answer_data(self._parts)
        if self.receiver is None:
            return
        if self._done:
            receiver.on_answer_end(reusable=self._reusable and not problem and not self.transport.is_closing())
        elif problem:
            receiver.on_bad_answer(problem)
        else:
            receiver.flush()

    def _parse(self, data: bytes) -> str:
        """What is wrong with the answer so far; empty when nothing is."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._tunnel:
                return "it switched protocols unasked"
            rest = data[upgrade.args[0] :]
            if rest and self.receiver is not None:
                self.receiver.on_tunnel_data(rest)
        except httptools.HttpParserError as error:
            cause = error.__context__
            return str(cause) if isinstance(cause, BadAnswer) else f"it is not well-formed HTTP ({error})"
        return ""

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.pool.forget(self)
        self._unfold()
        self._parser = None
        receiver, self.receiver = self.receiver, None
        if receiver is None:
            return
        if error is None and self._naked:
            receiver.on_answer_end(reusable=False)
        else:
            receiver.on_upstream_lost(error)

    def pause_writing(self) -> None:
        self._unfold()
        if self.receiver is not None:
            self.receiver.pause_body()

    def resume_writing(self) -> None:
        if self.receiver is not None:
            self.receiver.resume_body()

    # what the parser calls

    def on_message_begin(self) -> None:
        if self._done:
            raise BadAnswer("it went on after its end")
        self._headers: list[http1.Header] = []
        self._head_bytes = 0
        self._status = 0
        self._length: int | None = None
        self._chunked = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if len(self._headers) >= _MOST_HEADERS or self._head_bytes > self.pool.max_head_bytes:
            raise BadAnswer("it has too many or too large headers")
        if not self._status:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status == 101 and self.receiver is not None and self.receiver.wants_tunnel():
            self.receiver.on_tunnel(self._headers)
            self._tunnel = True
            return
        if status < 200:
            self._interim += 1
            if status == 101 or self._interim > _MOST_INTERIM:
                raise BadAnswer("it switched protocols unasked" if status == 101 else "it sent too many interim answers")
            return
        if status > 599:
            raise BadAnswer(f"its status is {status}")
        self._status = status
        self._read_lengths()
        bodiless = self._headless or status in (204, 304)
        self._naked = not bodiless and not self._chunked and self._length is None
        self._reusable = self._parser.should_keep_alive() and not self._naked
        if self.receiver is not None:
            self.receiver.on_answer(status, self._headers, length=0 if bodiless else self._length, chunked=self._chunked)
        if self._headless:
            self._done = True

    def _read_lengths(self) -> None:
        for name, value in self._headers:
            if name == b"content-length":
                if not value.isdigit() or len(value) > 15 or self._length is not None:
                    raise BadAnswer("its Content-Length is not one number")
                self._length = int(value)
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked" or self._chunked:
                    raise BadAnswer("its Transfer-Encoding is not chunked")
                self._chunked = True
        if self._chunked and self._length is not None:
            raise BadAnswer("it has two lengths")

    def on_body(self, part: bytes) -> None:
        if not self._headless:
            self._parts.append(part)

    def on_message_complete(self) -> None:
        if self._status:
            self._done = True


class Pool:
    """Idle connections by address, newest first. An address is `unix:/path`, `tcp:host:port` or `tls:host:port`."""

    def __init__(self, config: settings.Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.max_head_bytes = config.max_head_bytes
        self.buffer_bytes = config.buffer_bytes
        self._idle_s = config.idle_upstream_s
        self._most_idle = config.idle_upstreams
        self._dial_timeout_s = config.dial_timeout_s
        self._loop = loop
        self._idle: dict[str, collections.deque[Upstream]] = {}
        self._open: set[Upstream] = set()
        self._tls: ssl.SSLContext | None = None

    @property
    def open_count(self) -> int:
        return len(self._open)

    def take(self, address: str, now: float) -> Upstream | None:
        """An idle connection that its peer still holds open, or None."""
        idle = self._idle.get(address)
        while idle:
            connection = idle.pop()
            if connection.is_quiet(now):
                return connection
            connection.close()
        return None

    async def dial(self, address: str) -> Upstream:
        """A new connection. Raises OSError or TimeoutError; then nothing was sent."""
        kind, place, port = routes.parse_address(address)
        async with asyncio.timeout(self._dial_timeout_s):
            if kind == "unix":
                _, made = await self._loop.create_unix_connection(lambda: Upstream(self, address), place)
            else:
                context = self._context() if kind == "tls" else None
                _, made = await self._loop.create_connection(lambda: Upstream(self, address), place, port, ssl=context)
        self._open.add(made)
        return made

    def keep(self, connection: Upstream) -> None:
        """Back to the idle ones, at the cost of one look-up: for a connection that was taken from them and only read from."""
        idle = self._idle.get(connection.address)
        if idle is None or len(idle) >= self._most_idle:
            self.give_back(connection)
        else:
            idle.append(connection)

    def give_back(self, connection: Upstream) -> None:
        idle = self._idle.setdefault(connection.address, collections.deque())
        if len(idle) >= self._most_idle:
            connection.transport.close()
            return
        if not connection.transport.is_reading():
            connection.transport.resume_reading()
        connection.idle_since = self._loop.time()
        idle.append(connection)

    def forget(self, connection: Upstream) -> None:
        self._open.discard(connection)
        idle = self._idle.get(connection.address)
        if idle is not None and connection in idle:
            idle.remove(connection)

    def sweep(self, now: float) -> None:
        """Close what has been idle so long that its peer may be about to close it."""
        for address, idle in list(self._idle.items()):
            while idle and now - idle[0].idle_since > self._idle_s:
                idle.popleft().transport.close()
            if not idle:
                del self._idle[address]

    def close(self) -> None:
        for connection in list(self._open):
            connection.close()
        self._idle.clear()

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls
