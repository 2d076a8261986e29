"""One request and its answer on their way: collects or streams the body, borrows an upstream connection, relays back.

It knows bytes, back-pressure and life; what a kind of request means is its handler's (`doors`, `models_door`). Everything
here is a plain callback on the loop's thread; only dialling is a task.
"""

import math
from typing import TYPE_CHECKING

from nexus.core import errors
from nexus.gateway import answers, coding, http1, stages, waking
from nexus.gateway.call import Call
from nexus.gateway.handler import Handler, Phase
from nexus.gateway.upstream import BadAnswer, Upstream
from nexus.gateway.world import World
from nexus.kit import guard
from nexus.wire import problem as wire_problem

if TYPE_CHECKING:
    from nexus.gateway.server import ClientConnection

CLIENT_GONE = 499
_JOINED_AT_ONCE = 256


class Exchange:
    """See the module. `received` says the request's body is whole, `size` how much of it came, `sent` the answer's bytes."""

    __slots__ = (
        "_broken_body", "_chunk_request", "_chunks", "_closing", "_compressor", "_continue", "_expander", "_joined", "_kept",
        "answered", "call", "client", "deadline", "early", "flushed", "handler", "parts", "phase", "received", "sent", "size",
        "status", "upstream", "world",
    )  # fmt: skip

    def __init__(self, client: "ClientConnection", call: Call, world: World) -> None:
        self.client = client
        self.call = call
        self.world = world
        self.phase = Phase.QUEUED
        self.handler: Handler | None = None
        self.upstream: Upstream | None = None
        self.parts: list[bytes] = []
        self.received = False
        self.size = 0
        self.sent = 0
        self.status = 0
        self.answered = False
        self.deadline = math.inf
        self.flushed = False
        self.early: waking.Waking | None = None
        self._kept = b""
        self._joined = 0
        self._chunk_request = False
        self._chunks = False
        self._closing = False
        self._continue = False
        self._compressor: coding.Compressor | None = None
        self._expander: coding.Expander | None = None
        self._broken_body: errors.NexusError | None = None

    # the client's side

    def start(self) -> None:
        """Decide, then begin. Called when the answers before it on this connection are out."""
        self.world.counts.requests += 1
        self.world.counts.in_flight += 1
        self._continue = b"expect" in self.call.head.named
        try:
            stages.decide(self.call, self.world)
            self.handler = self.world.open_handler(self)
            self._check_size()
            self._begin_expanding(self.handler.expander())
            if self._continue and self.call.head.named[b"expect"].lower() != b"100-continue":
                raise http1.malformed("an expectation other than 100-continue cannot be met")
            if self.handler.collects and not self.received:
                self.phase = Phase.COLLECTING
                self.deadline = self.world.loop.time() + self.world.settings.collect_timeout_s
                self._invite()
            else:
                self.handler.open()
        except errors.NexusError as error:
            self.fail(error)

    def _check_size(self) -> None:
        handler, length = self.handler, self.call.head.length
        if handler is not None and (self.size if length is None else length) > handler.max_body_bytes:
            raise errors.Invalid(
                f"the body is larger than {handler.max_body_bytes} bytes",
                code="body.too_large",
                next_step="send less, or put the document where the agent can fetch it",
            )

    def _begin_expanding(self, expander: coding.Expander | None) -> None:
        """The body is gzip: its length is not known any more, and what has come of it is expanded first."""
        if expander is None:
            return
        raw, self.parts, self._joined, self.size = b"".join(self.parts), [], 0, 0
        self._expander = expander
        self.call.head.length = None
        self.take(raw)
        self._check_expanded()

    def _check_expanded(self) -> None:
        """Raises what `take` found wrong with a coded body, which only then is known to be whole."""
        broken, expander = self._broken_body, self._expander
        if broken is not None:
            raise broken
        if expander is not None and self.received:
            self._check_size()
            expander.end()

    def take(self, part: bytes) -> None:
        """A part of the request's body, as the parser found it. Acted on in `pump`.

        Parts may be single bytes; they are joined in steps, so that the list never weighs more than what is in it.
        """
        if self._expander is not None:
            try:
                part = self._expander.feed(part)
            except errors.NexusError as error:
                self._broken_body = error
                return
            if not part:
                return
        self.size += len(part)
        parts = self.parts
        parts.append(part)
        if len(parts) - self._joined >= _JOINED_AT_ONCE:
            parts[self._joined :] = [b"".join(parts[self._joined :])]
            self._joined += 1

    def pump(self) -> None:
        """After each read: send on what came."""
        handler = self.handler
        if handler is None or self.phase is Phase.DONE:
            return
        if self._expander is not None or (self.call.head.length is None and self.size > handler.max_body_bytes):
            try:
                self._check_size()
                self._check_expanded()
            except errors.NexusError as error:
                self.fail(error)
                return
        if self.phase is Phase.RELAYING:
            self._send_parts()
            handler.body_moved()
        elif self.phase is Phase.COLLECTING:
            if self.received:
                try:
                    handler.open()
                except errors.NexusError as error:
                    self.fail(error)
        elif not self.received and self.size > self.world.settings.buffer_bytes:
            self.client.hold_reading()

    def _send_parts(self) -> None:
        upstream = self.upstream
        if upstream is None:
            return
        out: list[bytes] = []
        if self.parts:
            out.append(http1.chunk(self.parts) if self._chunk_request else b"".join(self.parts))
            self.parts.clear()
            self._joined = 0
        if self.received and self._chunk_request:
            out.append(http1.LAST_CHUNK)
            self._chunk_request = False
        if out:
            upstream.transport.write(b"".join(out))

    def _invite(self) -> None:
        """Tell a client that asked first to send its body."""
        if self._continue and not self.received and not self.size:
            self.client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._continue = False

    def gone(self) -> None:
        """The client left: whatever is under way for it ends now."""
        if self.phase is Phase.TUNNEL:
            self._end(outcome="completed", status=101, code="", reusable=False)
            return
        self._end(outcome="cancelled", status=CLIENT_GONE, code="run.cancelled", reusable=False)

    # going upstream

    def connect(self, address: str) -> None:
        upstream = self.world.pool.take(address, self.world.loop.time())
        if upstream is not None:
            self._attach(upstream)
            return
        self.phase = Phase.DIALING
        guard.spawn(self._dial(address), name="dial", owner=self.world.tasks)

    async def _dial(self, address: str) -> None:
        try:
            upstream = await self.world.pool.dial(address)
        except (OSError, TimeoutError, ValueError) as error:
            if self.phase is Phase.DIALING and self.handler is not None:
                try:
                    self.handler.unreachable(error)
                except errors.NexusError as problem:
                    self.fail(problem)
            return
        if self.phase is Phase.DIALING:
            self._attach(upstream)
        else:
            upstream.close()

    def _attach(self, upstream: Upstream) -> None:
        handler = self.handler
        if handler is None:
            return
        head = self.call.head
        self.phase = Phase.RELAYING
        self.upstream = upstream
        upstream.begin(self, headless=head.method == b"HEAD")
        if self.client.stalled:
            upstream.transport.pause_reading()
        self._chunk_request = False
        if self.received:
            body = b"".join(self.parts)
            bodiless = not body and head.method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS")
            framing = b"" if bodiless else b"Content-Length: %d\r\n" % len(body)
            self.parts.clear()
            self._joined = 0
            self._kept = b"" if upstream.fresh and not handler.collects else body
            upstream.transport.write(handler.request_head(framing) + body)
            return
        self._chunk_request = head.length is None
        framing = b"Transfer-Encoding: chunked\r\n" if head.length is None else b"Content-Length: %d\r\n" % head.length
        upstream.transport.write(handler.request_head(framing))
        self._send_parts()
        self._invite()
        self.client.resume_reading()

    def resume(self, handler: Handler, upstream: Upstream, body: bytes, *, deadline: float) -> None:
        """Go on with what the short way (`express`) began: the request was sent whole, its answer is still to come."""
        self.handler, self.upstream, self.deadline = handler, upstream, deadline
        self.received, self.size, self._kept = True, len(body), body
        self.phase = Phase.RELAYING
        upstream.begin(self, headless=False)
        if self.client.stalled:
            upstream.transport.pause_reading()

    def replace_body(self, body: bytes) -> None:
        """Only with a handler that collects: what is sent upstream in place of the client's body."""
        self.parts = [body]

    def send_elsewhere(self, address: str, body: bytes) -> None:
        """Only with a handler that collects, and before any answer has begun: leave this upstream and ask another."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.close()
        self.parts = [body]
        self.connect(address)

    def pause_body(self) -> None:
        self.client.hold_reading()

    def resume_body(self) -> None:
        self.client.resume_reading()

    def on_upstream_lost(self, error: Exception | None) -> None:
        if self.phase is Phase.TUNNEL:
            self._end(outcome="completed", status=101, code="", reusable=False)
            return
        upstream, self.upstream = self.upstream, None
        if self.phase is not Phase.RELAYING or upstream is None or self.handler is None:
            return
        if self._was_never_read(upstream, error):
            self.parts = [self._kept]
            self.connect(upstream.address)
            return
        try:
            if not upstream.answered and self.handler.collects:
                self.parts = [self._kept]
                if self.handler.repeat():
                    return
        except errors.NexusError as problem:
            self.fail(problem)
            return
        reason = "the connection broke off before the answer was complete"
        if upstream.answered or not self.handler.ask_why(reason):
            self.fail(self.handler.broken(reason, lost=True))

    def _was_never_read(self, upstream: Upstream, error: Exception | None) -> bool:
        """Whether a reused connection was already closed when the whole request was written to it in one piece: the
        write itself failed (EPIPE), so the peer read nothing. Anything less certain is not tried again."""
        whole = self.received and len(self._kept) <= self.world.settings.buffer_bytes
        return whole and isinstance(error, BrokenPipeError) and not upstream.fresh and not upstream.answered

    # coming back

    def on_answer(self, status: int, headers: list[http1.Header], *, length: int | None, chunked: bool) -> None:
        handler = self.handler
        if handler is None:
            return
        cleaned = handler.answer_headers(status, headers)
        head = self.call.head
        if self.early is not None:
            self.early.begin_answer(status, headers)
            return
        self.status = status
        self._closing = not head.keep_alive or not self.received or self.world.draining
        if head.method == b"HEAD":
            cleaned.extend((b"Content-Length", value) for name, value in headers if name == b"content-length")
        elif status not in (204, 304):
            compressor = coding.decide_compressor(
                head, status, cleaned, length, mode="none" if self.call.inside else handler.compression
            )
            if compressor is not None:
                self._compressor, length = compressor, None
                cleaned = compressor.headers(cleaned)
            if length is not None and not handler.rewrites:
                cleaned.append((b"Content-Length", b"%d" % length))
            elif head.modern:
                self._chunks = True
                cleaned.append((b"Transfer-Encoding", b"chunked"))
            else:
                self._closing = True
        if self._closing:
            cleaned.append((b"Connection", b"close"))
        self.answered = True
        self.client.hold(http1.render_head(status, cleaned))

    def begin_early(self, early: waking.Waking) -> None:
        """Begin a stream's answer before its worker does, when that has not answered yet."""
        if self.answered or self.phase not in (Phase.WAITING, Phase.DIALING, Phase.RELAYING):
            return
        self.early, self.status = early, 200
        self.answered = self.flushed = self._closing = True
        self._chunks = self.call.head.modern
        self.client.hold(early.head())
        self._pass_on([early.event()])
        self.client.flush()

    def on_answer_data(self, parts: list[bytes]) -> None:
        handler = self.handler
        if handler is None:
            return
        if self.early is not None and self.early.collect(parts):
            return
        if handler.watches:
            for part in parts:
                handler.watch(part)
        if handler.rewrites:
            parts = [new for part in parts if (new := handler.see(part))]
            if not parts:
                return
        self._pass_on(parts)

    def _pass_on(self, parts: list[bytes]) -> None:
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self.sent += len(data)
        if self._compressor is not None:
            data = self._compressor.feed(data)
            if not data:
                return
        self.client.hold(b"%x\r\n%b\r\n" % (len(data), data) if self._chunks else data)

    def flush(self) -> None:
        """The read is over: what it held goes to the client now, an event as soon as it came."""
        self.flushed = self.answered
        self.client.flush()

    def on_answer_end(self, *, reusable: bool) -> None:
        handler = self.handler
        if handler is None:
            return
        if self.early is not None and (problem := self.early.failure()) is not None:
            self.fail(problem)
            return
        if handler.rewrites and (rest := handler.last()):
            self._pass_on([rest])
        if self._compressor is not None and (rest := self._compressor.end()):
            self.client.hold(b"%x\r\n%b\r\n" % (len(rest), rest))
        if self._chunks:
            self.client.hold(http1.LAST_CHUNK)
        outcome = "completed" if self.status < 400 else "failed"
        self._end(outcome=outcome, status=self.status, code="", reusable=reusable and self.received)

    def on_bad_answer(self, reason: str) -> None:
        self.world.counts.bad_upstream += 1
        if self.handler is not None and not self.answered:
            try:
                if self.handler.another_try():
                    return
            except errors.NexusError as problem:
                self.fail(problem)
                return
        if self.handler is not None:
            self.fail(self.handler.broken(reason, lost=False))

    # a WebSocket

    def wants_tunnel(self) -> bool:
        return self.call.head.upgrade and not self.answered

    def on_tunnel(self, headers: list[http1.Header]) -> None:
        """The other side switched protocols, as it was asked to: from here on bytes pass as they are, both ways."""
        handler, upstream = self.handler, self.upstream
        if handler is None or upstream is None:
            return
        accept = [value for name, value in headers if name == b"sec-websocket-accept"]
        protocols = [value.lower() for name, value in headers if name == b"upgrade"]
        expected = http1.websocket_accept(self.call.head.named[b"sec-websocket-key"])
        if accept != [expected] or protocols != [b"websocket"]:
            raise BadAnswer("its WebSocket handshake is not an answer to ours")
        cleaned = [header for header in handler.tunnel_headers(headers) if header[0] != b"sec-websocket-accept"]
        cleaned += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"), (b"Sec-WebSocket-Accept", expected)]
        self.phase, self.status = Phase.TUNNEL, 101
        self.answered = self.flushed = self._closing = True
        self.client.write(http1.render_head(101, cleaned))
        early = self.client.take_backlog()
        if early:
            upstream.transport.write(early)

    def on_tunnel_data(self, data: bytes) -> None:
        self.sent += len(data)
        self.client.write(data)

    # ends

    def reply(self, status: int, headers: list[http1.Header], body: bytes) -> None:
        """Answer from here, without any upstream."""
        self._closing = not self.call.head.keep_alive or not self.received or self.world.draining
        self.answered, self.status = True, status
        headless = self.call.head.method == b"HEAD"
        self.client.hold(answers.render(status, headers, body, close=self._closing, headless=headless))
        self._end(outcome="completed" if status < 400 else "failed", status=status, code="", reusable=False)

    def fail(self, error: errors.NexusError) -> None:
        """Answer with a problem, or cut the connection when an answer has begun: a client must not take a part for the whole."""
        if self.phase is Phase.DONE:
            return
        if self.early is not None and not self.early.passing:
            self._pass_on([self.early.last_words(error)])
            self.client.hold(http1.LAST_CHUNK if self._chunks else b"")
            self._end(outcome="failed", status=wire_problem.status_of(error), code=error.code, reusable=False)
            return
        status, headers, body = answers.render_problem(error, self.call)
        refused = self.phase in (Phase.QUEUED, Phase.COLLECTING, Phase.WAITING)
        if refused:
            self.world.counts.refused += 1
        if self.flushed:
            self._end(outcome="failed", status=self.status, code=error.code, reusable=False, cut=True)
            return
        self._closing = not self.call.head.keep_alive or not self.received or self.world.draining
        headless = self.call.head.method == b"HEAD"
        self.answered = True
        self.client.drop_held()
        self.client.hold(answers.render(status, headers, body, close=self._closing, headless=headless))
        self._end(outcome="refused" if refused else "failed", status=status, code=error.code, reusable=False)

    def fail_stream(self, error: errors.NexusError, last_words: bytes) -> None:
        """End an answer that has begun so that its reader knows: a last event says why, and the body stays unfinished."""
        if self.phase is Phase.DONE:
            return
        self._pass_on([last_words])
        self._closing = True
        self._end(outcome="failed", status=self.status, code=error.code, reusable=False)

    def _end(self, *, outcome: str, status: int, code: str, reusable: bool, cut: bool = False) -> None:
        if self.phase is Phase.DONE:
            return
        begun = self.phase is not Phase.QUEUED or self.answered
        self.phase = Phase.DONE
        self.deadline = math.inf
        self.parts.clear()
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            if reusable or status == 101:
                upstream.release(reusable=reusable)
            else:
                upstream.close()
        if begun:
            self.world.counts.in_flight -= 1
        handler, self.handler = self.handler, None
        if handler is not None:
            handler.close(outcome=outcome, status=status, code=code)
        if status != CLIENT_GONE:
            self.client.finish(self, close=self._closing or cut, cut=cut)
