"""Runs that wait because their deployment has no instance for them yet: first come, first served, and never too many."""

import collections
from typing import TYPE_CHECKING

from nexus.core import errors
from nexus.gateway import routes

if TYPE_CHECKING:
    from nexus.gateway.doors import RunHandler


class Room:
    """One bounded line per deployment. A line is looked at again when a run ends, when routes change, and twice a second."""

    def __init__(self) -> None:
        self._lines: dict[str, collections.deque[RunHandler]] = {}

    @property
    def count(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def has(self, deployment_id: str) -> bool:
        return deployment_id in self._lines

    def join(self, run: "RunHandler", deployment: routes.Deployment) -> None:
        """Stand in line, or `Exhausted` (`queue.full`) when it is as long as the deployment allows."""
        line = self._lines.get(deployment.id)
        if (len(line) if line else 0) >= deployment.max_queue:
            if not deployment.instances:
                raise not_ready(deployment)
            raise errors.Exhausted(
                f"{deployment.agent} has {deployment.max_queue} runs waiting already",
                code="queue.full",
                retry_after_s=1,
                next_step="try again after Retry-After, submit it as a task, or scale the agent out",
            )
        self._lines.setdefault(deployment.id, collections.deque()).append(run)

    def leave(self, run: "RunHandler", deployment_id: str) -> None:
        line = self._lines.get(deployment_id)
        if line is not None and run in line:
            line.remove(run)
            if not line:
                del self._lines[deployment_id]

    def look_again(self, deployment_id: str | None = None) -> None:
        """Let those who can go now go, in order. A session waits for its own instance, so others may pass it."""
        for name in [deployment_id] if deployment_id is not None else list(self._lines):
            for run in list(self._lines.get(name, ())):
                if run.try_again():
                    self.leave(run, name)


def not_ready(deployment: routes.Deployment) -> errors.Unavailable:
    return errors.Unavailable(
        f"no instance of {deployment.agent} ({deployment.environment}) is ready",
        code="agent.not_ready",
        retry_after_s=max(1.0, min(deployment.wait_s, 10.0)),
        next_step=f"see `nexus ai agent show {deployment.agent}` and `nexus ai agent logs {deployment.agent}`",
    )
