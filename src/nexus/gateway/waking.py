"""A stream that begins before its session is awake: the client hears `session.waking`, then the run's own events.

Once that was said the status is 200, so whatever goes wrong from there on is told as the run's last event, `run.failed`.
"""

import json
from typing import TYPE_CHECKING

from nexus.core import errors
from nexus.gateway import answers, http1
from nexus.wire import problem

if TYPE_CHECKING:
    from nexus.gateway.exchange import Exchange

PATIENCE_S = 0.5
_MOST_PROBLEM = 64 * 1024


class Waking:
    """`passing` once the worker's own stream has begun."""

    __slots__ = ("_exchange", "_problem", "passing")

    def __init__(self, exchange: "Exchange") -> None:
        self._exchange = exchange
        self._problem: bytearray | None = None
        self.passing = False

    def head(self) -> bytes:
        """The answer's head and its first event. The connection is not used again after this answer."""
        call = self._exchange.call
        headers: list[http1.Header] = [
            (b"Content-Type", b"text/event-stream"), (b"Cache-Control", b"no-store"), (b"X-Accel-Buffering", b"no"),
            (b"X-Content-Type-Options", b"nosniff"), (b"Nexus-Run-Id", call.run_id.encode("latin-1")),
            (b"Nexus-Session-Id", (call.session_id or "").encode("latin-1")), *answers.quota_headers(call), *answers.cors(call),
        ]  # fmt: skip
        if call.head.modern:
            headers.append((b"Transfer-Encoding", b"chunked"))
        headers.append((b"Connection", b"close"))
        return http1.render_head(200, headers)

    def event(self) -> bytes:
        data = json.dumps({"session_id": self._exchange.call.session_id})
        return f"event: session.waking\ndata: {data}\n\n".encode()

    def begin_answer(self, status: int, headers: list[http1.Header]) -> None:
        """The worker answers: its stream goes on where ours began, anything else is read as the reason of a failure."""
        kind = next((value for name, value in headers if name == b"content-type"), b"")
        self.passing = status == 200 and kind.startswith(b"text/event-stream")
        self._problem = None if self.passing else bytearray()

    def collect(self, parts: list[bytes]) -> bool:
        """True when these bytes are not for the client."""
        if self._problem is None:
            return False
        for part in parts:
            self._problem += part[: _MOST_PROBLEM - len(self._problem)]
        return True

    def failure(self) -> errors.NexusError | None:
        """What the worker's answer said instead of a stream; None when it streamed."""
        if self._problem is None:
            return None
        try:
            told = json.loads(self._problem)
        except (ValueError, RecursionError):
            told = None
        if isinstance(told, dict) and "code" in told:
            return problem.parse(told)
        return errors.AgentFailed("the agent answered with something else than a stream", code="agent.bad_response")

    def last_words(self, error: errors.NexusError) -> bytes:
        return f"event: run.failed\ndata: {json.dumps(problem.render(error), default=str)}\n\n".encode()


def watch(exchange: "Exchange") -> None:
    """Say it when the answer has not begun within `PATIENCE_S`."""
    exchange.world.loop.call_later(PATIENCE_S, exchange.begin_early, Waking(exchange))
