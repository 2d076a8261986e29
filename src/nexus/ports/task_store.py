"""The seam between durable tasks and where they are kept. Adapter: `stores.postgres.task_store`.

A task's row is its queue entry. Work in hand carries an owner (one dispatcher's life) and a fence (a number that grows with
every claim); every later write names the fence it was claimed with and is refused once the row holds another.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from nexus.core.phases import RunPhase


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """What shares a queue: one agent of one tenant in one environment."""

    tenant: str
    agent: str
    environment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """After which pauses an attempt is repeated. `kinds`: error kinds of a failed run that are worth another try; an attempt
    that was lost on the way always is. `unknown`: whether the next attempt may repeat a call whose answer nobody saw
    (`repeat`), has to `fail`, or must `ask` a person."""

    first_s: float = 1.0
    longest_s: float = 30.0
    factor: float = 2.0
    kinds: tuple[str, ...] = ()
    unknown: str = "repeat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A task to be. `body` is the JSON sent to the agent, `digest` tells whether a repeated idempotency key means the same.

    It starts at `run_at` (seconds since the epoch) or `delay_s` from its commit. It fails when it has not begun
    `queue_timeout_s` after it could, when one attempt takes `run_timeout_s`, or when it is not over `total_timeout_s` after
    its commit. `origin` names what made it: a dead task or a schedule. `share` names who shares the lane where each may have at
    most `share_most` tasks running in it; empty: nobody is counted.
    """

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
    delay_s: float | None = None
    run_at: float | None = None
    queue_timeout_s: float | None = None
    run_timeout_s: float | None = None
    total_timeout_s: float | None = None
    retry: Retry | None = None
    origin: str | None = None
    share: str = ""
    share_most: int | None = None


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
    priority: int = 0
    run_at: float | None = None
    end_by: float | None = None
    paused: bool = False
    dead: bool = False
    origin: str | None = None
    asking: bool = False
    replay_of: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A task taken in hand. `strikes` counts attempts that were lost while running, `deferrals` those that never began.

    `remaining_s` is what is left of the task's total time. `waits` counts the attempts that ended by asking a person.
    """

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
    retry: Retry | None = None
    run_timeout_s: float | None = None
    remaining_s: float | None = None
    waits: int = 0


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
    """The one terminal result. `event` is the terminal event, which follows those of `before`; a pending webhook delivery is
    written with it. `progress` and `message` are what `before` said last."""

    task_id: str
    fence: int
    phase: RunPhase
    event: TaskEvent
    output: str | None = None
    metadata: str | None = None
    error: str | None = None
    before: tuple[TaskEvent, ...] = ()
    progress: float | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Back to the queue after `pause_s`, or to rest when a pause was asked for.

    `began` False: the agent never saw it, so the attempt does not count.

    `note` says what the task waits for.
    """

    task_id: str
    fence: int
    pause_s: float
    began: bool
    strike: bool
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Park:
    """The run asked people and rests until one of `asks` (ids) is answered; back to the queue at once if one is already."""

    task_id: str
    fence: int
    asks: tuple[str, ...]


