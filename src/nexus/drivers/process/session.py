"""One session with a worker of its own: started on first use, frozen and stopped while idle, woken by a connection.

The listening socket is ours for as long as the session is; its worker only borrows it. So a connection that comes while there is
no worker, or a frozen one, waits in the kernel, and is what wakes the session.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nexus.core import errors, instances
from nexus.core.sessions import How, SessionPhase, SessionPlace, SessionStatus, SessionUsage
from nexus.drivers.process import (
    session_archive,
    session_commands,
    session_link,
    session_output,
    session_paths,
    session_plans,
    session_process,
    session_record,
    zygote,
)
from nexus.kit import guard
from nexus.wire import problem as problem_wire

_LOG = logging.getLogger(__name__)
_MOST_TRIES = 3
_QUICK_S = 2.0
_MOST_QUICK_ENDS = 3
_STOP_S = 5.0
_MEASURE_S = 15.0


@dataclass(slots=True, kw_only=True)
class Worker:
    """A started worker with what belongs to it. `box` names the zygote's box it stands in."""

    spare: zygote.Spare
    output: session_output.Output
    box: str
    how: How

    @property
    def process(self) -> session_process.Process:
        return self.spare.process

    @property
    def name(self) -> str:
        return self.process.handle.name


class Home(Protocol):
    """What a session needs of the instance that it belongs to."""

    spec: instances.InstanceSpec
    at: session_paths.SessionPaths
    policy: session_plans.Policy
    archives: session_archive.Archives

    async def take_worker(self) -> Worker: ...

    def mint(self, session_id: str, expires_at: float) -> str: ...

    async def dispose(self, worker: Worker) -> None:
        """Nothing of it remains."""
        ...

    def on_phase(self, session: "Session") -> None: ...

    def on_end(self, session: "Session", problem: Mapping[str, object] | None) -> None:
        """Its worker has ended unasked, or (phase ended) the session is over."""
        ...

    def problem_of(self, ended: session_process.Ended) -> errors.NexusError: ...


@dataclass(slots=True)
class _Meter:
    """What was used by the workers before this one, and the integral of memory over time."""

    cpu_s: float = 0.0
    memory_bytes: int = 0
    memory_byte_seconds: float = 0.0
    looked_at: float = field(default_factory=time.monotonic)


