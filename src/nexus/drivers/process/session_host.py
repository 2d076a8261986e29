"""The sessions of one instance: its zygotes, the spare workers, and the table of sessions. `session_table` holds all of a node's.

An instance has one zygote that forks, and may have earlier ones whose sessions still live: their boxes stay until the last of
their sessions has ended.
"""

import asyncio
import collections
import contextlib
import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from nexus.core import errors, instances
from nexus.core.sessions import How, SessionPhase, SessionPlace, SessionStatus
from nexus.drivers.process import (
    cgroups,
    launcher,
    limits,
    log_writer,
    paths,
    problems,
    session,
    session_archive,
    session_commands,
    session_demand,
    session_launch,
    session_link,
    session_output,
    session_paths,
    session_plans,
    session_process,
    session_record,
    session_room,
    zygote,
)
from nexus.kit import guard, keys, session_tokens
from nexus.kit.home import Home

_LOG = logging.getLogger(__name__)
_MOST_ENDS = 1000
_FILL_PAUSE_S = 0.5
_AT_ONCE = 16
_ROOMS, _FORK_BYTES = 64, 4 * 1024**2
_STOP_S = 10.0
_MOST_RECORD = 64 * 1024
_MOST_ABOVE = 4  # processes between a keeper and one that calls: a container runtime and what it starts
_KEPT_HASH = "token.hash"


