"""Room for sessions to come: which idle ones are stopped before their time, and which saved ones are forgotten. Pure.

A session that is forgotten is no loss: its state and its kept files are found again when it is next asked for.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from nexus.core.sessions import SessionPhase

MOST_SAVED = 1000
_LOW_MEMORY = 0.08
_AT_ONCE = 32
_ALIVE = (SessionPhase.LIVE, SessionPhase.FROZEN)


class Resident(Protocol):
    """What is asked of a session here."""

    phase: SessionPhase
    active_at: float
    path: Path

    @property
    def busy(self) -> bool: ...


T = TypeVar("T", bound=Resident)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the machine, and how many of them a new session could have."""

    total: int
    available: int

    @property
    def is_low(self) -> bool:
        return self.available < self.total * _LOW_MEMORY


def read_memory(table: str | None = None) -> Memory:
    """From `/proc/meminfo`, proc(5). A machine that does not tell has enough."""
    try:
        lines = (Path("/proc/meminfo").read_text() if table is None else table).splitlines()
        found = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        return Memory(found["MemTotal"], found["MemAvailable"])
    except (OSError, KeyError, ValueError, IndexError):
        return Memory(1, 1)


def find_idle(residents: Iterable[T], connections: Mapping[str, int]) -> list[T]:
    """Those with a worker that nobody is connected to, the longest idle first."""
    idle = [one for one in residents if one.phase in _ALIVE and not one.busy and not connections.get(str(one.path))]
    return sorted(idle, key=lambda one: one.active_at)


def choose_to_stop(residents: Iterable[T], connections: Mapping[str, int], *, alive: int, most: int, memory: Memory) -> list[T]:
    """The idle ones to stop now so that a tenth of `most` stays free, or because the machine's memory is short."""
    wanted = max(alive - (most - most // 10), _AT_ONCE if memory.is_low else 0)
    return find_idle(residents, connections)[: min(wanted, _AT_ONCE)] if wanted > 0 else []


def choose_to_forget(saved: Collection[T], *, most: int = MOST_SAVED) -> list[T]:
    """The longest unused of the saved ones beyond so many."""
    if len(saved) <= most:
        return []
    return sorted((one for one in saved if not one.busy), key=lambda one: one.active_at)[: len(saved) - most]
