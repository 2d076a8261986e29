"""The seam between questions that runs ask people and where they are kept. A question lives as long as its task."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from nexus.core.phases import RunPhase
from nexus.ports import task_store

Status = Literal["open", "answered", "expired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Who asks: `key` names the question the same way in every attempt. `session_id` narrows to tasks of one session."""

    lane: task_store.Lane
    task_id: str
    attempt: int
    key: str
    session_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked. `shape` is JSON text: `{"choices"?, "schema"?, "default"?}`. It stays open for `timeout_s`, or for ever."""

    id: str
    text: str = field(repr=False)
    shape: str = "{}"
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question as it is. `answer` is JSON text; times are seconds since the epoch."""

    id: str
    task_id: str
    lane: task_store.Lane
    key: str
    text: str = field(repr=False)
    shape: str
    status: Status
    answer: str | None = field(repr=False)
    answered_by: str | None
    opened_at: float
    expires_at: float | None
    answered_at: float | None
    task_phase: RunPhase
    webhook_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """`fresh`: the answer stands in no event of the task yet. `unused`: answers of this task that no attempt has taken."""

    ask: Ask
    fresh: bool = False
    unused: int = 0


class AskStore(Protocol):
    """Raises `Unavailable` (`database.unavailable`) when the store cannot be asked."""

    async def open(self, place: Place, question: Question, *, most: int) -> Opened | None:
        """The question of this place, stored on first sight together with its webhook.

        None in a replay whose original did not ask this, or got no answer. `Conflict` (`task.fenced`) once the attempt is not
        the current one; `Exhausted` (`ask.too_many`)."""
        ...

    async def settle(self, tenant: str, ask_id: str, *, answer: str | None, by: str, event: str) -> tuple[Ask, bool] | None:
        """Answer an open question, or let it expire (`answer` None), and wake its task; `event` is the data of the event that
        tells of it. False: it was open no more, or its task is over; nothing was changed. None: there is none."""
        ...

    async def fetch(self, ask_id: str, *, tenant: str | None) -> Ask | None:
        """`tenant` None is for who shows a signed link."""
        ...

    async def page(
        self, tenant: str, *, agents: Collection[str] | None, environment: str | None, task_id: str | None, limit: int
    ) -> Sequence[Ask]:
        """Oldest first: all of one task, or the open ones of unfinished tasks."""
        ...

    async def overdue(self, *, limit: int) -> Sequence[Ask]:
        """Open questions whose time is over."""
        ...