Write = Append | Finish | Release | Park
Wish = Literal["cancel", "pause"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """Tasks of a lane: `due` may start now, `all` also counts those that wait for their time."""

    due: int = 0
    all: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tended:
    """What looking after the queue did. `due`: tasks whose time had come; `expired`: ended because theirs was over; `next_s`:
    seconds until the next one starts, None when none waits for its time."""

    due: int
    expired: int
    next_s: float | None = None


class TaskStore(Protocol):
    """Every verb raises `Unavailable` (code `database.unavailable`) when the store cannot be asked, and nothing of a vendor's.

    A verb that returns has committed. When it raised, it may or may not have: callers repeat or re-read.
    """

    async def submit(
        self, submissions: Sequence[Submission], *, owner: str | None = None, start: Collection[str] = ()
    ) -> Sequence[tuple[Task, bool]]:
        """Store them all in one commit. Per submission: the task and True, or the one its idempotency key made and False.

        Those whose ids are in `start` are claimed for `owner` as they are stored, and come back running, with fence and attempt
        1; but not where the owner is buried or the lane is limited.
        """
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
        dead: bool = False,
    ) -> Sequence[Task]:
        """Newest first; `before` is the `number` of the last one seen. `agents` None: any. `dead`: only dead letters."""
        ...

    async def request_cancel(self, tenant: str, task_id: str, *, event_data: str) -> Task | None:
        """The task as it is now: cancelled if it was queued, marked (and its owner told) if it runs, unchanged if finished."""
        ...

    async def request_pause(self, tenant: str, task_id: str) -> Task | None:
        """The task as it is now: waiting if it was queued, marked (and its owner told) if it runs, unchanged if finished."""
        ...

    async def resume(self, tenant: str, task_id: str) -> Task | None:
        """Take back a pause. The task as it is now."""
        ...

    async def set_priority(self, tenant: str, task_id: str, priority: int) -> Task | None:
        """Change the priority of a task that is not finished; a finished one is unchanged."""
        ...

    async def revive(self, tenant: str, copies: Mapping[str, str]) -> Sequence[Task]:
        """For each finished task id a new task under the id it maps to, with the same input, which replaces it among the
        dead letters; once only: again gives the task made the first time. Ids that are absent or unfinished are left out."""
        ...

    async def purge(self, tenant: str, task_ids: Sequence[str]) -> int:
        """Delete finished tasks with their events. Those whose webhook is still to be delivered stay. How many went."""
        ...

    async def limit_lane(self, lane: Lane, concurrency: int | None) -> None:
        """How many tasks of the lane may run at once, counted over all dispatchers; None: as many as the dispatchers allow."""
        ...

    async def tend(self) -> Tended:
        """Make due what waited for its time, and end what may not start any more."""
        ...

    async def sweep(self, *, keep_completed_s: float, keep_failed_s: float, limit: int) -> int:
        """Delete up to `limit` finished tasks that have been kept long enough and owe nobody a webhook. How many went."""
        ...

    async def thin(self, *, after: float, until: float, limit: int) -> tuple[int, float | None]:
        """Delete the chatty events of up to `limit` tasks that ended behind `after` and up to `until` (seconds since the epoch),
        oldest first. How many events went, and when the last of these tasks ended: None when there is no further one."""
        ...

    async def log_bytes(self) -> int:
        """About how large the event log is, what is deleted left out."""
        ...

    async def finished_within(self, tenant: str, seconds: float) -> int:
        """How many tasks of the tenant ended in the last so many seconds."""
        ...

    async def depths(self) -> dict[Lane, Depth]:
        """How many tasks wait, of each lane that has any."""
        ...

    async def events_after(self, task_id: str, seq: int, *, limit: int) -> Sequence[TaskEvent]:
        """In order, without gaps. The caller has checked that the task is the tenant's."""
        ...

    async def enlist(self, owner: str) -> None:
        """Make a dispatcher known before its first claim. Again is a no-op."""
        ...

    async def beat(self, owner: str) -> Mapping[str, Wish] | None:
        """Say that the owner lives; which of its tasks are to be cancelled or paused. None: declared dead, must let go."""
        ...

    async def owners(self) -> dict[str, tuple[int, bool]]:
        """Every enlisted owner: its count of beats, and whether its connection to the store still stands."""
        ...

    async def bury(self, owner: str, *, beats: int) -> int:
        """If it still has just that many beats: forget the owner and queue its tasks again. How many those were."""
        ...

    async def claim(
        self, owner: str, *, limit: int, per_lane: int, paused: Collection[Lane], per_tenant: int | None = None
    ) -> Sequence[Claim]:
        """Up to `limit` tasks, spread over tenants and their lanes; a lane never has more than `per_lane` running, nor more
        than its own limit. No task is claimed twice."""
        ...

    async def has_backlog(self) -> bool:
        """Whether a task stands in the queue, be it that its lane may not run."""
        ...

    async def held(self, owner: str) -> Sequence[tuple[str, int]]:
        """Id and fence of every task the owner has in hand."""
        ...

    async def write(self, writes: Sequence[Write]) -> Sequence[bool]:
        """All in one commit. Per write whether the fence held; a refused write left no trace."""
        ...
