"""The seam between schedules and where they are kept. A firing and the task it makes are one commit, keyed by its moment."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from nexus.ports import task_store

CatchUp = Literal["skip", "last", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """`cron` None: once, at `next_at`. `template` is the JSON of a `SubmitParams`. `next_at` None: it will not fire again."""

    id: str
    lane: task_store.Lane
    name: str
    principal: str
    cron: str | None
    timezone: str
    catch_up: CatchUp
    template: bytes = field(repr=False)
    active: bool
    next_at: float | None
    last_at: float | None = None
    last_task_id: str | None = None
    fired: int = 0
    missed: int = 0
    created_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """What is to happen now: these tasks, so many times passed over, and when to look again."""

    submissions: tuple[task_store.Submission, ...]
    last_at: float | None
    missed: int
    next_at: float | None


class ScheduleStore(Protocol):
    """Raises `Unavailable` (code `database.unavailable`) when the store cannot be asked."""

    async def create(self, schedule: Schedule) -> bool:
        """False: the tenant has one of that name already."""
        ...

    async def fetch(self, tenant: str, name: str) -> Schedule | None: ...

    async def page(self, tenant: str, *, agents: Collection[str] | None) -> Sequence[Schedule]:
        """By name. `agents` None: any."""
        ...

    async def set_active(self, tenant: str, name: str, *, active: bool, next_at: float | None) -> Schedule | None:
        """As it is now; None when there is none."""
        ...

    async def delete(self, tenant: str, name: str) -> bool: ...

    async def fire(self, plan: Callable[[Schedule, float], Firing], *, limit: int) -> int:
        """For each schedule that is due: what `plan(schedule, now)` says, in one commit with the schedule's next time.
        `now` is the store's clock. Two processes never fire the same one. How many tasks were made."""
        ...

    async def due_lanes(self, *, limit: int) -> Sequence[task_store.Lane]:
        """Whose schedules are due, so that what is configured there can be read before they fire."""
        ...

    async def now(self) -> float:
        """The store's clock, by which schedules go; seconds since the epoch."""
        ...
