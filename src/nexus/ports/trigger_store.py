"""The seam between triggers and where they are kept. A message and the task it makes are one commit, keyed by the message."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from nexus.ports import task_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """`settings` is JSON without secrets, `sealed` the secret, encrypted; `template` the JSON of a `SubmitParams`."""

    id: str
    lane: task_store.Lane
    name: str
    kind: Literal["hook", "queue"]
    principal: str
    settings: str
    sealed: bytes = field(repr=False)
    template: bytes = field(repr=False)
    active: bool = True
    taken: int = 0
    refused: int = 0
    last_at: float | None = None
    last_task_id: str | None = None
    problem: str | None = None
    created_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Where the result of a task is published, and what tells the asker which message it answers."""

    topic: str
    correlation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DueReply:
    """A result to be published. `task` is over."""

    task: task_store.Task
    reply: Reply


class TriggerStore(Protocol):
    """Raises `Unavailable` (code `database.unavailable`) when the store cannot be asked."""

    async def create(self, trigger: Trigger) -> bool:
        """False: the tenant has one of that name already."""
        ...

    async def fetch(self, tenant: str, name: str) -> Trigger | None: ...

    async def by_id(self, trigger_id: str) -> Trigger | None:
        """For who shows a signature. Only one that is active."""
        ...

    async def page(self, tenant: str, *, agents: Collection[str] | None) -> Sequence[Trigger]:
        """By name. `agents` None: any."""
        ...

    async def queues(self) -> Sequence[Trigger]:
        """Every active trigger of kind queue, of all tenants: for the process that listens."""
        ...

    async def set_active(self, tenant: str, name: str, *, active: bool) -> Trigger | None:
        """As it is now; None when there is none."""
        ...

    async def delete(self, tenant: str, name: str) -> bool: ...

    async def take(
        self, trigger_id: str, submission: task_store.Submission, *, reply: Reply | None
    ) -> tuple[task_store.Task, bool]:
        """The task of this message, and whether it was made now: the same message twice makes one."""
        ...

    async def note(self, trigger_id: str, *, problem: str | None, refused: int = 0) -> None:
        """Say what keeps a trigger from working (None: nothing), and count messages that became no task."""
        ...

    async def due_replies(self, trigger_id: str, *, limit: int) -> Sequence[DueReply]:
        """Results of tasks that are over and were not published yet."""
        ...

    async def replied(self, task_ids: Sequence[str]) -> None:
        """These were published."""
        ...
