"""Runs from beginning to end: the session's turn, a free slot, the author's code, its output, state and usage."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol

from nexus.core import errors
from nexus.kit import guard
from nexus.ports import run as ports
from nexus.worker import adapters, bodies, cpu, faults, logs, outputs, sessions, settings, steps, turns
from nexus.worker import door as doors
from nexus.worker import runs as one_run

_LOG = logging.getLogger("nexus.worker")
_MOST_WAITING = 10_000


class Tracer(Protocol):
    def span(self, run: one_run.Run) -> contextlib.AbstractContextManager[None]:
        """The run's own span, current while its author's code runs."""
        ...


class Counter(Protocol):
    def model_calls(self, run_id: str) -> int:
        """How many model calls of this run have passed since it began; asking forgets the run."""
        ...

    def refusal(self, run_id: str) -> str | None:
        """The code of the budget or stop that refused a call of this run, None when none did; asking forgets the run."""
        ...


class Executor:
    """Owns every run of this process. `attribution` gives the headers a model call of a run should carry."""

    def __init__(
        self,
        config: settings.Settings,
        adapter: adapters.Adapter,
        *,
        door: doors.Door | None = None,
        counter: Counter | None = None,
        tracer: Tracer | None = None,
        capture: logs.Capture | None = None,
        attribution: Callable[[one_run.Run, str, int], dict[str, str]] | None = None,
        recorder: steps.Recorder | None = None,
    ) -> None:
        self.adapter = adapter
        self.active: dict[str, one_run.Run] = {}
        self.finished = 0
        self.last_activity: float | None = None
        self._config, self._door, self._counter = config, door, counter
        self._tracer, self._capture, self._attribution = tracer, capture, attribution
        self._recorder = recorder
        self._sessions = sessions.Sessions(door)
        self._slots = asyncio.Semaphore(config.concurrency) if config.concurrency else None
        self._tasks: set[asyncio.Task[None]] = set()
        self._fetches: set[asyncio.Task[None]] = set()
        self._expected: asyncio.Task[None] | None = None
        self._cpu = cpu.Meter() if config.session_id is not None else None

    def rebind(self, config: settings.Settings) -> None:
        """Other settings from now on; nothing that matters ran under the old ones."""
        self._config = config
        self._cpu = cpu.Meter() if config.session_id is not None else None
        self.finished, self.last_activity = 0, None

    @contextlib.contextmanager
    def instead(self, adapter: adapters.Adapter, door: doors.Door | None) -> Iterator[None]:
        """Runs that begin meanwhile are another adapter's, with another door."""
        before = self.adapter, self._door
        self.adapter, self._door = adapter, door
        try:
            yield
        finally:
            self.adapter, self._door = before

    def expect(self, session_id: str) -> None:
        """The session that is served here is known now: what its first run will read is fetched while that is on its way."""
        if self._door is not None:
            self._expected = guard.spawn(self._foresee(self._door, session_id), name="foresee", owner=self._fetches)

    async def _foresee(self, door: doors.Door, session_id: str) -> None:
        try:
            if self.adapter.uses_state:
                await self._sessions.foresee(session_id)
            if isinstance(self.adapter, adapters.ForeseeingAdapter):
                await self.adapter.foresee(door, session_id)
        except errors.NexusError as error:
            _LOG.debug("the first run of the session fetches what it needs itself: %s", error.cause or error.message)

    def begin(
        self,
        call: bodies.Call,
        *,
        run_id: str,
        session_id: str,
        streaming: bool,
        timeout_s: float,
        traceparent: str,
        attempt: int = 1,
    ) -> one_run.Run:
        """Start a run; `run.done` tells how it ended. Raises `Exhausted` when too many are waiting already, `Conflict` when its
        session is busy and wants no other."""
        if len(self._tasks) >= _MOST_WAITING:
            raise errors.Exhausted(
                f"{len(self._tasks)} runs are waiting in this instance",
                code="limit.queue_full",
                next_step="try again later, or scale the agent out",
                retry_after_s=1.0,
            )
        turns.admit(self._config.on_message, session_id, self.active.values())
        run = one_run.Run(
            run_id=run_id,
            session_id=session_id,
            call=call,
            streaming=streaming,
            timeout_s=timeout_s,
            traceparent=traceparent,
            attribution=self._attribution,
            recording=None if self._recorder is None else self._recorder.begin(run_id, attempt),
            door=self._door,
        )
        if run.recording is not None:
            run.recording.leave, run.recording.tell = run.leave, run.emit
        self.active[run_id] = run
        self.last_activity = time.time()
        run.task = guard.spawn(self._perform(run), name=run_id, owner=self._tasks)
        return run

    def accompany(
        self,
        work: Callable[[one_run.Run], Awaitable[None]],
        *,
        call: bodies.Call,
        run_id: str,
        session_id: str,
        timeout_s: float,
        traceparent: str,
    ) -> one_run.Run:
        """A run that takes no turn of its session and has no output: `work` is all of it."""
        run = one_run.Run(
            run_id=run_id,
            session_id=session_id,
            call=call,
            streaming=False,
            timeout_s=timeout_s,
            traceparent=traceparent,
            attribution=self._attribution,
        )
        self.active[run_id] = run
        self.last_activity = time.time()
        run.task = guard.spawn(self._accompany(run, work), name=run_id, owner=self._tasks)
        return run

    async def _accompany(self, run: one_run.Run, work: Callable[[one_run.Run], Awaitable[None]]) -> None:
        ports.CURRENT.set(run)
        outcome = one_run.Outcome()
        try:
            with self._tracer.span(run) if self._tracer is not None else contextlib.nullcontext():
                await work(run)
        except BaseException as error:  # noqa: BLE001 - SystemExit of an author must not end the worker
            outcome = run.stopped_outcome() if run.stop_reason else self._failed(run, error)
        run.finish(outcome)
        self._release_after(run, [])

    async def drain(self, grace_s: float) -> None:
        """Let runs finish for `grace_s`, then stop them and wait a moment for their clean-up."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=grace_s)
        self.stop_all()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=2.0)

    def stop_all(self) -> None:
        for run in list(self.active.values()):
            run.stop("shutdown")

    async def _perform(self, run: one_run.Run) -> None:
        ports.CURRENT.set(run)
        session = run.session = self._sessions.enter(run.session_id)
        held: list[Callable[[], object]] = [lambda: self._sessions.leave(session)]
        try:
            if self._config.on_message != "parallel":
                await session.turn.acquire()
                held.append(session.turn.release)
            if self._slots is not None:
                await self._slots.acquire()
                held.append(self._slots.release)
            with self._tracer.span(run) if self._tracer is not None else contextlib.nullcontext():
                outcome = await self._work(run, session)
        except asyncio.CancelledError as error:
            outcome = run.stopped_outcome() if run.stop_reason or run.waits else self._failed(run, error)
        except BaseException as error:  # noqa: BLE001 - SystemExit of an author must not end the worker
            outcome = run.stopped_outcome() if run.stop_reason or run.waits else self._failed(run, error)
        if session.users == 1 or (len(held) > 1 and self._config.on_message != "parallel"):
            session.forget()
        if self._capture is not None:
            self._capture.flush_open()
        run.finish(outcome)
        self._release_after(run, held)

    def _release_after(self, run: one_run.Run, held: list[Callable[[], object]]) -> None:
        """Give back turn and slot, once a thread that was left behind has ended too."""

        def release(_: object = None) -> None:
            for give_back in reversed(held):
                give_back()
            if self.active.get(run.run_id) is run:
                del self.active[run.run_id]
                if self._recorder is not None:
                    self._recorder.end(run.run_id)
            self.finished += 1
            self.last_activity = time.time()

        if run.leftover is not None and not run.leftover.done():
            _LOG.warning("run %s was stopped, but its synchronous code still runs", run.run_id)
            run.leftover.add_done_callback(release)
        else:
            release()

    async def _work(self, run: one_run.Run, session: sessions.Session) -> one_run.Outcome:
        if self._cpu is None:
            return await self._do(run, session)
        self._cpu.begin()
        try:
            outcome = await self._do(run, session)
        finally:
            run.cpu_s = self._cpu.end()
        return outcome

    async def _do(self, run: one_run.Run, session: sessions.Session) -> one_run.Outcome:
        if self._expected is not None:
            await asyncio.wait({self._expected})
            self._expected = None
        if self.adapter.uses_state:
            await session.load()
        value = await self.adapter.run(run)
        if run.waits:
            return run.waiting_outcome()
        output = outputs.encode(value)
        await session.keep()
        input_tokens, output_tokens = await self._usage(run)
        metadata: dict[str, Any] = {
            "tokens_used": input_tokens + output_tokens,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "run_id": run.run_id,
            "session_id": run.session_id,
            "version": self._config.version,
            "duration_ms": round((time.monotonic() - run.started_s) * 1000, 3),
        }
        if run.cost is not None:
            metadata["cost"] = run.cost
        return one_run.Outcome(output=output, metadata=metadata)

    async def _usage(self, run: one_run.Run) -> tuple[int, int]:
        """What the door counted; without a door, what the model clients reported."""
        if self._counter is None or self._door is None:
            return run.usage
        if not self._counter.model_calls(run.run_id):
            return 0, 0
        try:
            input_tokens, output_tokens, run.cost = await self._door.usage(run.run_id)
            return input_tokens, output_tokens
        except errors.NexusError as error:
            _LOG.warning("the tokens of run %s are not known: %s", run.run_id, error.cause or error.message)
            return run.usage

    def _failed(self, run: one_run.Run, error: BaseException) -> one_run.Outcome:
        failure = faults.run_failed(error, self._config.source, self._config.limits)
        refused = None if self._counter is None else self._counter.refusal(run.run_id)
        if refused is not None and failure.code == "agent.failed":
            failure = faults.calls_refused(failure, refused)
        token = self._config.token
        if token and failure.cause and token in failure.cause:
            failure.cause = failure.cause.replace(token, "***")
        if failure.kind in ("agent_failed", "internal") or failure is not error:
            lines = faults.short_traceback(error, self._config.source)
            _LOG.error("run failed: %s\n%s", failure.cause or failure.message, "\n".join(lines))
        else:
            _LOG.error("run failed: %s (%s)", failure.message, failure.code)
        return one_run.Outcome(error=failure)