class Host:
    """`open` once the zygote is ready; `close` ends every session. `missing` tells why nothing can be forked at the moment."""

    def __init__(
        self,
        home: Home,
        spec: instances.InstanceSpec,
        *,
        layout: cgroups.Layout,
        log: Callable[[], log_writer.LogWriter],
        draw: session_launch.Draw,
        launch: session_launch.Launch,
    ) -> None:
        """`draw` and `launch` start workers that are not forked."""
        self.spec = spec
        self.at = session_paths.of_instance(home, spec.id)
        self.policy = session_plans.parse_policy(spec.options)
        self.archives = session_archive.Archives(home, spec)
        self.sessions: dict[str, session.Session] = {}
        self._saved: dict[str, session.Session] = {}
        self._layout, self._log = layout, log
        self._draw, self._launch = draw, launch
        self._token_hash = keys.hash_key(spec.token) if spec.token else ""
        self._zygote: zygote.Zygote | None = None
        self._box, self._box_group, self._room = "", cgroups.Group(), 0
        self._boxes: dict[str, launcher.Running] = {}
        self._spares: collections.deque[session.Worker] = collections.deque()
        self._demand = session_demand.Demand(fixed=self.policy.warm)
        self._starting = asyncio.Semaphore(_AT_ONCE)
        self._wanting = asyncio.Event()
        self._ends: collections.OrderedDict[str, tuple[float, Mapping[str, object]]] = collections.OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._closing = False
        self.connections: Mapping[str, int] = {}
        self.spent_cpu_s = 0.0
        self.ended: Callable[[SessionStatus], None] = lambda status: None

    # its zygote

    @property
    def gone(self) -> asyncio.Event | None:
        """Set when the zygote that forks has ended; None while there is none."""
        return self._zygote.gone if self._zygote is not None else None

    @property
    def reason(self) -> str | None:
        """Why sessions of this version are not forked; None when they are."""
        told = self._zygote.reason if self._zygote is not None else None
        return session_plans.find_refusal(self.spec.options) or told

    @property
    def whole(self) -> cgroups.Group:
        """What the groups of all instances of this node lie in."""
        return cgroups.Group(v1=self._layout.v1, unified=self._layout.unified)

    def renew(self, spec: instances.InstanceSpec) -> None:
        """The same instance with another spec: for sessions to come."""
        self.spec, self.policy = spec, session_plans.parse_policy(spec.options)
        self._demand.fixed = self.policy.warm
        if spec.token:
            self._token_hash = keys.hash_key(spec.token)

    async def open(self, box: str, group: cgroups.Group) -> None:
        """Connect to the zygote of that box and group, which is ready. Raises `Unavailable` (`session.not_started`)."""
        try:
            self._zygote = await zygote.connect(self.at.orders(box))
        except (session_link.Closed, TimeoutError) as error:
            raise zygote.failure("its zygote does not answer", str(error) or "it took too long") from error
        self._box, self._box_group, self._room = box, group, 0
        self._write_token_hash()
        await asyncio.to_thread(self.archives.prune, older_s=self.policy.retention_s)
        if not self._tasks:
            guard.spawn(self._fill(), name=f"spares of {self.spec.id}", owner=self._tasks)
        self._wanting.set()

    def leave_box(self, running: launcher.Running) -> bool:
        """The zygote of this box is gone. Whether sessions live in it still: then it is ours to close, after the last of them."""
        box = running.handle.box
        if self._zygote is not None and self._box == box:
            self._zygote.close()
            self._zygote = None
        with contextlib.suppress(OSError):
            self.at.orders(box).unlink(missing_ok=True)
        lives = any(one.box == box for one in self.sessions.values())
        if lives:
            self._boxes[box] = running
            session_record.write_box(self.at.record(box), running.handle)
        return lives

    # sessions

    async def place(self, session_id: str) -> SessionPlace:
        """Where the session listens; made when there is none. Raises `Exhausted` (`session.too_many`), `Unavailable`."""
        one = self.sessions.get(session_id)
        if one is None:
            self._check_room()
            try:
                one = session.Session(session_id, self)
            except OSError as error:
                raise zygote.failure("its socket cannot be made", error.strerror or str(error)) from error
            self.sessions[session_id] = one
            self._demand.note(time.monotonic())
        try:
            return await one.place()
        except errors.NexusError:
            if one.process is None and not one.busy and self.sessions.get(session_id) is one:
                await one.kill()
            raise

    def _check_room(self) -> None:
        if self._closing:
            raise errors.NotFound(
                f"{self.spec.id} is being stopped", code="session.no_instance", next_step="try again in a second"
            )
        if self.count_alive() < self.policy.most:
            return
        idle = session_room.find_idle(self.sessions.values(), self.connections)
        if idle:
            guard.spawn(idle[0].stop(grace_s=_STOP_S, keep=True), name=f"stop {idle[0].id} for another", owner=self._leaving)
        else:
            raise errors.Exhausted(
                f"{self.spec.agent} has {self.policy.most} sessions on this instance already",
                code="session.too_many",
                next_step="raise hosting.session.most, add replicas, or end sessions that nobody needs",
                retry_after_s=1.0,
            )

    async def take_worker(self) -> session.Worker:
        """A spare, else a new one. Raises `Unavailable` (`session.not_started`)."""
        while self._spares:
            spare = self._spares.popleft()
            self._wanting.set()
            if self._fits(spare):
                spare.how = How.SPARE
                return spare
            guard.spawn(self.dispose(spare), name="spent spare", owner=self._tasks)
        return await self._make_worker()

    async def _make_worker(self, *, spare: bool = False) -> session.Worker:
        forking = self._zygote
        if forking is None or forking.gone.is_set():
            raise zygote.failure("its zygote is being started again", "it ended")
        if self.reason is not None:
            return await self._start_alone(spare=spare)
        self._make_room()
        async with self._starting:
            name, began = session_paths.new_name(), time.monotonic()
            output = session_output.Output(self.at.output(name), self._log())
            writing = output.open_for_child()
            try:
                made = await forking.start(
                    self.at, name=name, output=writing, make_group=lambda: self._make_group(name), spare=spare
                )
            except BaseException:
                output.close()
                raise
            finally:
                os.close(writing)
            self._demand.note_start(time.monotonic() - began)
            return session.Worker(spare=made, output=output, box=self._box, how=How.FORK)

    def _make_room(self) -> None:
        """What a fork costs until the child stands in its own group (tables of its memory, namespaces, first pages) stays on the
        zygote's account: its limit grows with its sessions."""
        children = len(self.sessions) + len(self._spares) + _AT_ONCE
        if children > self._room and self.spec.memory_bytes is not None:
            self._room = children + _ROOMS
            self._box_group.allow_memory(self.spec.memory_bytes + self._room * _FORK_BYTES)

    async def _start_alone(self, *, spare: bool) -> session.Worker:
        async with self._starting:
            name = session_paths.new_name()
            folder = self.at.folder(name)
            await asyncio.to_thread(session_launch.make_folders, folder)
            output = session_output.Output(folder / "output", self._log())
            writing = output.open_for_child()
            try:
                drawn = await self._draw()
                plan = session_launch.plan_alone(self.spec, drawn, folder, name, policy=self.policy)
                plan = dataclasses.replace(plan, output=writing)
                timeout_s = self.spec.start_timeout_s + session_launch.BESIDE_S
                made = await session_launch.start(
                    self.at, plan, folder, name=name, launch=self._launch, timeout_s=timeout_s, spare=spare
                )
            except BaseException:
                output.close()
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
                raise
            finally:
                os.close(writing)
            return session.Worker(spare=made, output=output, box="", how=How.EXEC)

    def _make_group(self, name: str) -> cgroups.Group:
        return cgroups.make(
            self._layout,
            f"{self.spec.id}.{name}",
            memory_bytes=self.spec.memory_bytes,
            cpu_millis=self.spec.cpu_millis,
            processes=limits.read_limits(self.spec).processes,
        )

    def find_session(self, pid: int) -> session.Session | None:
        """The one whose box this process, by our numbers, is in: below its keeper."""
        keepers = {one.process.handle.pid: one for one in self.sessions.values() if one.process is not None}
        for _ in range(_MOST_ABOVE):
            above = launcher.parent(pid)
            if above is None:
                break
            if (found := keepers.get(above)) is not None:
                return found
            pid = above
        return None

    async def dispose(self, worker: session.Worker) -> None:
        await worker.spare.close()
        worker.output.close()
        if not worker.box:
            await asyncio.to_thread(shutil.rmtree, self.at.folder(worker.name), ignore_errors=True)
        for path in (self.at.commands(worker.name), self.at.record(worker.name), self.at.archive(worker.name)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        await self._close_empty_boxes()

    def on_phase(self, one: session.Session) -> None:
        if one.phase is SessionPhase.SAVED:
            self._saved[one.id] = one
        elif self._saved.get(one.id) is one:
            del self._saved[one.id]

    def on_end(self, one: session.Session, problem: Mapping[str, object] | None) -> None:
        if one.phase is SessionPhase.ENDED and self.sessions.get(one.id) is one:
            del self.sessions[one.id]
            status = one.status()
            self.spent_cpu_s += status.usage.cpu_s
            self.ended(status)
        if problem is not None:
            self._ends[one.id] = (time.time(), problem)
            self._ends.move_to_end(one.id)
            if len(self._ends) > _MOST_ENDS:
                self._ends.popitem(last=False)
            self._log().note(f"the session's worker ended: {problem.get('cause') or problem.get('detail')}", session_id=one.id)

    def last_end(self, session_id: str, *, since: float) -> Mapping[str, object] | None:
        """Why the session's worker ended after that moment; None: it did not."""
        at, problem = self._ends.get(session_id, (0.0, None))
        return {**problem, "at": at} if problem is not None and at >= since else None

    def problem_of(self, ended: session_process.Ended) -> errors.NexusError:
        code = ended.code if ended.code is None or ended.code >= 0 else 128 - ended.code
        if ended.excess is not None:
            return problems.exceeded(self.spec, ended.excess, (), phase="run")
        return problems.session_ended(self.spec, code=code, out_of_memory_=ended.memory > 0)

    def mint(self, session_id: str, expires_at: float) -> str:
        return session_tokens.mint(self._token_hash, instance_id=self.spec.id, session_id=session_id, expires_at=expires_at)

    def count_alive(self) -> int:
        """Those that have a worker, or will have one in a moment."""
        return len(self.sessions) - len(self._saved)

    def choose_to_stop(self, memory: session_room.Memory) -> list[session.Session]:
        return session_room.choose_to_stop(
            self.sessions.values(), self.connections, alive=self.count_alive(), most=self.policy.most, memory=memory
        )

    def choose_to_forget(self) -> list[session.Session]:
        return session_room.choose_to_forget(self._saved.values())

    def busy(self) -> int:
        """Sessions that something was connected to at the last look."""
        return sum(str(one.path) in self.connections for one in self.sessions.values())

    # its end

    async def close(self, *, grace_s: float) -> None:
        """End every session, saving what is to be kept, and leave nothing."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(one.stop(grace_s=grace_s) for one in list(self.sessions.values())), return_exceptions=True)
        await asyncio.gather(*(self.dispose(spare) for spare in self._spares), return_exceptions=True)
        self._spares.clear()
        await self._close_empty_boxes()
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None
        if self._box:
            with contextlib.suppress(OSError):
                self.at.orders(self._box).unlink(missing_ok=True)

    def hurry(self) -> None:
        """No more patience with sessions that are being ended."""
        for one in self.sessions.values():
            if one.process is not None:
                one.process.kill()

    async def detach(self) -> None:
        """Leave everything that has a session to the next supervisor; spares are ended."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self.dispose(spare) for spare in self._spares), return_exceptions=True)
        await asyncio.gather(*(one.settle() for one in self.sessions.values()), return_exceptions=True)
        for one in self.sessions.values():
            one.detach()
        if self._zygote is not None:
            self._zygote.close()

    async def _close_empty_boxes(self) -> None:
        for box in list(self._boxes):
            if not any(one.box == box for one in self.sessions.values()):
                running = self._boxes.pop(box)
                await running.close()
                with contextlib.suppress(OSError):
                    self.at.record(box).unlink(missing_ok=True)

    # spares

    async def _fill(self) -> None:
        """Keep as many workers ready as the demand wants; one more or one less at a time."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FILL_PAUSE_S):
                    await self._wanting.wait()
            self._wanting.clear()
            await self._drop_spent_spares()
            wanted = self._demand.target(time.monotonic())
            if self._zygote is None or self._zygote.gone.is_set():
                continue
            if len(self._spares) > wanted:
                await self.dispose(self._spares.pop())
            elif len(self._spares) < wanted:
                if (calm_s := self._demand.calm_s(time.monotonic(), ready=len(self._spares), wanted=wanted)) > 0:
                    await asyncio.sleep(calm_s)
                    self._wanting.set()
                    continue
                try:
                    self._spares.append(await self._make_worker(spare=True))
                except errors.NexusError as error:
                    _LOG.warning("no spare worker for %s: %s", self.spec.id, error.cause or error.message)
                    await asyncio.sleep(_FILL_PAUSE_S)
                self._wanting.set()

    def _fits(self, spare: session.Worker) -> bool:
        """Whether it lives, and was forked from the zygote of today, if from any."""
        return spare.spare.usable and spare.box in ("", self._box)

    async def _drop_spent_spares(self) -> None:
        spent = [spare for spare in self._spares if not self._fits(spare)]
        for spare in spent:
            self._spares.remove(spare)
            await self.dispose(spare)

    # after a supervisor that was killed

    def _write_token_hash(self) -> None:
        if self._token_hash:
            session_record.write_private(self.at.root / _KEPT_HASH, self._token_hash.encode())

    async def adopt(self) -> set[str]:
        """Find again the sessions of an earlier supervisor; the names of the control groups that are in use."""
        if not self._token_hash:
            with contextlib.suppress(OSError):
                self._token_hash = paths.read_regular(self.at.root / _KEPT_HASH, most=256).decode()
        groups: set[str] = set()
        boxes: set[str] = set()
        for file in sorted(self.at.root.glob("*.json")) if self.at.root.is_dir() else ():
            with contextlib.suppress(OSError, ValueError):
                found = session_record.decode(paths.read_regular(file, most=_MOST_RECORD))
                if await self._adopt_session(found):
                    groups.add(f"{self.spec.id}.{found.handle.name}")
                    boxes.add(found.box)
        self._sweep()
        return groups

    async def _adopt_session(self, found: session_record.Record) -> bool:
        process = session_process.find(found.handle)
        listener = None
        if process is not None:
            process.frozen = True  # it may be: and then it could not answer
            process.thaw()
            with contextlib.suppress(session_link.Closed, TimeoutError):
                listener = await session_commands.fetch_listener(self.at.commands(found.handle.name))
        if process is None or listener is None:
            if process is not None:
                await process.close()
            return False
        one = session.Session(found.session_id, self, listener=listener, created_at=found.created_at)
        self.sessions[one.id] = one
        fifo = self.at.folder(found.handle.name) / "output" if not found.box else self.at.output(found.handle.name)
        output = session_output.Output(fifo, self._log())
        talk, theirs = session_link.pair()
        theirs.close()
        worker = session.Worker(spare=zygote.Spare(process, talk), output=output, box=found.box, how=How(found.how))
        one.adopt(worker, found)
        return True

    def adopt_box(self, running: launcher.Running) -> None:
        self._boxes[running.handle.box] = running

    def sockets(self) -> list[Path]:
        """Those of its sessions and of their keepers."""
        paths_ = [one.path for one in self.sessions.values()]
        return paths_ + [self.at.commands(one.process.handle.name) for one in self.sessions.values() if one.process is not None]

    def box_handles(self) -> list[launcher.Handle]:
        """Boxes of earlier zygotes, as they were noted down."""
        found = []
        for file in self.at.root.glob("*.json") if self.at.root.is_dir() else ():
            with contextlib.suppress(OSError, ValueError):
                found.append(session_record.decode_box(paths.read_regular(file, most=_MOST_RECORD)))
        return found

    def _sweep(self) -> None:
        """Files of workers that are no more."""
        known = {one.process.handle.name for one in self.sessions.values() if one.process is not None}
        for file in self.at.root.iterdir() if self.at.root.is_dir() else ():
            if file.is_dir() and file.name not in known:
                shutil.rmtree(file, ignore_errors=True)
            elif file.suffix in (".fifo", ".tar") and file.stem not in known:
                file.unlink(missing_ok=True)
