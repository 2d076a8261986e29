"""The seam between webhook delivery and where the outbox is kept. Rows are born with a task's terminal result, or with a
question that it asks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nexus.ports import ask_store, task_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A delivery taken in hand for one attempt; `attempt` counts from 1. `task` is finished and no longer changes,
    unless the delivery tells of `ask`."""

    id: str
    url: str
    host: str
    attempt: int
    task: task_store.Task
    key: "KeyState"
    ask: ask_store.Ask | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyState:
    """Which of a tenant's signing secrets is in use: 0 is the first. `age_s` is how long it has been (None: always)."""

    generation: int = 0
    age_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempted:
    """What came of an attempt. `retry_in_s` None with an error: dead."""

    id: str
    attempt: int
    error: str | None = None
    status: int | None = None
    retry_in_s: float | None = None


class WebhookStore(Protocol):
    """Raises `Unavailable` (code `database.unavailable`) when the store cannot be asked."""

    async def due(self, *, limit: int, hold_s: float, rooms: Mapping[str, int]) -> Sequence[Due]:
        """Take deliveries whose time has come, the longest due first: of an endpoint as many as `rooms` says, or one.

        One that is not settled within `hold_s` is due again.
        """
        ...

    async def settle(self, attempted: Attempted) -> None:
        """Record an attempt; ignored when a later attempt has been recorded. After a 410 all that waits for the same URL of
        the same tenant is dead."""
        ...

    async def key_state(self, tenant: str) -> KeyState: ...

    async def rotate_key(self, tenant: str) -> KeyState:
        """Begin to use the next secret."""
        ...

    async def requeue(self, tenant: str, task_id: str) -> bool:
        """Send a dead delivery again from the beginning of the schedule. False: there is no dead one."""
        ...