class Session:
    """`place` makes sure that it has a worker; `stop`, `kill`, `freeze`, `thaw` do what they say. One change at a time."""

    def __init__(
        self, session_id: str, home: Home, *, listener: socket.socket | None = None, created_at: float | None = None
    ) -> None:
        self.id = session_id
        self.phase = SessionPhase.SAVED
        self.how: How | None = None
        self.created_at = time.time() if created_at is None else created_at
        self.active_at = self.created_at
        self.problem: Mapping[str, object] | None = None
        self.path: Path = home.at.address(home.spec.id, session_id)
        self._home = home
        self._listener = listener or session_paths.listen(self.path, kind=socket.SOCK_STREAM)
        self._worker: Worker | None = None
        self._had_worker = False
        self._lock = asyncio.Lock()
        self._keeping = asyncio.Lock()
        self._kept: Worker | None = None
        self._meter = _Meter()
        self._quick_ends = 0
        self._started_at = 0.0
        self._watched = False
        self._doomed = False
        self._sample: tuple[float, float] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    # questions

    @property
    def expires_at(self) -> float:
        return self.created_at + self._home.policy.max_lifetime_s

    @property
    def process(self) -> session_process.Process | None:
        return self._worker.process if self._worker is not None else None

    @property
    def box(self) -> str | None:
        return self._worker.box if self._worker is not None else None

    @property
    def busy(self) -> bool:
        """Whether something is being done to it at this moment."""
        return self._lock.locked()

    def status(self) -> SessionStatus:
        """Its memory as of the last look; of a worker that nobody has looked at yet, now."""
        if not self._meter.memory_bytes:
            self.measure()
        spec = self._home.spec
        return SessionStatus(
            session_id=self.id,
            instance_id=spec.id,
            phase=self.phase,
            tenant=spec.tenant,
            agent=spec.agent,
            environment=spec.environment,
            version=spec.version,
            how=self.how,
            pid=(self.process.handle.worker or self.process.handle.pid) if self.process is not None else None,
            created_at=self.created_at,
            last_active_at=self.active_at,
            expires_at=self.expires_at,
            usage=SessionUsage(
                cpu_s=round(self._cpu(), 6),
                memory_bytes=self._meter.memory_bytes,
                memory_byte_seconds=round(self._meter.memory_byte_seconds),
            ),
            problem=self.problem,
        )

    def counted(self) -> tuple[float, int]:
        """CPU seconds and memory as they were last measured: asks nobody."""
        counted = self.process.counted_cpu_s if self.process is not None else 0.0
        return self._meter.cpu_s + counted, self._meter.memory_bytes

    def measure(self) -> float:
        """Count CPU and memory until now; the CPU seconds used so far."""
        now = time.monotonic()
        process = self.process
        if process is not None and not process.frozen:
            self._meter.memory_bytes = process.memory_bytes()
        self._meter.memory_byte_seconds += self._meter.memory_bytes * (now - self._meter.looked_at)
        self._meter.looked_at = now
        return self._cpu()

    def note_activity(self, now: float, *, connected: bool, quiet_s: float, least: float) -> None:
        """It is active while something is connected, or while it uses more than `least` of a processor.

        The processor is asked only where it decides: half-way to the end of `quiet_s`, and at the end.
        """
        idle_s = now - self.active_at
        if connected:
            self.active_at, self._sample = now, None
        elif self._sample is None and idle_s >= quiet_s / 2:
            self._sample = (now, self._cpu())
        elif self._sample is not None and idle_s >= quiet_s:
            at, used = self._sample
            self._sample = None
            if self._cpu() - used > least * max(now - at, 0.1):
                self.active_at = now
        if time.monotonic() - self._meter.looked_at > _MEASURE_S:
            self.measure()

    def _cpu(self) -> float:
        return self._meter.cpu_s + (self.process.cpu_s() if self.process is not None else 0.0)

    # orders

    async def place(self) -> SessionPlace:
        """Where it listens, with a worker that lives. Raises `Unavailable` (`session.not_started`) or what the start says."""
        how = How.LIVE
        if self.phase is not SessionPhase.LIVE or self._lock.locked():
            async with self._lock:
                how = await self._wake()
        self.how = how if how is not How.LIVE else self.how or How.LIVE
        self.active_at = time.time()
        return SessionPlace(instance_id=self._home.spec.id, address=f"unix:{self.path}", phase=self.phase, how=how)

    async def stop(self, *, grace_s: float, keep: bool = False) -> None:
        """Save what is to be kept, let the worker end, kill it after `grace_s`. `keep`: the next connection restores it."""
        async with self._lock:
            if self.phase is SessionPhase.ENDED:
                return
            await self._stop_worker(grace_s=grace_s)
            if keep:
                self._set(SessionPhase.SAVED)
                self._watch()
            else:
                self._end(None)

    async def kill(self, problem: Mapping[str, object] | None = None) -> None:
        """At once; what its work directory held since it was last saved is lost."""
        self._doomed = True
        if self._worker is not None:
            self._worker.process.kill()  # whatever else is being done with it
        elif self.phase is SessionPhase.STARTING:
            return  # whoever starts it ends it before it is bound
        async with self._lock:
            if self.phase is not SessionPhase.ENDED:
                await self._drop_worker()
                self._end(problem)

    async def freeze(self, is_connected: Callable[[], Awaitable[bool]]) -> bool:
        """No CPU until something connects. False when something is connected, or it cannot be done."""
        async with self._lock:
            process = self.process
            if self.phase is not SessionPhase.LIVE or process is None:
                return False
            self.measure()
            self._watch()
            if not process.freeze():
                self._unwatch()
                return False
            self._set(SessionPhase.FROZEN)
            if await is_connected():  # accepted between the last look and the freeze
                self._thaw()
                return False
            return True

    async def thaw(self) -> None:
        async with self._lock:
            self._thaw()

    async def run_command(self, command: list[str], descriptors: tuple[int, ...], *, timeout_s: float) -> int:
        """A program inside the box, with the box's limits; its exit code. Raises `Unavailable`, TimeoutError."""
        await self.place()
        if self._worker is None:
            raise zygote.failure("it has no worker", "it ended")
        return await session_commands.execute(
            self._home.at.commands(self._worker.name), command, descriptors, timeout_s=timeout_s
        )

    def detach(self) -> None:
        """Leave it to the next supervisor."""
        self._unwatch()
        for task in list(self._tasks):
            task.cancel()
        if self._worker is not None:
            self._worker.process.thaw()
            self._worker.process.detach()
            self._worker.output.detach()
        self._listener.close()

    def adopt(self, worker: Worker, record: session_record.Record) -> None:
        """Go on with a worker that a supervisor before us started."""
        self._meter.cpu_s = record.cpu_before_s
        self._take(worker)
        self._kept = worker
        guard.spawn(self._attend(worker, is_new=False), name=f"session {self.id}", owner=self._tasks)

    # starting

    async def _wake(self) -> How:
        if self.phase is SessionPhase.ENDED:
            raise _ended(self.id)
        if self.phase is SessionPhase.FROZEN:
            self._thaw()
            return How.THAW
        if self.phase is SessionPhase.LIVE and self._worker is not None:
            return How.LIVE
        self._unwatch()
        self._set(SessionPhase.STARTING)
        try:
            return await self._start()
        except BaseException:
            self._give_up_start()
            raise

    def _give_up_start(self) -> None:
        if self.phase is SessionPhase.STARTING and self._doomed:
            self._end(None)
        elif self.phase is SessionPhase.STARTING:
            self._set(SessionPhase.SAVED)

    async def _start(self) -> How:
        restores = self._had_worker
        archive = self._home.archives.open(self.id) if self._home.policy.persist else None
        try:
            for attempt in range(1, _MOST_TRIES + 1):
                worker = await self._home.take_worker()
                if self._doomed:
                    await self._home.dispose(worker)
                    self._end(None)
                    raise _ended(self.id)
                try:
                    worker.spare.bind(self._order(), self._listener.fileno(), archive)
                except session_link.Closed as error:
                    await self._home.dispose(worker)
                    if attempt == _MOST_TRIES:
                        raise zygote.failure("its worker ended at once", str(error)) from error
                    continue
                break
        finally:
            if archive is not None:
                os.close(archive)
        self._take(worker)
        guard.spawn(self._attend(worker, is_new=True), name=f"session {self.id}", owner=self._tasks)
        return How.RESTORE if restores or archive is not None else worker.how

    def _take(self, worker: Worker) -> None:
        worker.output.session_id = self.id
        self._worker, self._had_worker = worker, True
        self._started_at = time.monotonic()
        self._meter.looked_at = self._started_at
        self._set(SessionPhase.LIVE)

    def _order(self) -> dict[str, Any]:
        return {"session": self.id, "token": self._home.mint(self.id, self.expires_at), "grace_s": _STOP_S}

    async def settle(self) -> None:
        """See to it that another supervisor would find the session: its record is on disk, its socket with its keeper."""
        async with self._keeping:
            worker = self._worker
            if worker is None or worker is self._kept or worker.process.ended:
                return
            self._remember(worker)
            try:
                await session_commands.hold(self._home.at.commands(worker.name), self._listener.fileno())
            except (session_link.Closed, TimeoutError) as error:
                _LOG.info("session %s: its keeper does not answer: %s", self.id, error)
            self._kept = worker

    def _remember(self, worker: Worker) -> None:
        kept = session_record.Record(
            session_id=self.id,
            handle=worker.process.handle,
            box=worker.box,
            created_at=self.created_at,
            how=worker.how,
            cpu_before_s=self._meter.cpu_s,
        )
        try:
            session_record.write(self._home.at.record(worker.name), kept)
        except OSError as error:
            _LOG.warning("cannot remember session %s: %s", self.id, error.strerror)

    # the worker's life

    async def _attend(self, worker: Worker, *, is_new: bool) -> None:
        """From bound to ended."""
        failed: errors.NexusError | None = None
        if is_new:
            try:
                await worker.spare.ready()
            except errors.NexusError as error:
                failed = error
            else:
                await self.settle()
        if failed is not None:
            worker.process.kill()
        ended = await worker.process.wait()
        async with self._lock:
            if self._worker is not worker:
                return
            await self._drop_worker()
            self._on_unasked_end(failed or self._home.problem_of(ended))

    def _on_unasked_end(self, error: errors.NexusError) -> None:
        lived = time.monotonic() - self._started_at
        self._quick_ends = self._quick_ends + 1 if lived < _QUICK_S else 0
        self.problem = problem_wire.render(error)
        if self._quick_ends >= _MOST_QUICK_ENDS:
            self._end(self.problem)
            return
        self._set(SessionPhase.SAVED)
        self._home.on_end(self, self.problem)
        self._watch()

    async def _stop_worker(self, *, grace_s: float) -> None:
        worker = self._worker
        if worker is None:
            return
        worker.process.thaw()
        self.measure()
        if self._home.policy.persist and not worker.process.ended:
            worker.process.hold(signal.SIGSTOP)  # what it does from here on would be lost
            await self._save(worker)
        worker.process.send(signal.SIGTERM)
        worker.process.hold(signal.SIGCONT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await worker.process.wait()
        await self._drop_worker()

    async def _save(self, worker: Worker) -> None:
        try:
            keeper, beside = self._home.at.commands(worker.name), self._home.at.archive(worker.name)
            await self._home.archives.save(self.id, keeper, beside, most=self._home.policy.work_bytes)
        except errors.NexusError as error:
            self.problem = problem_wire.render(error)
            _LOG.warning("the work directory of session %s is not kept: %s", self.id, error.cause or error.message)

    async def _drop_worker(self) -> None:
        worker = self._worker
        if worker is None:
            return
        self.measure()
        self._meter.cpu_s, self._worker = self._cpu(), None
        self._meter.memory_bytes = 0
        await self._home.dispose(worker)

    def _end(self, problem: Mapping[str, object] | None) -> None:
        self._unwatch()
        self._set(SessionPhase.ENDED)
        self.problem = problem
        self._listener.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        self._home.on_end(self, problem)

    # waking

    def _thaw(self) -> None:
        if self.phase is SessionPhase.FROZEN and self.process is not None:
            self._unwatch()
            self.measure()
            self.process.thaw()
            self.active_at = time.time()
            self._set(SessionPhase.LIVE)

    def _watch(self) -> None:
        """Wake it when something connects."""
        if not self._watched:
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._on_knock)
            self._watched = True

    def _unwatch(self) -> None:
        if self._watched:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._watched = False

    def _on_knock(self) -> None:
        self._unwatch()
        guard.spawn(self._answer_knock(), name=f"wake {self.id}", owner=self._tasks)

    async def _answer_knock(self) -> None:
        try:
            await self.place()
        except errors.NexusError as error:
            _LOG.warning("session %s cannot be woken: %s (%s)", self.id, error.message, error.cause)
            await self.kill(problem_wire.render(error))  # whoever waits is refused now, and may ask why

    def _set(self, phase: SessionPhase) -> None:
        self.phase = phase
        self._home.on_phase(self)


def _ended(session_id: str) -> errors.NotFound:
    return errors.NotFound(f"session {session_id[:80]} has ended", code="session.ended", next_step="ask for it again")
