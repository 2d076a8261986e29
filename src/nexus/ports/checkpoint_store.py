"""The seam between LangGraph's checkpoints and where they are kept. Nobody looks into the serialized bodies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nexus.ports import task_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """One conversation of a graph; `id` is the session's."""

    lane: task_store.Lane
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A serialized value: LangGraph's name for its form, and the bytes."""

    kind: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """A pending write of a checkpoint: the `idx`-th of a task. A negative `idx` replaces, others stand as first written."""

    task: str
    idx: int
    task_path: str
    channel: str
    value: Blob


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """`versions` names for each channel which of its values belongs to it; `values` are those (in a `put`: the new ones)."""

    ns: str
    id: str
    parent: str | None
    run_id: str | None
    versions: Mapping[str, str]
    state: Blob
    meta: Blob
    values: Mapping[str, Blob] = field(default_factory=dict)
    writes: Sequence[Write] = ()


class CheckpointStore(Protocol):
    """Raises `Unavailable` (`database.unavailable`) when the store cannot be asked."""

    async def put(self, thread: Thread, checkpoint: Checkpoint, *, keep: int, after: str | None = None) -> None:
        """Store it (again is harmless), and forget the oldest of its namespace beyond `keep`, if not at once.

        `after`: the newest checkpoint of the namespace must be this one ("": there must be none), or nothing is stored and
        `Conflict` (`checkpoint.moved`) raised.
        """
        ...

    async def put_writes(self, thread: Thread, ns: str, checkpoint_id: str, writes: Sequence[Write]) -> None: ...

    async def page(
        self, thread: Thread, *, ns: str | None, checkpoint_id: str | None, before: str | None, limit: int
    ) -> Sequence[Checkpoint]:
        """Newest first, with values and writes; `ns` None: of all namespaces."""
        ...

    async def delete(self, thread: Thread) -> bool:
        """Whether there was any."""
        ...

    async def delete_agent(self, tenant: str, agent: str, *, environment: str | None) -> None:
        """All threads of an agent, in one environment or in all."""
        ...

    async def delete_runs(self, lane: task_store.Lane, run_ids: Sequence[str], *, thread: str | None) -> None:
        """The checkpoints that these runs made, in one thread or in all."""
        ...

    async def sweep(self, *, keep_s: float, limit: int) -> int:
        """Delete threads whose newest checkpoint is older than that, at most so many. How many went."""
        ...
