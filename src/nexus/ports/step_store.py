"""The seam between recorded calls of a task and where they are kept. A recording lives as long as its task."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from nexus.ports import task_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which call of which attempt: `key` names it the same way in every attempt. `kind` is model or step. `session_id` narrows to
    tasks of one session."""

    lane: task_store.Lane
    task_id: str
    attempt: int
    kind: Literal["model", "step", "ask"]
    key: str
    session_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back: `head` is JSON (status and headers of a model call), `body` its bytes."""

    head: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """`done`: the recorded answer. `new`: make the call and close it. `unknown`: the same, but an earlier attempt sent it
    and never told what came of it. `ask`: the same, and a person has to decide; `attempt` is the one that was lost. `absent`:
    this is a replay, and the original made no such call or never heard its answer."""

    status: Literal["done", "new", "unknown", "ask", "absent"]
    answer: Answer | None = None
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One entry of a recording, or of what a replay asked. `kind` is model, step or ask; `request` what was asked: of a model its
    path, a line end and the body, of a person the question; None where it was not kept."""

    kind: str
    key: str
    status: str
    request: bytes | None = field(repr=False)


class StepStore(Protocol):
    """Raises `Unavailable` (`database.unavailable`), and `Conflict` (`task.fenced`) once the attempt is not the current one."""

    async def open(self, place: Place, *, live: bool, most: int, repeat: bool = False, request: bytes | None = None) -> Opened:
        """Note that the call is about to be made, unless it is recorded. `live`: do not look, an earlier record is void.
        `repeat`: a person decided that a call with an unknown outcome is made again. `request` is kept for replays, deflated.

        `Conflict` (`step.unknown_outcome`) where the task's policy forbids to repeat; `Exhausted` (`step.too_many`)."""
        ...

    async def close(self, place: Place, answer: Answer | None) -> bool:
        """Record the answer; None: it failed in a known way and leaves no trace. False: another attempt has taken over."""
        ...

    async def recorded(self, task_id: str) -> Sequence[Recorded]:
        """All entries in the order in which they were made. The caller has checked that the task is the tenant's."""
        ...
