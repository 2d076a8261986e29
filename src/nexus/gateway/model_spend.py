"""What was spent, and what calls under way have reserved: one ledger for every gateway process of the node, exact.

The ledger is a file that each process maps into memory; a lock of the kernel (flock) makes look-and-take one step, and ends with
the process that held it. Each process also notes its own reservations in a file of its own, locked as long as it lives: when it
was killed, another counts what it had reserved as spent, because its calls may have been billed.
Asks neither control nor a database, so budgets hold while both are away.
"""

import contextlib
import fcntl
import hashlib
import logging
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from nexus.core import errors

_LOG = logging.getLogger(__name__)
SLOTS = 1 << 16
_SLOT = struct.Struct("=QdqqQ")
_AMOUNT = struct.Struct("=q")
_MARK = struct.Struct("=Q")
_PROBES = 64
_MOST = 1 << 62
_REMEMBERED = 20_000
_OWN = "held-"


class Meter(NamedTuple):
    """One counter: of a budget, for one subject, in one window. `opening` is what was spent before the ledger first saw it;
    `ends` (seconds since the epoch) is when the counter may be forgotten."""

    name: str
    ends: float
    opening: int = 0


class Spend:
    """`left`, `take` and the rest are called inside `locked`; amounts are whole numbers of the budget's unit."""

    def __init__(self, folder: Path, descriptor: int, own: int, own_path: Path) -> None:
        self._folder = folder
        self._descriptor = descriptor
        self._own_descriptor, self._own_path = own, own_path
        self._memory = mmap.mmap(descriptor, SLOTS * _SLOT.size)
        self._held = mmap.mmap(own, SLOTS * _AMOUNT.size)
        self._places: dict[str, tuple[int, int]] = {}

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The ledger in this folder (0700, made when absent), with a fresh file for this process."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(folder / "ledger.map", flags, 0o600)
        os.ftruncate(descriptor, SLOTS * _SLOT.size)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            own_path = folder / f"{_OWN}{os.getpid()}-{os.urandom(4).hex()}.map"
            own = os.open(own_path, flags | os.O_EXCL, 0o600)
            os.ftruncate(own, SLOTS * _AMOUNT.size)
            fcntl.flock(own, fcntl.LOCK_EX)
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        return cls(folder, descriptor, own, own_path)

    def close(self) -> None:
        """Let go. Reservations that are still open are counted as spent."""
        with self.locked():
            self._adopt(self._held)
            self._own_path.unlink(missing_ok=True)
        self._held.close()
        self._memory.close()
        os.close(self._own_descriptor)
        os.close(self._descriptor)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with the ledger. Held for microseconds: nothing inside may wait."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def read(self, meter: Meter, now: float) -> tuple[int, int]:
        """Spent and reserved."""
        _, _, spent, reserved, _ = _SLOT.unpack_from(self._memory, self._find(meter, now) * _SLOT.size)
        return spent, reserved

    def take(self, meter: Meter, amount: int, now: float) -> int:
        """Reserve so much; gives the place for `settle`."""
        place = self._find(meter, now)
        mark, ends, spent, reserved, told = _SLOT.unpack_from(self._memory, place * _SLOT.size)
        self._note(place, amount)
        held = min(reserved + amount, _MOST)
        _SLOT.pack_into(self._memory, place * _SLOT.size, mark, max(ends, meter.ends), spent, held, told)
        return place

    def add(self, place: int, amount: int) -> None:
        """Reserve more at a place, or (negative) less."""
        mark, ends, spent, reserved, told = _SLOT.unpack_from(self._memory, place * _SLOT.size)
        self._note(place, amount)
        _SLOT.pack_into(self._memory, place * _SLOT.size, mark, ends, spent, min(_MOST, max(0, reserved + amount)), told)

    def settle(self, place: int, *, reserved: int, used: int) -> int:
        """Give a reservation back and count what was used. Gives what is spent now."""
        mark, ends, spent, open_, told = _SLOT.unpack_from(self._memory, place * _SLOT.size)
        spent = min(spent + used, _MOST)
        _SLOT.pack_into(self._memory, place * _SLOT.size, mark, ends, spent, max(0, open_ - reserved), told)
        self._note(place, -reserved)
        return int(spent)

    def tell_once(self, place: int, level: int) -> bool:
        """Whether nobody was told yet that this counter passed its `level`-th threshold (0 to 63); from now on somebody was."""
        mark, ends, spent, reserved, told = _SLOT.unpack_from(self._memory, place * _SLOT.size)
        if told >> level & 1:
            return False
        _SLOT.pack_into(self._memory, place * _SLOT.size, mark, ends, spent, reserved, told | 1 << level)
        return True

    def sweep(self) -> int:
        """Count as spent what killed processes had reserved; gives how many there were."""
        found = 0
        for path in self._folder.glob(f"{_OWN}*.map"):
            if path == self._own_path:
                continue
            with self.locked():
                found += self._bury(path)
        return found

    def _bury(self, path: Path) -> int:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return 0
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_size == SLOTS * _AMOUNT.size:
                with mmap.mmap(descriptor, SLOTS * _AMOUNT.size) as held:
                    self._adopt(held)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            return 0
        finally:
            os.close(descriptor)
        _LOG.warning("a gateway ended without settling its model calls; what it had reserved counts as spent")
        return 1

    def _adopt(self, held: mmap.mmap) -> None:
        with memoryview(held).cast("q") as amounts:
            for place, amount in enumerate(amounts):
                if amount > 0:
                    mark, ends, spent, reserved, told = _SLOT.unpack_from(self._memory, place * _SLOT.size)
                    values = (mark, ends, spent + min(amount, reserved), max(0, reserved - amount), told)
                    _SLOT.pack_into(self._memory, place * _SLOT.size, *values)

    def _note(self, place: int, amount: int) -> None:
        offset = place * _AMOUNT.size
        before = _AMOUNT.unpack_from(self._held, offset)[0]
        _AMOUNT.pack_into(self._held, offset, min(_MOST, max(0, before + amount)))

    def _find(self, meter: Meter, now: float) -> int:
        """The meter's place, made when absent: a free one near where its name hashes to."""
        known = self._places.get(meter.name)
        if known is not None and _MARK.unpack_from(self._memory, known[0] * _SLOT.size)[0] == known[1]:
            return known[0]
        mark = int.from_bytes(hashlib.sha256(meter.name.encode("utf-8", "surrogateescape")).digest()[:8], "big") | 1
        free = -1
        for step in range(_PROBES):
            place = (mark + step) % SLOTS
            owner, ends, _, reserved, _ = _SLOT.unpack_from(self._memory, place * _SLOT.size)
            if owner == mark:
                return self._remember(meter.name, place, mark)
            if free < 0 and (not owner or (not reserved and ends < now)):
                free = place
        if free < 0:
            raise errors.Unavailable(
                "there is no room to count another budget's spending",
                code="budget.ledger_full",
                retry_after_s=60,
                next_step="have fewer budgets per session or run, or use shorter periods",
            )
        _SLOT.pack_into(self._memory, free * _SLOT.size, mark, meter.ends, meter.opening, 0, 0)
        return self._remember(meter.name, free, mark)

    def _remember(self, name: str, place: int, mark: int) -> int:
        if len(self._places) >= _REMEMBERED:
            self._places.clear()
        self._places[name] = (place, mark)
        return place
