"""Runs that wait because their deployment has no instance for them yet: each caller in turn, none for ever, never too many."""

import collections
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nexus.core import errors
from nexus.gateway import routes
from nexus.gateway.call import Call

if TYPE_CHECKING:
    from nexus.gateway.runs_door import RunHandler


class Line:
    """The runs that wait for one deployment: in order for each caller, and the callers take turns."""

    def __init__(self) -> None:
        self._callers: collections.OrderedDict[str, collections.deque[RunHandler]] = collections.OrderedDict()
        self.length = 0

    def join(self, caller: str, run: "RunHandler") -> None:
        self._callers.setdefault(caller, collections.deque()).append(run)
        self.length += 1

    def leave(self, caller: str, run: "RunHandler") -> None:
        runs = self._callers.get(caller)
        if runs is not None and run in runs:
            runs.remove(run)
            self.length -= 1
            if not runs:
                del self._callers[caller]

    def served(self, caller: str) -> None:
        """One of this caller's runs went; the others' turn comes first now."""
        if caller in self._callers:
            self._callers.move_to_end(caller)

    def __iter__(self) -> "Iterator[tuple[str, RunHandler]]":
        """One run of each caller, then the next of each, and so on."""
        rows = [(caller, list(runs)) for caller, runs in self._callers.items()]
        for place in range(max((len(runs) for _, runs in rows), default=0)):
            for caller, runs in rows:
                if place < len(runs):
                    yield caller, runs[place]


class Room:
    """One bounded line per deployment. A line is looked at again when a run ends, when routes change, and twice a second."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}

    def __bool__(self) -> bool:
        """Whether anybody waits at all."""
        return bool(self._lines)

    @property
    def count(self) -> int:
        return sum(line.length for line in self._lines.values())

    def has(self, deployment_id: str) -> bool:
        return deployment_id in self._lines

    def join(self, run: "RunHandler", deployment: routes.Deployment) -> None:
        """Stand in line, or `Exhausted` (`queue.full`) when it is as long as the deployment allows, or so long that this run's
        turn would come too late for it."""
        line = self._lines.get(deployment.id)
        length = line.length if line is not None else 0
        if length >= deployment.max_queue:
            if not deployment.instances:
                raise not_ready(deployment)
            raise _full(f"{deployment.agent} has {deployment.max_queue} runs waiting already", retry_after_s=1)
        expected_s = expected_wait_s(deployment, ahead=length)
        if expected_s > deployment.wait_s:
            raise _full(f"a run of {deployment.agent} would wait about {expected_s:.0f} s for its turn", retry_after_s=expected_s)
        self._lines.setdefault(deployment.id, Line()).join(run.waits_as, run)

    def leave(self, run: "RunHandler", deployment_id: str) -> None:
        line = self._lines.get(deployment_id)
        if line is not None:
            line.leave(run.waits_as, run)
            if not line.length:
                del self._lines[deployment_id]

    def look_again(self, deployment_id: str | None = None) -> None:
        """Let those who can go now go. A session waits for its own instance, so others may pass it; when one without a session
        finds no room, none of the others without one will."""
        for name in [deployment_id] if deployment_id is not None else list(self._lines):
            line = self._lines.get(name)
            if line is None:
                continue
            full = False
            for caller, run in line:
                anywhere = not run.call.session_given
                if full and anywhere:
                    continue
                if run.try_again():
                    self.leave(run, name)
                    line.served(caller)
                elif anywhere and not run.call.tried:
                    full = True


def expected_wait_s(deployment: routes.Deployment, *, ahead: int) -> float:
    """How long a run would wait behind so many others, by what runs took lately; 0 when that is not known."""
    limit = deployment.max_concurrency
    if limit is None or not deployment.instances or not ahead:
        return 0.0
    took_s = sum(instance.latency_s for instance in deployment.instances) / len(deployment.instances)
    return ahead * took_s / (limit * len(deployment.instances))


def _full(message: str, *, retry_after_s: float) -> errors.Exhausted:
    return errors.Exhausted(
        message,
        code="queue.full",
        retry_after_s=max(1.0, retry_after_s),
        next_step="try again after Retry-After, submit it as a task, or scale the agent out",
    )


def is_busy(deployment: routes.Deployment, call: Call, now: float) -> bool:
    """Instances are there; each has all the runs it may have."""
    return call.awaited is None and any(instance.out_until <= now for instance in deployment.instances)


def refusal(call: Call, now: float) -> errors.NexusError:
    """Why a run that waited for an instance gets none."""
    deployment = call.deployment
    if deployment is None:
        return errors.Internal("a run waits for no deployment")
    if call.awaited is not None:
        return not_awake(deployment, call.awaited)
    return busy(deployment) if is_busy(deployment, call, now) else not_ready(deployment)


def busy(deployment: routes.Deployment) -> errors.Exhausted:
    return errors.Exhausted(
        f"every instance of {deployment.agent} is busy",
        code="limit.concurrency",
        retry_after_s=1,
        next_step="try again after Retry-After, submit it as a task, or scale the agent out",
    )


def not_ready(deployment: routes.Deployment) -> errors.Unavailable:
    return errors.Unavailable(
        f"no instance of {deployment.agent} ({deployment.environment}) is ready",
        code="agent.not_ready",
        retry_after_s=max(1.0, min(deployment.wait_s, 10.0)),
        next_step=f"see `nexus ai agent show {deployment.agent}` and `nexus ai agent logs {deployment.agent}`",
    )


def not_awake(deployment: routes.Deployment, version: str) -> errors.Unavailable:
    return errors.Unavailable(
        f"version {version} of {deployment.agent} ({deployment.environment}), which the session began on, is not ready yet",
        code="agent.not_ready",
        retry_after_s=1,
        next_step=f"try again, or let its sessions move: nexus ai agent sessions stop {deployment.agent} --version {version}",
    )
