"""The seam between recorded calls of a task and where they are kept. A recording lives as long as its task."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from nexus.ports import task_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which call of which attempt: `key` names it the same way in every attempt. `kind` is model or step."""

    lane: task_store.Lane
    task_id: str
    attempt: int
    kind: Literal["model", "step"]
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back: `head` is JSON (status and headers of a model call), `body` its bytes."""

    head: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """`done`: the recorded answer. `new`: make the call and close it. `unknown`: the same, but an earlier attempt sent it
    and never told what came of it."""

    status: Literal["done", "new", "unknown"]
    answer: Answer | None = None


class StepStore(Protocol):
    """Raises `Unavailable` (`database.unavailable`), and `Conflict` (`task.fenced`) once the attempt is not the current one."""

    async def open(self, place: Place, *, live: bool, most: int) -> Opened:
        """Note that the call is about to be made, unless it is recorded. `live`: do not look, an earlier record is void.

        `Conflict` (`step.unknown_outcome`) where the task's policy forbids to repeat; `Exhausted` (`step.too_many`)."""
        ...

    async def close(self, place: Place, answer: Answer | None) -> bool:
        """Record the answer; None: it failed in a known way and leaves no trace. False: another attempt has taken over."""
        ...
