"""A driver that runs nothing, with knobs: what an agent's start leads to, when it crashes, and whether the node answers.

For tests of everything that stands above the driver port; it passes the same contract suite as the real ones.
"""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nexus.core import errors, instances
from nexus.core.phases import InstancePhase
from nexus.ports import driver, logs
from nexus.wire import node, problem

_LEVELS = ("debug", "info", "warning", "error", "critical")


@dataclass(slots=True)
class Knobs:
    """`outcome` says how a start ends: `ready`, `failed`, or `starting` (it stays there until `settle`).

    `unreachable` makes every verb raise as if the node were down; `refuse` is raised by `start`.
    """

    outcome: Callable[[instances.InstanceSpec], str] = lambda spec: "ready"
    unreachable: bool = False
    refuse: errors.NexusError | None = None
    capabilities: driver.Capabilities = field(
        default_factory=lambda: driver.Capabilities(name="fake", isolation="none", limits_memory=False, limits_cpu=False)
    )


class FakeDriver:
    """`knobs` may be turned at any time; `specs` holds what was last asked for, `orders` every order in turn."""

    def __init__(self, knobs: Knobs | None = None, *, now: Callable[[], float] = time.time) -> None:
        self.knobs = knobs or Knobs()
        self.specs: dict[str, instances.InstanceSpec] = {}
        self.orders: list[tuple[str, str]] = []
        self._now = now
        self._statuses: dict[str, instances.InstanceStatus] = {}
        self._watchers: set[asyncio.Queue[instances.InstanceStatus | None]] = set()
        self._followers: set[asyncio.Queue[node.LogLine]] = set()
        self._lines: list[tuple[instances.InstanceSpec, node.LogLine]] = []

    # the port

    async def capabilities(self) -> driver.Capabilities:
        self._reach()
        return self.knobs.capabilities

    async def start(self, spec: instances.InstanceSpec) -> None:
        self._reach()
        if self.knobs.refuse is not None:
            raise self.knobs.refuse
        self.orders.append(("start", spec.id))
        self.specs[spec.id] = spec
        known = self._statuses.get(spec.id)
        if known is not None and known.phase not in (InstancePhase.FAILED, InstancePhase.PENDING):
            return
        self._put(
            instances.InstanceStatus(
                id=spec.id,
                phase=InstancePhase.STARTING,
                tenant=spec.tenant,
                agent=spec.agent,
                version_id=spec.version_id,
                deployment_id=spec.deployment_id,
            )
        )
        outcome = self.knobs.outcome(spec)
        if outcome != "starting":
            self.settle(spec.id, outcome)

    async def stop(self, instance_id: str, *, grace_s: float) -> None:
        self._reach()
        self.orders.append(("stop", instance_id))
        if instance_id in self._statuses:
            self._change(instance_id, phase=InstancePhase.STOPPING)
            self._change(instance_id, phase=InstancePhase.STOPPED, address=None, pid=None)
            del self._statuses[instance_id]

    async def statuses(self) -> Sequence[instances.InstanceStatus]:
        self._reach()
        return list(self._statuses.values())

    async def watch(self) -> AsyncIterator[instances.InstanceStatus]:
        self._reach()
        queue: asyncio.Queue[instances.InstanceStatus | None] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            while (status := await queue.get()) is not None:
                yield status
            raise _unreachable()
        finally:
            self._watchers.discard(queue)

    async def log_tail(self, instance_id: str, *, lines: int) -> Sequence[str]:
        self._reach()
        return [line["message"] for _, line in self._lines if line["instance_id"] == instance_id][-lines:]

    async def logs(self, query: logs.LogQuery) -> AsyncIterator[node.LogLine]:
        self._reach()
        if query.level is not None and query.level not in _LEVELS:
            raise errors.Invalid(f"there is no level {query.level!r}", code="logs.bad_level")
        queue: asyncio.Queue[node.LogLine] = asyncio.Queue()
        self._followers.add(queue)
        try:
            for line in [line for spec, line in self._lines if _matches(query, spec, line)][-query.limit :]:
                yield line
            while query.follow:
                line = await queue.get()
                if _matches(query, self.specs[line["instance_id"]], line):
                    yield line
        finally:
            self._followers.discard(queue)

    # the knobs that act on one instance

    def settle(self, instance_id: str, outcome: str = "ready", *, cause: str = "it exited with code 1") -> None:
        """End a start, well or badly."""
        if outcome == "ready":
            self._change(
                instance_id,
                phase=InstancePhase.READY,
                address=f"unix:/fake/{instance_id}.sock",
                pid=4242,
                started_at=self._now(),
                problem=None,
            )
        else:
            failure = errors.AgentFailed("the agent ended before it was ready", code="start.exited", phase="start", cause=cause)
            self._change(instance_id, phase=InstancePhase.FAILED, problem=problem.render(failure))

    def crash(self, instance_id: str) -> None:
        """It ends by itself and is started again at once."""
        restarts = self._statuses[instance_id].restarts + 1
        self._change(instance_id, phase=InstancePhase.STARTING, address=None, pid=None, restarts=restarts)
        self.settle(instance_id, self.knobs.outcome(self.specs[instance_id]))

    def set_usage(self, instance_id: str, usage: instances.Usage) -> None:
        self._statuses[instance_id] = dataclasses.replace(self._statuses[instance_id], usage=usage)

    def set_unhealthy(self, instance_id: str, cause: str = "GET /health answered 503") -> None:
        failure = errors.AgentFailed("the agent fails its health check", code="health.failing", phase="health", cause=cause)
        self._change(instance_id, phase=InstancePhase.UNHEALTHY, problem=problem.render(failure))

    def lose(self, instance_id: str) -> None:
        """The node forgets it, as after a reboot."""
        self._statuses.pop(instance_id, None)

    def break_watches(self) -> None:
        """Every `watch` under way raises `Unavailable`."""
        for watcher in self._watchers:
            watcher.put_nowait(None)

    def say(self, instance_id: str, message: str, *, level: str = "info", **more: str) -> None:
        """The instance prints a line."""
        spec = self.specs[instance_id]
        line: Mapping[str, object] = {
            "at": self._now(),
            "level": level,
            "message": message,
            "agent": spec.agent,
            "instance_id": instance_id,
            "version": spec.version,
            **more,
        }
        typed: node.LogLine = line  # type: ignore[assignment]
        self._lines.append((spec, typed))
        for follower in self._followers:
            follower.put_nowait(typed)

    def _reach(self) -> None:
        if self.knobs.unreachable:
            raise _unreachable()

    def _change(self, instance_id: str, **changes: object) -> None:
        self._put(dataclasses.replace(self._statuses[instance_id], **changes))  # type: ignore[arg-type]

    def _put(self, status: instances.InstanceStatus) -> None:
        self._statuses[status.id] = status
        for watcher in self._watchers:
            watcher.put_nowait(status)


def _unreachable() -> errors.Unavailable:
    return errors.Unavailable("the node cannot be asked", code="driver.unreachable", retry_after_s=1.0)


def _matches(query: logs.LogQuery, spec: instances.InstanceSpec, line: node.LogLine) -> bool:
    wanted = (
        (query.tenant, spec.tenant),
        (query.agent, spec.agent),
        (query.environment, spec.environment),
        (query.instance_id, line["instance_id"]),
        (query.run_id, line.get("run_id")),
        (query.session_id, line.get("session_id")),
    )
    if any(asked is not None and asked != has for asked, has in wanted):
        return False
    if query.since is not None and line["at"] < query.since:
        return False
    return query.level is None or _LEVELS.index(line["level"]) >= _LEVELS.index(query.level)
