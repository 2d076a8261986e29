"""The seam between durable tasks and where they are kept. Adapter: `stores.postgres.task_store`.

A task's row is its queue entry. Work in hand carries an owner (one dispatcher's life) and a fence (a number that grows with
every claim); every later write names the fence it was claimed with and is refused once the row holds another.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nexus.core.phases import RunPhase


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """What shares a queue: one agent of one tenant in one environment."""

    tenant: str
    agent: str
    environment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A task to be. `body` is the JSON sent to the agent, `digest` tells whether a repeated idempotency key means the same."""

    id: str
    lane: Lane
    principal: str
    body: bytes = field(repr=False)
    digest: str
    session_id: str | None = None
    webhook_url: str | None = None
    idempotency_key: str | None = None
    traceparent: str | None = None
    priority: int = 0
    max_attempts: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How far a task's webhook got: `status` is pending, delivered or dead."""

    status: str
    attempts: int
    last_error: str | None = None
    last_status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task as it is. `output`, `metadata` and `error` are JSON texts (ASCII); times are seconds since the epoch."""

    id: str
    number: int
    lane: Lane
    principal: str
    phase: RunPhase
    attempt: int
    last_seq: int
    progress: float | None
    message: str | None
    session_id: str | None
    output: str | None
    metadata: str | None
    error: str | None
    cancel_requested: bool
    created_at: float
    started_at: float | None
    finished_at: float | None
    webhook_url: str | None = None
    idempotency_key: str | None = None
    digest: str = ""
    delivery: Delivery | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A task taken in hand. `strikes` counts attempts that were lost while running, `deferrals` those that never began."""

    id: str
    lane: Lane
    principal: str
    body: bytes = field(repr=False)
    fence: int
    attempt: int
    strikes: int
    deferrals: int
    max_attempts: int
    last_seq: int
    session_id: str | None
    traceparent: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent:
    """One numbered entry of a task's log; `data` is JSON (ASCII)."""

    seq: int
    name: str
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """Events that follow the ones stored, and what they say about progress. At least one event."""

    task_id: str
    fence: int
    events: tuple[TaskEvent, ...]
    progress: float | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The one terminal result. `event` is the terminal event; a pending webhook delivery is written with it."""

    task_id: str
    fence: int
    phase: RunPhase
    event: TaskEvent
    output: str | None = None
    metadata: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Back to the queue after `pause_s`. `began` False: the agent never saw it, so the attempt does not count.

    `note` says what the task waits for.
    """

    task_id: str
    fence: int
    pause_s: float
    began: bool
    strike: bool
    note: str | None = None


Write = Append | Finish | Release


class TaskStore(Protocol):
    """Every verb raises `Unavailable` (code `database.unavailable`) when the store cannot be asked, and nothing of a vendor's.

    A verb that returns has committed. When it raised, it may or may not have: callers repeat or re-read.
    """

    async def submit(self, submissions: Sequence[Submission]) -> Sequence[tuple[Task, bool]]:
        """Store them all in one commit. Per submission: the task and True, or the one its idempotency key made and False."""
        ...

    async def fetch(self, tenant: str, task_id: str) -> Task | None: ...

    async def page(
        self,
        tenant: str,
        *,
        agents: Collection[str] | None,
        environment: str | None,
        phase: RunPhase | None,
        before: int | None,
        limit: int,
    ) -> Sequence[Task]:
        """Newest first; `before` is the `number` of the last one seen. `agents` None: any."""
        ...

    async def request_cancel(self, tenant: str, task_id: str, *, event_data: str) -> Task | None:
        """The task as it is now: cancelled if it was queued, marked (and its owner told) if it runs, unchanged if finished."""
        ...

    async def depths(self) -> dict[Lane, int]:
        """How many tasks wait, of each lane that has any."""
        ...

    async def events_after(self, task_id: str, seq: int, *, limit: int) -> Sequence[TaskEvent]:
        """In order, without gaps. The caller has checked that the task is the tenant's."""
        ...

    async def enlist(self, owner: str) -> None:
        """Make a dispatcher known before its first claim. Again is a no-op."""
        ...

    async def beat(self, owner: str) -> Sequence[str] | None:
        """Say that the owner lives; the ids of its tasks that are to be cancelled. None: it was declared dead and must let go."""
        ...

    async def owners(self) -> dict[str, tuple[int, bool]]:
        """Every enlisted owner: its count of beats, and whether its connection to the store still stands."""
        ...

    async def bury(self, owner: str, *, beats: int) -> int:
        """If it still has just that many beats: forget the owner and queue its tasks again. How many those were."""
        ...

    async def claim(self, owner: str, *, limit: int, per_lane: int, paused: Collection[Lane]) -> Sequence[Claim]:
        """Up to `limit` tasks, spread over lanes; a lane never has more than `per_lane` running. No task is claimed twice."""
        ...

    async def write(self, writes: Sequence[Write]) -> Sequence[bool]:
        """All in one commit. Per write whether the fence held; a refused write left no trace."""
        ...
