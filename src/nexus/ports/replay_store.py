"""The seam between replays and where tasks are kept: a replay is a task with the input and the recording of another."""

from dataclasses import dataclass
from typing import Protocol

from nexus.ports import task_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A replay to be: `id` is fresh, `environment` where it runs, `session_id` a session of its own."""

    id: str
    original: str
    environment: str
    session_id: str
    principal: str


class ReplayStore(Protocol):
    """Raises `Unavailable` (`database.unavailable`) when the store cannot be asked."""

    async def start(self, tenant: str, plan: Plan) -> task_store.Task | None:
        """The new task, committed. None: the original is absent, unfinished or a replay itself."""
        ...

    async def version_of(self, task_id: str) -> str | None:
        """The version of the last attempt, as its events tell. The caller has checked that the task is the tenant's."""
        ...
