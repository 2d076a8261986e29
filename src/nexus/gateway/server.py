"""A client's connection: parses requests strictly, queues those that are pipelined, writes answers in order.

While one request is being answered, what follows it is kept unparsed (and bounded), yet reading goes on, so that a client
who leaves is noticed at once.
"""

import asyncio
import collections
from typing import Any, cast

import httptools

from nexus.core import errors
from nexus.gateway import answers, express, http1, shapes
from nexus.gateway.call import Call
from nexus.gateway.exchange import Exchange
from nexus.gateway.handler import Phase
from nexus.gateway.world import World


class ClientConnection(asyncio.Protocol):
    """`current` is the exchange being answered, `receiving` the one whose body is still arriving (often the same), `shape` what
    its plain requests look like, `misses` how many of them had to be read line by line. Between requests it is open until
    `deadline` (monotonic seconds)."""

    __slots__ = (
        "_advancing", "_backlog", "_head_bytes", "_head_read", "_headers", "_held_back", "_in_head", "_inside",
        "_last_read", "_lingering", "_out", "_parser", "_paused", "_queue", "_refusal", "_relayed", "_stalled_at", "_target",
        "current", "deadline", "express", "misses", "peer", "receiving", "shape", "transport", "world",
    )  # fmt: skip

    def __init__(self, world: World, *, inside: bool, relayed: bool = False) -> None:
        self.world = world
        self.current: Exchange | None = None
        self.receiving: Exchange | None = None
        self.express: express.Express | None = None
        self.shape: shapes.Shape[express.Opening] | None = None
        self.misses = 0
        self._inside, self._relayed = inside, relayed
        self._queue: collections.deque[Exchange] = collections.deque()
        self._backlog = b""
        self._out: list[bytes] = []
        self._refusal: errors.NexusError | None = None
        self._in_head = self._advancing = self._paused = self._held_back = self._lingering = False
        self._stalled_at = 0.0
        self._headers: list[http1.Header] = []
        self._target = b""
        self._head_bytes = self._head_read = 0
        self._parser: Any = None

    # what uvloop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        world = self.world
        self._last_read = world.loop.time()
        self.deadline = self._last_read + world.settings.header_timeout_s
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple) else "unix"
        self.transport.set_write_buffer_limits(high=world.settings.buffer_bytes)
        world.connections.add(self)
        if len(world.connections) > world.settings.max_connections:
            self._refuse(errors.Exhausted("too many connections are open", code="limit.connections", retry_after_s=1))

    def connection_lost(self, error: Exception | None) -> None:
        self._unfold()
        self.world.connections.discard(self)
        self._parser = None
        self._backlog = b""
        for exchange in (self.current, *self._queue):
            if exchange is not None:
                exchange.gone()
        self.current = self.receiving = None
        self._queue.clear()

    def data_received(self, data: bytes) -> None:
        if self.express is not None:
            self._unfold()
        elif (
            self.current is None
            and not (self._in_head or self._inside or self._relayed or self._lingering or self._stalled_at)
            and not (self._backlog or self._queue or self._refusal)
            and express.begin(self, data)
        ):
            return
        if self._lingering or self._refusal is not None:
            return
        if self.current is not None and self.receiving is None:
            self._keep(data)
            return
        self._feed(data)

    def eof_received(self) -> bool:
        return False

    def _unfold(self) -> None:
        """Let the run on the short way go on as an exchange."""
        if self.express is not None:
            self.express.abandon()

    def pause_writing(self) -> None:
        self._stalled_at = self.world.loop.time()
        self._unfold()
        if self.current is not None and self.current.upstream is not None:
            self.current.upstream.transport.pause_reading()

    def resume_writing(self) -> None:
        self._stalled_at = 0.0
        if self.current is not None and self.current.upstream is not None:
            self.current.upstream.transport.resume_reading()
        self._advance()

    # reading

    def _keep(self, data: bytes) -> None:
        """Bytes of later requests wait as they are; a client that sends too many of them is not read for a while."""
        current = self.current
        if current is not None and current.phase is Phase.TUNNEL and current.upstream is not None:
            current.upstream.transport.write(data)
            return
        if current is not None and not (current.call.head.keep_alive or current.call.head.upgrade):
            return
        self._backlog += data
        if len(self._backlog) > self.world.settings.buffer_bytes and not self._held_back:
            self._held_back = True
            self._set_reading()

    def _feed(self, data: bytes) -> None:
        if self.receiving is not None:
            self._last_read = self.world.loop.time()
        elif not self._in_head:
            self.deadline = self.world.loop.time() + self.world.settings.header_timeout_s
            self._in_head = True
            self._head_read = 0
        began_in_head = self._in_head
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._backlog += data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            self._spoil(error)
        else:
            if self._in_head and began_in_head:
                self._head_read += len(data)
                if self._head_read > self.world.settings.max_head_bytes:
                    self._spoil(_too_large(self.world.settings.max_head_bytes))
        self._advance()

    def _spoil(self, error: Exception) -> None:
        """What came cannot be read on. The request it belongs to is dropped, those before it are still answered."""
        last = self._queue[-1] if self._queue else self.current
        if self.receiving is None and last is not None and not last.call.head.keep_alive:
            return
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
        self._refusal = cause if isinstance(cause, errors.NexusError) else http1.malformed(str(error))
        spoilt, self.receiving = self.receiving, None
        if spoilt is None:
            return
        if spoilt is self.current:
            spoilt.fail(self._refusal)
        else:
            self._queue.remove(spoilt)

    # what the parser calls

    def on_message_begin(self) -> None:
        self._in_head = True
        self._headers = []
        self._target = b""
        self._head_bytes = self._head_read = 0

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        limits = self.world.settings
        if self._head_bytes > limits.max_head_bytes or len(self._headers) >= limits.max_headers:
            raise _too_large(limits.max_head_bytes)
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        world, parser = self.world, self._parser
        self._in_head = False
        head = http1.parse_request(
            method=parser.get_method(),
            target=self._target,
            headers=self._headers,
            version=parser.get_http_version(),
            keep_alive=parser.should_keep_alive(),
        )
        if parser.should_upgrade():
            http1.check_websocket(head)
            head.upgrade, head.keep_alive = True, False
        if len(self._queue) >= world.settings.max_pipelined:
            raise errors.Exhausted("too many requests are pipelined on one connection", code="limit.pipelined")
        self._headers = []
        call = Call(head=head, inside=self._inside, relayed=self._relayed, peer=self.peer, started=world.clock())
        exchange = Exchange(self, call, world)
        self.receiving = exchange
        self._queue.append(exchange)

    def on_body(self, part: bytes) -> None:
        if self.receiving is not None:
            self.receiving.take(part)

    def on_message_complete(self) -> None:
        if self.receiving is not None:
            self.receiving.received = True
            self.receiving = None
        self._headers = []
        self._head_bytes = 0

    # answering, in order

    def _advance(self) -> None:
        """Start what can be started; a loop and not a recursion, because an exchange may end while it starts."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while not self.transport.is_closing() and not self._lingering:
                if self.current is not None:
                    self.current.pump()
                    if self.current is not None:
                        break
                if self._stalled_at:
                    break
                if self._queue:
                    self.current = self._queue.popleft()
                    self._last_read = self.world.loop.time()
                    self.current.start()
                elif self._refusal is not None:
                    self._refuse(self._refusal)
                elif self._backlog:
                    data, self._backlog = self._backlog, b""
                    self._release_reading()
                    self._feed_backlog(data)
                else:
                    break
        finally:
            self._advancing = False

    def take_backlog(self) -> bytes:
        """What came behind the current request's head, now that it belongs to a tunnel."""
        data, self._backlog = self._backlog, b""
        self._release_reading()
        return data

    def _feed_backlog(self, data: bytes) -> None:
        self._advancing = True
        self._feed(data)

    def finish(self, exchange: Exchange, *, close: bool, cut: bool) -> None:
        """An exchange is over. Its bytes go out; the connection closes or turns to the next request."""
        if exchange is not self.current:
            return
        self.current = None
        if cut:
            self._out.clear()
            self.transport.abort()
            return
        self.flush()
        if close or self.world.draining:
            self._close_gently()
            return
        limits = self.world.settings
        self.deadline = self.world.loop.time() + (limits.header_timeout_s if self._in_head else limits.keep_alive_s)
        self.resume_reading()
        if not self._advancing and (self._queue or self._backlog or self._refusal is not None):
            self._advance()

    def _refuse(self, error: errors.NexusError) -> None:
        status, headers, body = answers.render_problem(error, None)
        self.world.counts.refused += 1
        self._refusal = error
        self.transport.write(answers.render(status, headers, body, close=True))
        self._close_gently()

    def _close_gently(self) -> None:
        """Say that no more will be sent, and read a little longer what the client is still sending: closing at once would
        reset the connection and could destroy the answer on its way."""
        if self._lingering:
            return
        self._lingering = True
        self._queue.clear()
        self._backlog = b""
        self.receiving = None
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.deadline = self.world.loop.time() + self.world.settings.linger_s
            self._held_back = self._paused = False
            self._set_reading()
        else:
            self.transport.close()

    # writing, and back-pressure

    @property
    def stalled(self) -> bool:
        """Whether the client reads so slowly that the answer's source should pause."""
        return self._stalled_at > 0

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def hold(self, data: bytes) -> None:
        self._out.append(data)

    def drop_held(self) -> None:
        self._out.clear()

    def flush(self) -> None:
        out = self._out
        if out:
            self.transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    def hold_reading(self) -> None:
        self._paused = True
        self._set_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._last_read = self.world.loop.time()
            self._set_reading()

    def _release_reading(self) -> None:
        if self._held_back:
            self._held_back = False
            self._set_reading()

    def _set_reading(self) -> None:
        if self.transport.is_closing():
            return
        wanted = not (self._paused or self._held_back)
        if wanted and not self.transport.is_reading():
            self.transport.resume_reading()
        elif not wanted and self.transport.is_reading():
            self.transport.pause_reading()

    # time

    def check(self, now: float) -> None:
        """Called twice a second: end what has waited too long."""
        limits = self.world.settings
        if self._stalled_at and now - self._stalled_at > limits.write_stall_s:
            self.transport.abort()
            return
        if self.express is not None and now > self.express.deadline:
            self._unfold()
        exchange = self.current
        if self.express is not None:
            return
        if exchange is None:
            if now > self.deadline:
                self._idle_out()
            return
        if self.receiving is exchange and not self._paused and now - self._last_read > limits.body_idle_s:
            exchange.fail(errors.Exhausted("the body stopped coming", code="request.timeout", next_step="send the request again"))
        elif now > exchange.deadline and exchange.handler is not None:
            try:
                exchange.handler.expired()
            except errors.NexusError as error:
                exchange.fail(error)

    def _idle_out(self) -> None:
        if self._lingering:
            self.transport.abort()
        elif self._in_head and self._refusal is None:
            self._refuse(errors.Exhausted("the request head did not come in time", code="request.timeout"))
        else:
            self.transport.close()

    def drain(self) -> None:
        """The process is stopping: close what is idle; an answer under way is finished first."""
        if self.current is None and self.express is None and not (self._queue or self._in_head or self._lingering):
            self.transport.close()

    def is_busy(self) -> bool:
        return self.express is not None or (self.current is not None and self.current.phase is not Phase.DONE)


def _too_large(limit: int) -> errors.NexusError:
    return errors.Exhausted(
        f"the request head is larger than {limit} bytes or has too many headers",
        code="headers.too_large",
        next_step="send fewer or shorter headers",
    )
