"""The life of one instance: prepare, launch, wait until ready, watch, start again, stop. One task each; `node` owns them.

```
pending ─► building ─► starting ─► ready ◄─► unhealthy        an end before the first ready is for good: failed
                          ▲          │           │
                          └──────────┴───────────┘            a later end starts it again, at once and then with growing pauses
```
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import signal
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from nexus.core import errors, instances
from nexus.core.phases import InstancePhase
from nexus.drivers.process import (
    disk_use,
    egress_meter,
    egress_way,
    instance_sessions,
    instance_tools,
    launcher,
    limits,
    log_lines,
    log_writer,
    paths,
    preparation,
    probe,
    problems,
    races,
    record,
    session_launch,
)
from nexus.kit import guard
from nexus.wire import problem as problem_wire

_LOG = logging.getLogger(__name__)
_TAIL = 30
_STEADY_S = 60.0
_DUMP_S = 1.0
_LINGER_S = 2.0
_CANCEL_S = 3.0
_BOXED_TEMPORARY = Path("/tmp")  # noqa: S108 - the box's own

Problem = Mapping[str, object]


class Instance:
    """`begin` or `adopt` starts the life; `stop` ends it and forgets everything; `detach` leaves the process running."""

    def __init__(self, spec: instances.InstanceSpec, tools: instance_tools.Tools, *, found: record.Record | None = None) -> None:
        self.spec = spec
        self._tools = tools
        self._paths = tools.place(spec.id)
        self._log: log_writer.LogWriter | None = None
        self._running: launcher.Running | None = None
        self._was_ready = found.was_ready if found else False
        self._complete, self._lacks_secrets = found is None, False
        self._full, self._streak = False, 0
        self._stop_by: float | None = None
        self._hurried = asyncio.Event()
        self._asked = found is not None and found.status.phase is InstancePhase.STOPPING
        self._sessions = instance_sessions.InstanceSessions(
            spec, tools.sessions, self._paths, self._open_log, self._draw, tools.launcher.launch
        )
        self.way = egress_way.WayOut(self._paths, tools.allowance, note=self._note, sessions=self._sessions.find)
        self._life: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.status = (
            found.status
            if found
            else instances.InstanceStatus(
                id=spec.id,
                phase=InstancePhase.PENDING,
                tenant=spec.tenant,
                agent=spec.agent,
                version_id=spec.version_id,
                deployment_id=spec.deployment_id,
            )
        )

    # what the node calls

    def begin(self, spec: instances.InstanceSpec) -> None:
        """Want it with this spec: starts it unless it lives; a living one keeps the spec for its next start."""
        self.spec, self._complete, self._lacks_secrets = spec, True, False
        self._sessions.renew(spec)
        if self._life is None or self._life.done():
            if self.status.phase is InstancePhase.FAILED:
                self._was_ready, self._streak = False, 0
            self._life = guard.spawn(self._guarded(self._live(None)), name=f"instance {spec.id}", owner=self._tasks)

    def adopt(self, running: launcher.Running, secret_names: tuple[str, ...]) -> None:
        """Go on watching a process that a supervisor before us started.

        What it was given is read back from it, so that it can be started again even while control is down.
        """
        self._running = running
        given = running.secrets_of(["NEXUS_TOKEN", *secret_names])
        secrets = {name: given[name] for name in secret_names if name in given}
        self.spec = dataclasses.replace(self.spec, token=given.get("NEXUS_TOKEN", ""), secrets=secrets)
        self._lacks_secrets = len(secrets) < len(secret_names)
        self._complete = bool(self.spec.token) and not self._lacks_secrets
        if self.status.phase not in (InstancePhase.READY, InstancePhase.UNHEALTHY, InstancePhase.STOPPING):
            self.status = dataclasses.replace(self.status, phase=InstancePhase.STARTING)
        if self.status.phase is not InstancePhase.STOPPING:
            self._life = guard.spawn(self._guarded(self._live(running)), name=f"instance {self.spec.id}", owner=self._tasks)

    def await_spec(self, detail: str) -> None:
        self._set(InstancePhase.PENDING, step="waiting", detail=problems.awaiting_spec(detail), address=None, pid=None)

    async def stop(self, *, grace_s: float) -> None:
        """SIGTERM and `grace_s` for runs to end, SIGTERM again to end them, SIGKILL; then nothing remains but its log."""
        self.hurry(grace_s=grace_s)
        await self._end_life()
        self._set(InstancePhase.STOPPING, step="stopping", detail="")
        await self._sessions.close(lambda: (self._stop_by or 0.0) - self._tools.clock())
        running = self._running
        if running is not None:
            if not self._asked:  # by the supervisor before us: the worker takes a second signal as the end of patience
                running.send(signal.SIGTERM)
            if not await self._ends_in_time(running) and grace_s > 0:
                running.send(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_CANCEL_S):
                        await running.wait()
            await self._clear(running)
        await self.way.close()
        self._close_log()
        await asyncio.to_thread(preparation.forget, self._paths)
        self.status = dataclasses.replace(self.status, phase=InstancePhase.STOPPED, address=None, pid=None, step="", detail="")
        self._tools.on_change(self.status)

    def hurry(self, *, grace_s: float) -> None:
        """At most this long from now, also for a stop that was given more."""
        by = self._tools.clock() + max(grace_s, 0.0)
        if self._stop_by is None or by < self._stop_by:
            self._stop_by = by
            self._hurried.set()

    async def _ends_in_time(self, running: launcher.Running) -> bool:
        while (left := (self._stop_by or 0.0) - self._tools.clock()) > 0:
            self._hurried.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, 60.0)):
                    if isinstance(await races.first_of(running.wait(), self._hurried.wait()), launcher.Exit):
                        return True
        return False

    async def detach(self) -> None:
        """End the watching, not the process: another supervisor will adopt it."""
        await self._end_life()
        await self._sessions.detach()
        await self.way.close()
        self._close_log()

    async def adopt_sessions(self) -> set[str]:
        """After another supervisor: the names of the control groups that its sessions use."""
        return await self._sessions.adopt(self._tools.launcher.adopt)

    def log_tail(self, lines: int) -> list[str]:
        if self._log is not None:
            return self._log.tail(lines)
        kept = (self.status.problem or {}).get("log_tail")
        return [str(line) for line in kept][-lines:] if isinstance(kept, list | tuple) else []

    async def measure(self) -> None:
        """Refresh `status.usage`."""
        running, watched = self._running, (InstancePhase.READY, InstancePhase.UNHEALTHY, InstancePhase.STARTING)
        if running is None or self.status.phase not in watched:
            return
        cpu, memory = running.usage()
        runs, active_at = await probe.activity(self._paths.socket, timeout_s=1.0)
        before = self.status.usage
        if self._running is running:
            usage = instances.Usage(
                cpu_s=round(cpu, 3),
                memory_bytes=memory,
                active_runs=before.active_runs if runs is None else runs,
                last_active_at=before.last_active_at if active_at is None else min(active_at, self._tools.clock()),
                **self.way.counts(),
            )
            self.status = dataclasses.replace(self.status, usage=self._sessions.add_usage(usage))

    def tell(self) -> instances.InstanceStatus:
        """Its status, with how many sessions there are at this moment."""
        return dataclasses.replace(self.status, usage=self._sessions.count(self.status.usage))

    def look_at_processes(self) -> None:
        running = self._running
        if running is not None and (excess := running.count_processes(limits.read_limits(self.spec).processes)) is not None:
            running.end_for(excess)

    async def look_at_disk(self, *, deleted: bool) -> None:
        """End it when it holds more of the disk than it may; its next start finds an empty work directory."""
        running, allowed = self._running, limits.read_limits(self.spec)
        if running is None:
            return
        written, holders = (self._paths.work, self._paths.shared, self._paths.temporary), running.processes() if deleted else ()
        use = await asyncio.to_thread(disk_use.measure, written, allowed, holders=holders)
        if (excess := limits.judge_disk(use, allowed)) is not None and self._running is running:
            self._full = True
            running.end_for(excess)

    # the life

    async def _guarded(self, life: Coroutine[Any, Any, None]) -> None:
        try:
            await life
        except errors.NexusError as error:
            await self._fail(problem_wire.render(error))
        except Exception as error:  # noqa: BLE001 - a defect of ours must show as this instance's failure, not vanish
            _LOG.exception("instance %s failed", self.spec.id)
            defect = errors.Internal("the supervisor failed", code="driver.defect", phase="start", cause=repr(error))
            await self._fail(problem_wire.render(defect))

    async def _live(self, running: launcher.Running | None) -> None:
        if running is not None:
            self._open_log()
            await self.way.open(self.spec.options)
        while True:
            if running is None:
                if not self._complete:
                    self.await_spec("it ended while its secrets were unknown")
                    return
                running = await self._start()
            began = asyncio.get_running_loop().time()
            problem = await self._attend(running)
            await self._clear(running)
            running = None
            if not self._was_ready:
                await self._fail(problem)
                return
            if asyncio.get_running_loop().time() - began > _STEADY_S:
                self._streak = 0
            await self._pause(problem)

    async def _start(self) -> launcher.Running:
        if not self._was_ready:
            self._set(InstancePhase.BUILDING, problem=None)
        drawn = await self._draw(fresh=True)
        output = self._open_log().open_for_child()
        try:
            with self._sessions.plan(drawn) as plan:
                self._running = await self._launch(dataclasses.replace(plan, output=output))
        finally:
            os.close(output)
        self._set(InstancePhase.STARTING, pid=self._running.handle.shown, started_at=self._tools.clock())
        return self._running

    async def _draw(self, *, fresh: bool = False) -> session_launch.Drawn:
        """Whatever a launch needs, made or found; `fresh`: in folders of a new start."""
        spec = self.spec
        problems.check_secrets(spec, lacking=self._lacks_secrets)
        layers = await asyncio.to_thread(self._tools.launcher.look)
        draft = preparation.draft_wish(spec, self._paths)  # refused before strangers' requirements are built
        problems.check_isolation(spec, draft, layers, missing=self._tools.missing())
        prepared = await self._tools.preparation.prepare(spec, self._on_step if fresh else _ignore)
        if fresh:
            await asyncio.to_thread(preparation.make_folders, self._paths, empty=self._full)
            self._full = False
            self._set(InstancePhase.STARTING, step="launching", detail="", address=None)
        wish = preparation.render_wish(spec, self._paths, prepared, doors=self._tools.doors)
        await self.way.open(self.spec.options)
        temporary = _BOXED_TEMPORARY if layers.boxed else self._paths.temporary
        plan = launcher.Plan(
            instance_id=spec.id,
            command=preparation.render_command(prepared),
            environ=preparation.render_environ(spec, self._paths, prepared, temporary=temporary),
            folder=prepared.source,
            output=-1,
            memory_bytes=spec.memory_bytes,
            cpu_millis=spec.cpu_millis,
            wish=wish,
            allowed=limits.read_limits(spec),
        )
        return session_launch.Drawn(plan=plan, layers=layers, ready=prepared)

    def _note(self, message: str, level: str, caller: egress_meter.Caller) -> None:
        if self._log is not None:
            self._log.note(message, level=level, run_id=caller.run_id, session_id=caller.session_id)

    async def _launch(self, plan: launcher.Plan) -> launcher.Running:
        """In a thread. Whoever cancels us still finds the process, and can end it."""
        launching = asyncio.ensure_future(asyncio.to_thread(self._tools.launcher.launch, plan))
        try:
            return await asyncio.shield(launching)
        except asyncio.CancelledError:
            with contextlib.suppress(errors.NexusError):
                self._running = await launching
            raise

    async def _attend(self, running: launcher.Running) -> Problem:
        """From launched to ended; the process is dead or about to be killed when this returns why."""
        if self.status.phase not in (InstancePhase.READY, InstancePhase.UNHEALTHY):
            problem = await self._await_ready(running)
            if problem is not None:
                return problem
        try:
            await self._sessions.begin(running)
        except errors.Unavailable as error:
            return problem_wire.render(error)
        self._was_ready = True
        note = log_lines.clean(str(self._worker_says().get("note", "")), 300)
        self._set(InstancePhase.READY, step="", detail=note, problem=None, address=f"unix:{self._paths.socket}")
        ended = races.first_of(running.wait(), self._sessions.zygote_gone())
        first = await races.first_of(ended, self._watch_health())
        if isinstance(first, launcher.Exit):
            return problem_wire.render(problems.ended(self.spec, first, self._tail()))
        await self._dump(running)
        return problem_wire.render(problems.unhealthy(self.spec, first, self._tail()))

    async def _await_ready(self, running: launcher.Running) -> Problem | None:
        """None once the worker is ready and its health check passes; else what went wrong."""
        try:
            async with asyncio.timeout(self.spec.start_timeout_s):
                first = await races.first_of(running.wait(), self._follow_start())
        except TimeoutError:
            await self._dump(running)
            doing = str(self._worker_says().get("phase", ""))
            return problem_wire.render(problems.start_timeout(self.spec, doing=doing, tail=self._tail()))
        if isinstance(first, launcher.Exit):
            said = self._worker_says().get("problem")
            if isinstance(said, Mapping) and not first.out_of_memory:
                return problems.of_worker(said, self._tail())
            return problem_wire.render(problems.ended_while_starting(self.spec, first, self._tail()))
        return first

    async def _follow_start(self) -> Problem | None:
        """Watches the worker's status file; None when it is ready and healthy, else what is wrong.

        A worker that reports failure is about to exit, and its exit ends the wait: unless a thread of the agent's keeps it.
        """
        pause = 0.005
        while (said := self._worker_says()).get("phase") != "ready":
            if said.get("phase") == "failed" and isinstance(reported := said.get("problem"), Mapping):
                await asyncio.sleep(_LINGER_S)
                return problems.of_worker(reported, self._tail())
            step, detail = str(said.get("phase", "launching")), log_lines.clean(str(said.get("detail", "")), 300)
            if (step, detail) != (self.status.step, self.status.detail):
                self._on_step(step, detail)
            await asyncio.sleep(pause)
            pause = min(pause * 1.1, 0.1)
        try:
            paths.publish_socket(self._paths)
        except OSError as error:
            return problem_wire.render(problems.no_socket(self.spec, error.strerror or str(error), self._tail()))
        check = self.spec.health
        reason: str | None = None
        for attempt in range(check.retries):
            if attempt:
                await asyncio.sleep(min(check.interval_s, 1.0))
            reason = await probe.is_healthy(self._paths.socket, check.path, timeout_s=check.timeout_s)
            if reason is None:
                return None
        return problem_wire.render(problems.unhealthy(self.spec, reason or "", self._tail()))

    async def _watch_health(self) -> str:
        """Returns why the instance must be started again: it is unhealthy and has nothing to lose, or has been for too long."""
        loop = asyncio.get_running_loop()
        misses, since = 0, loop.time()
        while True:
            check = self.spec.health
            await asyncio.sleep(check.interval_s)
            reason = await probe.is_healthy(self._paths.socket, check.path, timeout_s=check.timeout_s)
            if reason is None:
                if self.status.phase is InstancePhase.UNHEALTHY:
                    self._set(InstancePhase.READY, problem=None)
                misses = 0
                continue
            misses += 1
            if misses == 1:
                since = loop.time()
            if misses < check.retries:
                continue
            if self.status.phase is InstancePhase.READY:
                self._set(
                    InstancePhase.UNHEALTHY, problem=problem_wire.render(problems.unhealthy(self.spec, reason, self._tail()))
                )
            runs = await probe.active_runs(self._paths.socket, timeout_s=check.timeout_s)
            if (self.status.usage.active_runs if runs is None else runs) == 0:
                return reason
            if loop.time() - since > self.spec.run_timeout_s:
                return reason

    async def _dump(self, running: launcher.Running) -> None:
        """Ask for the stacks of all threads in the log (faulthandler answers SIGABRT), so that a hang can be understood."""
        running.send(signal.SIGABRT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DUMP_S):
                await running.wait()

    async def _pause(self, problem: Problem) -> None:
        pause = self._tools.pauses.pause_s(self._streak - 1) if self._streak else 0.0
        self._streak += 1
        detail = f"{problem.get('cause') or problem.get('detail')}; starts again" + (f" in {pause:.1f} s" if pause else "")
        if self._log is not None:
            self._log.note(f"the instance ended: {detail}", level="error")
        self._set(
            InstancePhase.STARTING,
            step="restarting",
            detail=detail,
            problem=problem,
            last_end={**problem, "at": self._tools.clock()},
            address=None,
            pid=None,
            restarts=self.status.restarts + 1,
            usage=instances.Usage(cpu_s=self.status.usage.cpu_s),
        )
        await asyncio.sleep(pause)

    # small parts

    async def _fail(self, problem: Problem) -> None:
        if self._running is not None:
            await self._clear(self._running)
        if self._log is not None and self.status.started_at is not None:
            self._log.note(f"the instance failed: {problem.get('cause') or problem.get('detail')}", level="error")
        await self.way.close()
        self._close_log()
        self._set(InstancePhase.FAILED, step="", problem=problem, address=None, pid=None, usage=instances.Usage())

    async def _clear(self, running: launcher.Running) -> None:
        if not self._sessions.leave(running):
            await running.close()
        self._running = None
        with contextlib.suppress(OSError):
            self._paths.socket.unlink(missing_ok=True)

    async def _end_life(self) -> None:
        life, self._life = self._life, None
        if life is not None and not life.done():
            life.cancel()
            await asyncio.wait({life})

    def _open_log(self) -> log_writer.LogWriter:
        if self._log is None:
            self._log = self._tools.logs(self.spec)
            self._log.start(self._paths.output)
        self._log.redaction = log_lines.plan_redaction([*self.spec.secrets.values(), self.spec.token])
        return self._log

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _tail(self) -> list[str]:
        if self._log is None:
            return []
        self._log.take_everything()
        return self._log.tail(_TAIL)

    def _worker_says(self) -> Mapping[str, object]:
        try:
            data = paths.read_regular(self._paths.worker_status, most=64 * 1024)
            value = json.loads(self._log.redaction.apply(data) if self._log else data)
        except (OSError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def _on_step(self, step: str, detail: str) -> None:
        self.status = dataclasses.replace(self.status, step=step, detail=detail)
        self._tools.on_change(self.status)

    def _set(self, phase: InstancePhase, **changes: Any) -> None:
        self.status = dataclasses.replace(self.status, phase=phase, **changes)
        self._remember()
        self._tools.on_change(self.status)

    def _remember(self) -> None:
        kept = record.Record(
            status=dataclasses.replace(self.status, usage=instances.Usage()),
            spec=self.spec,
            secret_names=tuple(self.spec.secrets),
            handle=self._running.handle if self._running else None,
            was_ready=self._was_ready,
            stop_by=self._stop_by,
        )
        try:
            self._paths.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            record.write(self._paths.record, kept)
        except OSError as error:
            _LOG.warning("cannot remember instance %s: %s", self.spec.id, error.strerror)


def _ignore(*_: object) -> None:
    """Steps of a launch that nobody follows."""
