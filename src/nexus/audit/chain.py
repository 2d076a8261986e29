"""The chain that makes the trail tamper-evident. Pure; no I/O, no clock.

Each record's `hash` is SHA-256 over the hash before it, the tenant, its number and its exact text, so that anybody who has an
export can follow it. Its `seal` is HMAC-SHA-256 of that hash under a key that is not in the database, so that whoever can only
write to the database cannot make a chain anew. The same key seals where the chain begins and where it ends.
"""

import hashlib
import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

GENESIS = bytes(32)


@dataclass(frozen=True, slots=True)
class Link:
    """A place in a tenant's chain: the record of this number, and the hash up to and with it. Number 0 is before the first."""

    seq: int = 0
    hash: bytes = GENESIS


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A record as it is stored. `content_hash` is what its stored content hashes to now; None when none is stored."""

    seq: int
    text: str
    hash: bytes
    seal: bytes
    content_hash: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Where a tenant's chain begins (what was before was deleted when its time was over) and where it ends, each sealed."""

    floor: Link
    floor_seal: bytes
    head: Link
    head_seal: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The first thing that is wrong: from which number on, and what."""

    seq: int
    what: str


class Sealer:
    """Seals of one tenant. `platform_key` is the host's secret; the tenant's key is derived from it."""

    def __init__(self, platform_key: bytes, tenant: str) -> None:
        self._key = hmac.digest(platform_key, b"audit/" + tenant.encode(), "sha256")
        self.tenant = tenant

    def row(self, hash_: bytes) -> bytes:
        return hmac.digest(self._key, b"row/" + hash_, "sha256")

    def end(self, which: str, link: Link) -> bytes:
        """`which` is `floor` or `head`."""
        return hmac.digest(self._key, b"%b/%d/%b" % (which.encode(), link.seq, link.hash), "sha256")

    def next(self, before: Link, text: str) -> Row:
        """The record that follows `before`."""
        made = hash_record(before, self.tenant, text)
        return Row(seq=before.seq + 1, text=text, hash=made, seal=self.row(made))

    def ends(self, floor: Link, head: Link) -> Ends:
        return Ends(floor=floor, floor_seal=self.end("floor", floor), head=head, head_seal=self.end("head", head))


def hash_record(before: Link, tenant: str, text: str) -> bytes:
    """SHA-256 over the hash before (32 bytes), the tenant, a zero byte, the number (8 bytes, big-endian) and the text."""
    head = before.hash + tenant.encode() + b"\0" + (before.seq + 1).to_bytes(8, "big")
    return hashlib.sha256(head + text.encode()).digest()


class Verifier:
    """Follows a chain row by row. `feed` and `finish` give the first fault, after which nothing more is looked at."""

    def __init__(self, sealer: Sealer, ends: Ends) -> None:
        self._sealer = sealer
        self._ends = ends
        self._at = ends.floor
        self.verified = 0

    def begin(self) -> Fault | None:
        ends, sealer = self._ends, self._sealer
        if not hmac.compare_digest(sealer.end("floor", ends.floor), ends.floor_seal):
            return Fault(seq=ends.floor.seq, what="the chain's beginning was altered")
        if not hmac.compare_digest(sealer.end("head", ends.head), ends.head_seal):
            return Fault(seq=ends.head.seq, what="the chain's end was altered")
        return None

    def feed(self, rows: Iterable[Row], content_hashes: "Iterator[str | None] | None" = None) -> Fault | None:
        """`content_hashes` are what the records themselves say of their content, one for each row."""
        for row in rows:
            expected = self._at.seq + 1
            said = next(content_hashes) if content_hashes is not None else None
            if row.seq > self._ends.head.seq:
                return Fault(seq=row.seq, what="a record was added behind the chain's end")
            if row.seq != expected:
                last = row.seq - 1
                which = f"record {expected} was" if last == expected else f"records {expected} to {last} were"
                return Fault(seq=expected, what=f"{which} removed")
            made = hash_record(self._at, self._sealer.tenant, row.text)
            if made != row.hash or not hmac.compare_digest(self._sealer.row(made), row.seal):
                return Fault(seq=row.seq, what="the record was altered")
            if row.content_hash is not None and row.content_hash != said:
                return Fault(seq=row.seq, what="the record's content was altered")
            self._at = Link(row.seq, made)
            self.verified += 1
        return None

    def finish(self, anchor: Link | None = None, anchored: bytes | None = None) -> Fault | None:
        """`anchor` is an end that was noted elsewhere earlier; `anchored` the hash of its number now (None: not there)."""
        head, floor = self._ends.head, self._ends.floor
        if self._at.seq < head.seq:
            return Fault(seq=self._at.seq + 1, what=f"records {self._at.seq + 1} to {head.seq} were removed")
        if self._at.hash != head.hash:
            return Fault(seq=head.seq, what="the chain's end is not that of its records")
        if anchor is None or anchor.seq < floor.seq:
            return None
        if anchor.seq > head.seq:
            return Fault(seq=head.seq + 1, what=f"the chain was put back to an earlier state: it had {anchor.seq} records")
        if anchored is not None and anchored != anchor.hash:
            return Fault(seq=anchor.seq, what="the chain was written anew since its end was noted")
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """One line of an export. `previous` is the hash of the record before it in the chain, exported or not."""

    seq: int
    tenant: str
    text: str
    previous: bytes
    hash: bytes


def follow(lines: Iterable[Exported], *, whole: bool = True) -> tuple[Link, int, Fault | None]:
    """Verify an export without the key: the last place, how many records, and the first fault.

    It shows that no record was altered and, if `whole` (exported without a filter), that none between two others is missing.
    That they are the host's own chain shows only the host, or a hash noted earlier.
    """
    at: Link | None = None
    count = 0
    for line in lines:
        before = Link(line.seq - 1, line.previous)
        if at is not None and whole and line.seq != at.seq + 1:
            return at, count, Fault(seq=at.seq + 1, what=f"records {at.seq + 1} to {line.seq - 1} were removed")
        continues = at is None or line.seq != at.seq + 1 or at.hash == line.previous
        if not continues or hash_record(before, line.tenant, line.text) != line.hash:
            return at or Link(), count, Fault(seq=line.seq, what="the record was altered")
        at = Link(line.seq, line.hash)
        count += 1
    return at or Link(), count, None
