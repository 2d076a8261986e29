"""The seams to what sessions used: the node that counts it, and where it is kept to be charged by."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from nexus.core import usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """By how much an agent's sessions have used more than was known before."""

    tenant: str
    agent: str
    environment: str
    cpu_s: float = 0.0
    memory_byte_seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0


class UsageNode(Protocol):
    async def usage(self, after: str) -> tuple[str, Sequence[usage.UsageRow]]:
        """A token, and the rows that have grown since the token `after`, which acknowledges all rows until then.

        Raises `Unavailable` (code `driver.unreachable`) when the node cannot be asked.
        """
        ...


class UsageStore(Protocol):
    """Raises `Unavailable` (code `database.unavailable`) when the store cannot be asked."""

    async def put(self, rows: Sequence[usage.UsageRow]) -> Sequence[Grown]:
        """Keep these rows, each in place of an earlier one of its session, instance, part and beginning; no number shrinks."""
        ...

    async def of_sessions(self, tenant: str, session_ids: Collection[str]) -> Sequence[usage.UsageRow]:
        """All rows of these sessions, of every agent of the tenant."""
        ...
