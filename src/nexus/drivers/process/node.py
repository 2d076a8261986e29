"""All instances of one machine: takes orders, finds again what an earlier supervisor started, measures, tells changes."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nexus.core import errors, instances
from nexus.core.phases import InstancePhase
from nexus.drivers.process import (
    box_launcher,
    cgroups,
    environment_plans,
    environments,
    instance,
    instance_sessions,
    instance_tools,
    launcher,
    log_lines,
    log_query,
    log_writer,
    paths,
    patrol,
    preparation,
    record,
    sandbox,
    session_archive,
    session_table,
    usage_book,
)
from nexus.kit import backoff, egress, guard
from nexus.kit.home import Home
from nexus.ports import driver

_LOG = logging.getLogger(__name__)
_MEASURE_S = 2.0
_QUEUE = 1024
_MOST_RECORD = 16 * 1024 * 1024
_UNUSED_S = 30 * 86_400
MOST_INSTANCES = 5000


class Node:
    """An async context manager. Inside it instances run; leaving it detaches from them (`stop_all` first to end them)."""

    def __init__(
        self,
        home: Home,
        *,
        environ: Mapping[str, str],
        worker_copy: Callable[[], Awaitable[Path]],
        layout: cgroups.Layout | None = None,
        pauses: backoff.Backoff | None = None,
        grace_s: float = 10.0,
        allowance: egress.Allowance | None = None,
    ) -> None:
        """`allowance`: private addresses that agents with a way out may reach (`NEXUS_EGRESS_ALLOW`)."""
        self.home = home
        self._layout = layout if layout is not None else cgroups.Layout()
        started = box_launcher.BoxLauncher(self._layout)
        self._environments = environments.Environments(home.environments, environ=environ, started=started)
        self._worker_copy = worker_copy
        self._layers = sandbox.Layers()
        self.hub = log_query.Hub()
        self._book = usage_book.Book()
        self.sessions = session_table.Table(home.run / "s", session_archive.kept_in(home), ended=self._book.end_session)
        self._instances: dict[str, instance.Instance] = {}
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._watchers: set[asyncio.Queue[instances.InstanceStatus]] = set()
        self._loops = guard.Loops()
        self._tools = instance_tools.Tools(
            place=lambda instance_id: paths.of_instance(home, instance_id),
            logs=self._logs_for,
            preparation=preparation.Preparation(home, self._environments, worker_copy),
            launcher=started,
            doors=home.doors,
            missing=lambda: self.capabilities().missing,
            allowance=allowance or egress.Allowance(),
            on_change=self._publish,
            sessions=instance_sessions.Shared(home=home, layout=self._layout, table=self.sessions),
            grace_s=grace_s,
            pauses=pauses or instance_tools.PAUSES,
        )

    async def __aenter__(self) -> Self:
        for folder in (self.home.instances, self.home.environments, self.home.root / "sources", self.home.logs):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await asyncio.to_thread(_open_doors, self.home)
        await asyncio.to_thread(self._sweep_files)
        self._layers = await asyncio.to_thread(self._tools.launcher.look)
        await self._find_again()
        await asyncio.to_thread(self._prune)
        await self._loops.__aenter__()
        self._loops.start("usage", self._measure)
        self._loops.start("sessions", self.sessions.run)
        self._loops.start("limits", patrol.Patrol(self.home.instances, self._instances.values).run)
        guard.spawn(self._warm(), name="warm up", owner=self._tasks)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._loops.__aexit__(kind, error, trace)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(one.detach() for one in self._instances.values()))
        cgroups.release(self._layout)

    # orders

    def start(self, spec: instances.InstanceSpec) -> None:
        """See `ports.driver.Driver.start`. Raises `Invalid`, `Conflict` (`instance.stopping`) or `Exhausted`."""
        paths.check_spec(spec)
        if spec.id in self._stopping:
            raise errors.Conflict(
                f"{spec.id} is being stopped", code="instance.stopping", next_step="start another instance with an id of its own"
            )
        known = self._instances.get(spec.id)
        if known is None:
            if len(self._instances) >= MOST_INSTANCES:
                raise errors.Exhausted(
                    f"this node runs {MOST_INSTANCES} instances already",
                    code="node.full",
                    next_step="scale another deployment down or add a node",
                )
            known = self._instances[spec.id] = instance.Instance(spec, self._tools)
        known.begin(spec)

    def stop(self, instance_id: str, *, grace_s: float) -> asyncio.Task[None] | None:
        """Begin to stop it, or hurry a stop under way; the task ends when nothing of it is left. None: no such instance."""
        paths.check_instance_id(instance_id)
        known = self._instances.get(instance_id)
        if known is not None and instance_id not in self._stopping:
            known.hurry(grace_s=grace_s)
            self._stopping[instance_id] = guard.spawn(
                self._stop(known, instance_id, grace_s), name=f"stop {instance_id}", owner=self._tasks
            )
        elif known is not None:
            known.hurry(grace_s=grace_s)
        return self._stopping.get(instance_id)

    async def stop_all(self, *, grace_s: float) -> None:
        tasks = [task for one in list(self._instances) if (task := self.stop(one, grace_s=grace_s)) is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    # questions

    def statuses(self) -> Sequence[instances.InstanceStatus]:
        return [one.tell() for one in self._instances.values()]

    async def changes(self, *, heartbeat_s: float) -> AsyncGenerator[instances.InstanceStatus | None, None]:
        """What is, then every change; None when nothing happened for `heartbeat_s`. A watcher that is too slow is ended."""
        queue: asyncio.Queue[instances.InstanceStatus] = asyncio.Queue(_QUEUE)
        self._watchers.add(queue)
        try:
            yield None
            for status in self.statuses():
                yield status
            while queue in self._watchers:
                try:
                    async with asyncio.timeout(heartbeat_s):
                        status = await queue.get()
                except TimeoutError:
                    yield None
                else:
                    yield status
        finally:
            self._watchers.discard(queue)

    async def last_end(self, instance_id: str, *, since: float, wait_s: float) -> Mapping[str, object] | None:
        """Why this instance ended after `since` (seconds since the epoch); waits up to `wait_s` for it, None: it did not."""
        paths.check_instance_id(instance_id)
        deadline = time.monotonic() + wait_s
        while (known := self._instances.get(instance_id)) is not None:
            end = known.status.last_end
            if end is not None and isinstance(at := end.get("at"), float) and at >= since:
                return end
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(0.02)
        return None

    def log_tail(self, instance_id: str, lines: int) -> list[str]:
        paths.check_instance_id(instance_id)
        known = self._instances.get(instance_id)
        return known.log_tail(lines) if known else []

    def network(self, instance_id: str, runs: Collection[str] = ()) -> Mapping[str, object]:
        """What went through the instance's way out: `total`, `runs` and `sessions` by their id; empty when it has none. With
        `runs` of these alone."""
        paths.check_instance_id(instance_id)
        known = self._instances.get(instance_id)
        if known is not None and runs:
            return {"runs": {run_id: tally.to_json() for run_id, tally in known.way.runs(runs).items()}}
        return known.way.to_json() if known else {}

    async def usage(self, after: str) -> dict[str, object]:
        """What sessions have used, in rows that have grown since the token `after`; see `usage_ledger`."""
        return await self._book.tell(after, self.sessions.everyone(), list(self._instances.values()))

    def logs(
        self, *, tenant: str, agent: str, wanted: log_lines.Filter, limit: int, follow: bool
    ) -> AsyncGenerator[dict[str, object], None]:
        folder = paths.agent_logs(self.home, tenant, agent)
        return self.hub.query(folder, tenant=tenant, agent=agent, wanted=wanted, limit=limit, follow=follow)

    def capabilities(self) -> driver.Capabilities:
        missing = list(self._layers.missing)
        if not self._layout.has("memory"):
            missing.append("memory control group: a limit holds for each process apart, by RLIMIT_DATA")
        if not self._layout.has("cpu"):
            missing.append("cpu control group: CPU limits are not enforced")
        if not self._layout.has("pids"):
            missing.append(
                f"pids control group: {'RLIMIT_NPROC limits' if self._layers.boxed else 'nothing limits'} the processes"
            )
        if not self._layout.v1 and self._layout.unified is None and not self._layers.boxed:
            missing.append("no control group at all: a daemon that hides its origin may outlive its instance")
        return driver.Capabilities(
            name="process",
            isolation="box" if self._layers.boxed else "process",
            limits_memory=True,
            limits_cpu=self._layout.has("cpu"),
            missing=tuple(missing),
        )

    # parts

    async def _stop(self, one: instance.Instance, instance_id: str, grace_s: float) -> None:
        try:
            await one.stop(grace_s=grace_s)
            self._book.close_instance(one)
        finally:
            if one.status.phase is InstancePhase.STOPPED:
                self._instances.pop(instance_id, None)
            self._stopping.pop(instance_id, None)

    def _publish(self, status: instances.InstanceStatus) -> None:
        for watcher in list(self._watchers):
            try:
                watcher.put_nowait(status)
            except asyncio.QueueFull:
                self._watchers.discard(watcher)

    def _logs_for(self, spec: instances.InstanceSpec) -> log_writer.LogWriter:
        origin = log_lines.Origin(
            tenant=spec.tenant,
            agent=spec.agent,
            environment=spec.environment,
            version=spec.version,
            instance_id=spec.id,
        )
        return log_writer.LogWriter(paths.agent_logs(self.home, spec.tenant, spec.agent), origin, publish=self.hub.publish)

    def _sweep_files(self) -> None:
        self._environments.sweep()
        for leftover in (self.home.root / "sources").glob(".*.unpacking"):
            preparation.remove_tree(leftover)

    def _prune(self) -> None:
        """What no instance used for long goes; it would be built or unpacked again when it is wanted."""
        for folder in (self.home.environments, self.home.root / "sources"):
            for gone in preparation.prune(folder, before=time.time() - _UNUSED_S):
                _LOG.info("removed %s/%s: not used for %d days", folder.name, gone[:12], _UNUSED_S // 86_400)

    async def _find_again(self) -> None:
        adopted: set[str] = set()
        for folder in sorted(self.home.instances.iterdir()):
            place = paths.of_instance(self.home, folder.name)
            try:
                found = record.decode(paths.read_regular(place.record, most=_MOST_RECORD))
                paths.check_spec(found.spec)
            except (OSError, ValueError, errors.NexusError) as error:
                _LOG.warning("forgetting %s, which cannot be read: %s", folder.name, error)
                launcher.kill_marked(folder.name)
                preparation.forget(place)
                continue
            running = self._tools.launcher.adopt(found.handle) if found.handle else None
            one = self._instances[found.spec.id] = instance.Instance(found.spec, self._tools, found=found)
            if running is not None and found.handle is not None:
                adopted.add(found.handle.box or found.spec.id)
            adopted |= await one.adopt_sessions()
            self._settle(one, found, running)
        for group in cgroups.leftovers(self._layout, adopted):
            cgroups.wait_removed(group)
        self.sessions.sweep(adopted)

    def _settle(self, one: instance.Instance, found: record.Record, running: launcher.Running | None) -> None:
        fate = record.decide_fate(found, alive=running is not None)
        _LOG.info("found %s of %s: %s", found.spec.id, found.spec.agent, fate)
        if running is not None:
            for folder in running.secrets_of(["VIRTUAL_ENV", "NEXUS_SOURCE"]).values():
                preparation.touch(Path(folder))
            one.adopt(running, found.secret_names)
        if fate == "finish_stop":
            left = self._tools.grace_s if found.stop_by is None else found.stop_by - time.time()
            self.stop(found.spec.id, grace_s=max(0.0, left))
        elif fate == "await_spec":
            one.await_spec("it ended while no supervisor ran")

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(_MEASURE_S)
            await asyncio.gather(*(one.measure() for one in list(self._instances.values())))

    async def _warm(self) -> None:
        """Make what the first deploy would wait for: the worker copy and the empty environment."""
        with contextlib.suppress(errors.NexusError):
            empty = environment_plans.plan_environment(
                self.home.environments, package_digest="", host_python=environments.host_python(), python=None
            )
            await self._environments.ensure(empty, _ignore)
        with contextlib.suppress(errors.NexusError):
            await self._worker_copy()


def _open_doors(home: Home) -> None:
    """The folder that boxes see, before the first box binds it."""
    home.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    home.doors.mkdir(exist_ok=True)
    home.doors.chmod(0o711)


def _ignore(*_: Any) -> None:
    return None
