"""One run in hand: what its author sees of it, its pending events, and how it ended.

Lives in the worker's loop; `emit`, `state` and the rest may be called from the threads that run synchronous code.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

from nexus.core import errors
from nexus.wire import headers
from nexus.wire import runs as wire
from nexus.worker import bodies, outputs, propagation, sessions, steps
from nexus.worker import door as doors

Stop = Literal["client", "timeout", "shutdown", "interrupted", "asked"]
_MOST_PENDING = 10_000
_MOST_PENDING_BYTES = 64 * 1024 * 1024
_EASY_PENDING = 128
_EASY_BYTES = 4 * 1024 * 1024
_MERCY_S = 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """`output` is JSON text. With `error`, `cancelled` tells a run that was stopped from one that failed. With `asks` it has no
    end yet: it waits for people."""

    output: str = "null"
    metadata: Mapping[str, Any] | None = None
    error: errors.NexusError | None = None
    cancelled: bool = False
    asks: tuple[Mapping[str, Any], ...] = ()


class Run:
    """Implements `nexus.ports.run.Run`. `deadline_s` is monotonic; `done` resolves exactly once."""

    __slots__ = (
        "_asks", "_attribution", "_bytes", "_loop", "_pending", "_room", "_thread", "_thread_room", "_usage", "call", "context",
        "cost", "cpu_s", "deadline_s", "done", "door", "leftover", "recording", "run_id", "session", "session_id", "started_s",
        "stop_reason", "streaming", "task", "timeout_s", "trace_id", "traceparent", "user_id", "wake",
    )  # fmt: skip

    def __init__(
        self,
        *,
        run_id: str,
        session_id: str,
        call: bodies.Call,
        streaming: bool,
        timeout_s: float,
        traceparent: str = "",
        recording: steps.Recording | None = None,
        attribution: Callable[["Run", str, int], Mapping[str, str]] | None = None,
        door: doors.Door | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.run_id, self.session_id = run_id, session_id
        self.call, self.context, self.streaming = call, call.context, streaming
        self.timeout_s = timeout_s
        self.started_s = time.monotonic()
        self.deadline_s = self.started_s + timeout_s
        self.traceparent = traceparent
        self.trace_id = traceparent[3:35] if len(traceparent) >= 55 else ""
        self.session: sessions.Session | None = None
        self.stop_reason: Stop | None = None
        self.task: asyncio.Task[None] | None = None
        self.leftover: asyncio.Future[Any] | None = None
        self.done: asyncio.Future[Outcome] = self._loop.create_future()
        self.wake: asyncio.Event | None = asyncio.Event() if streaming else None
        self._room: asyncio.Event | None = None
        self._thread_room: threading.Event | None = None
        self._pending: deque[tuple[str, str]] = deque()
        self._bytes = 0
        self._usage = [0, 0]
        self.cpu_s: float | None = None
        self._asks: list[Mapping[str, Any]] = []
        self.recording = recording
        self._attribution = attribution
        self.door = door
        self.user_id = ""
        self.cost: float | None = None

    # what authors see (nexus.ports.run.Run)

    @property
    def state(self) -> MutableMapping[str, Any]:
        if self.session is None:
            return {}
        return self.session.load_blocking()

    def emit(self, name: str, data: Mapping[str, Any]) -> None:
        if not self.streaming or self.done.done():
            return
        text = outputs.encode(data)
        if threading.get_ident() == self._thread:
            self._append(name, text)
        else:
            self._wait_in_thread()
            self._loop.call_soon_threadsafe(self._put, name, text)

    def outgoing_headers(self, host: str, port: int) -> Mapping[str, str]:
        found = {} if self._attribution is None else self._attribution(self, host, port)
        traceparent = propagation.find_traceparent(self.traceparent) if found else ""
        return {**found, headers.TRACEPARENT: traceparent} if traceparent else found

    def add_usage(self, *, input_tokens: int, output_tokens: int) -> None:
        self._usage[0] += input_tokens
        self._usage[1] += output_tokens

    # what the worker does with it

    @property
    def usage(self) -> tuple[int, int]:
        return self._usage[0], self._usage[1]

    @property
    def stopping(self) -> bool:
        return self.stop_reason is not None or self.done.done()

    @property
    def waits(self) -> bool:
        """Whether it asked a person and has to end here, whatever its code goes on to do."""
        return bool(self._asks)

    def waiting_outcome(self) -> Outcome:
        return Outcome(asks=tuple(self._asks))

    def leave(self, ask: Mapping[str, Any]) -> None:
        """End for now: the question is stored. Code that catches what is raised for this is stopped after a moment."""
        self._asks.append(ask)
        self._loop.call_soon_threadsafe(self._loop.call_later, _MERCY_S, self.stop, "asked")

    def stop(self, reason: Stop) -> None:
        """Cancel the run; code that ignores it is left behind after a moment, and the caller answered all the same."""
        if self.stopping:
            return
        self.stop_reason = reason
        if self._thread_room is not None:
            self._thread_room.set()
        if self.task is not None:
            self.task.cancel()
        self._loop.call_later(_MERCY_S, self.finish, None)

    def finish(self, outcome: Outcome | None) -> None:
        """Set the result, once. None: whatever `stop` was called for."""
        if self.done.done():
            return
        self.done.set_result(outcome or self.stopped_outcome())
        for event in (self.wake, self._room, self._thread_room):
            if event is not None:
                event.set()

    def stopped_outcome(self) -> Outcome:
        if self._asks:
            return self.waiting_outcome()
        if self.stop_reason == "timeout":
            error: errors.NexusError = errors.Exhausted(
                f"the run took longer than {self.timeout_s:g} s",
                code="run.timeout",
                phase="run",
                next_step="raise hosting.timeout in config.yaml, or submit a task instead",
            )
            return Outcome(error=error)
        if self.stop_reason == "shutdown":
            error = errors.Unavailable(
                "the instance stopped before the run was done", code="instance.stopping", phase="run", next_step="run it again"
            )
            return Outcome(error=error)
        if self.stop_reason == "interrupted":
            error = errors.Conflict(
                "the run was interrupted", code="run.interrupted", phase="run", cause="another message of its session came"
            )
            return Outcome(error=error, cancelled=True)
        error = errors.Conflict("the run was cancelled", code="run.cancelled", phase="run", cause="its client left")
        return Outcome(error=error, cancelled=True)

    async def room(self) -> None:
        """Wait while the client is far behind; generators call it after each item."""
        if not self._crowded:
            return
        if self._room is None:
            self._room = asyncio.Event()
        while self._crowded and not self.stopping:
            self._room.clear()
            await self._room.wait()

    def take_events(self) -> list[tuple[str, str]]:
        """Everything pending, as `(name, JSON)`."""
        events = list(self._pending)
        self._pending.clear()
        self._bytes = 0
        if self._room is not None:
            self._room.set()
        if self._thread_room is not None:
            self._thread_room.set()
        return events

    def _append(self, name: str, text: str) -> None:
        if len(self._pending) >= _MOST_PENDING or self._bytes + len(text) > _MOST_PENDING_BYTES:
            raise errors.Exhausted(
                "events pile up faster than they can be sent",
                code="run.events_overflow",
                phase="run",
                cause=f"{len(self._pending)} events are waiting",
                next_step="await something between events, or yield them from an async generator",
            )
        self._put(name, text)

    def _put(self, name: str, text: str) -> None:
        if self.done.done():
            return
        if name == wire.PROGRESS and self._pending and self._pending[-1][0] == name:
            self._bytes -= len(self._pending.pop()[1])
        self._pending.append((name, text))
        self._bytes += len(text)
        if self.wake is not None:
            self.wake.set()

    @property
    def _crowded(self) -> bool:
        return len(self._pending) > _EASY_PENDING or self._bytes > _EASY_BYTES

    def _wait_in_thread(self) -> None:
        if not self._crowded:
            return
        if self._thread_room is None:
            self._thread_room = threading.Event()
        while self._crowded and not self.stopping:
            self._thread_room.clear()
            if self._crowded:
                self._thread_room.wait(timeout=1.0)
