"""What the only worker of a session knows of its graph's thread: the newest checkpoints as it wrote or read them itself.

A run of a live session then asks the platform for nothing before it begins. Nobody else writes the thread as long as the session
lives here; should somebody have all the same, the next write says after which checkpoint it comes, and is refused
(`checkpoint.moved`) instead of hiding theirs. Values are kept serialized, so that no run sees another's objects.
"""

import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

_SURE_S = 60.0
_MOST_BYTES = 1024 * 1024
_MOST_NAMESPACES = 64


class Blob(NamedTuple):
    """A serialized value: LangGraph's name for its form, and the bytes."""

    kind: str
    body: bytes


class Write(NamedTuple):
    """A pending write of a task."""

    task: str
    idx: int
    path: str
    channel: str
    blob: Blob


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A checkpoint as it is stored. `values` are those of `versions`; a channel without one has none."""

    ns: str
    id: str
    parent: str | None
    versions: Mapping[str, str]
    state: Blob
    meta: Blob
    values: Mapping[str, Blob]
    writes: Sequence[Write] = ()

    @property
    def size(self) -> int:
        blobs = (self.state, self.meta, *self.values.values(), *(write.blob for write in self.writes))
        return sum(len(blob.body) for blob in blobs)


Key = tuple[str, str]
"""A thread and a namespace."""


@dataclass(slots=True)
class Recall:
    """Newest checkpoints by thread and namespace; None where there is none. What is not there is not known."""

    now: Callable[[], float] = time.monotonic
    known: dict[Key, Item | None] = field(default_factory=dict)
    _running: int = 0
    _crowded: bool = False
    _used_at: float = 0.0

    def enter(self) -> None:
        """A run begins. Beside another one neither recalls: each would have to know what the other writes."""
        self._running += 1
        self._crowded |= self._running > 1
        if self._crowded or self.now() - self._used_at > _SURE_S:
            self.known.clear()

    def leave(self) -> None:
        self._running -= 1
        self._crowded &= self._running > 0
        self._used_at = self.now()

    @property
    def alone(self) -> bool:
        return self._running == 1 and not self._crowded

    def prime(self, thread: str, item: Item | None) -> None:
        """Before the first run: what the thread holds now."""
        if not self._running and (item is None or item.size <= _MOST_BYTES):
            self.known[thread, ""] = item
            self._used_at = self.now()

    def keep(self, thread: str, ns: str, item: Item | None) -> None:
        if not self.alone or (item is not None and item.size > _MOST_BYTES) or len(self.known) >= _MOST_NAMESPACES:
            self.known.pop((thread, ns), None)
            return
        self.known[thread, ns] = item

    def forget(self, thread: str, ns: str) -> None:
        self.known.pop((thread, ns), None)


def follow(last: Item | None, new: Item, present: Container[str]) -> Item | None:
    """`new`, which holds the values that are new with it, as it is stored after `last`: with the others too. None when that
    cannot be told from here. `present`: the channels that have a value now."""
    if new.parent != (None if last is None else last.id):
        return None
    values = dict(new.values)
    for name, version in new.versions.items():
        if name in values:
            continue
        if last is not None and name in last.values and last.versions.get(name) == version:
            values[name] = last.values[name]
        elif name in present:
            return None
    return replace(new, values=values)


def add_writes(item: Item, writes: Sequence[Write]) -> Item:
    """With these pending writes: a negative index replaces, others stand as first written."""
    found = {(write.task, write.idx): write for write in item.writes}
    for write in writes:
        if write.idx < 0 or (write.task, write.idx) not in found:
            found[write.task, write.idx] = write
    return replace(item, writes=sorted(found.values(), key=lambda write: (write.path, write.task, write.idx)))
