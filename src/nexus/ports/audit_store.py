"""The seam for the audit trail: chained records by tenant, and their content beside them."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Chain = Callable[[tuple[int, bytes], Sequence[str]], Sequence[tuple[bytes, bytes]]]
"""From the place before (number, hash) and the texts that follow: hash and seal of each."""
SealEnd = Callable[[str, int, bytes], bytes]
"""The seal of an end: `floor` or `head`, its number, its hash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A record to append. `id` is unique in its tenant."""

    id: str
    at: float
    agent: str
    environment: str
    run_id: str
    text: str
    content: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """`previous` is the hash of the row before, also when that is the floor."""

    seq: int
    at: float
    text: str
    hash: bytes
    seal: bytes
    previous: bytes
    content: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEnds:
    """Number, hash and seal of both ends."""

    floor: tuple[int, bytes, bytes]
    head: tuple[int, bytes, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which records, by number. `agents` None: any. `since`/`until`: seconds since the epoch, the latter not included.

    `content`: rows come with none, with its text, or with its SHA-256 in hexadecimal.
    """

    tenant: str
    after: int = 0
    limit: int = 1000
    since: float | None = None
    until: float | None = None
    agents: Collection[str] | None = None
    environment: str | None = None
    run_id: str | None = None
    content: Literal["", "text", "hash"] = ""


class AuditStore(Protocol):
    """Raises `Unavailable` (code `database.unavailable`) when the store cannot be asked."""

    async def append(
        self, tenant: str, drafts: Sequence[Draft], *, chain: Chain, seal_end: SealEnd, content_until: float
    ) -> tuple[int, bytes] | None:
        """Put what is not there yet at the chain's end, in one commit; the new end, or None when nothing was new."""
        ...

    async def ends(self, tenant: str) -> StoredEnds | None:
        """None for a tenant without records."""
        ...

    async def rows(self, which: AuditFilter) -> Sequence[StoredRow]: ...

    async def hash_at(self, tenant: str, seq: int) -> bytes | None: ...

    async def tenants(self) -> Sequence[str]: ...

    async def prune(self, tenant: str, *, before: float, limit: int, seal_end: SealEnd) -> int:
        """Delete the oldest records, as long as they are of before that time, and move the floor; how many."""
        ...

    async def forget_contents(self, *, now: float, limit: int) -> int:
        """Delete content whose time is over; how many."""
        ...
