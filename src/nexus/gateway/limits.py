"""Request rates by GCRA (ITU-T I.371): one number per key, the theoretical arrival time of its next request.

The numbers stand in a small file that every gateway process of the node maps into memory, so a key's limit is one limit
however many processes there are. Two writers at the same instant may lose one count; a limit is not a ledger.
"""

import hashlib
import mmap
import os
import struct
from pathlib import Path
from typing import Self

SLOTS = 1 << 14
_SLOT = struct.Struct("=Qd")


class Rates:
    """`take` on a key answers 0.0 when the request may pass, else after how many seconds it may. Clock: monotonic,
    which is the same in all processes of a machine (CLOCK_MONOTONIC)."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._slots: dict[str, tuple[int, int]] = {}

    @classmethod
    def open(cls, path: Path) -> Self:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(descriptor, SLOTS * _SLOT.size)
            return cls(mmap.mmap(descriptor, SLOTS * _SLOT.size))
        finally:
            os.close(descriptor)

    @classmethod
    def private(cls) -> Self:
        return cls(mmap.mmap(-1, SLOTS * _SLOT.size))

    def close(self) -> None:
        self._memory.close()

    def take(self, key: str, per_minute: int, now: float) -> float:
        """A whole minute's requests may come at once after a quiet minute; then one every 60/`per_minute` seconds."""
        offset, mark = self._slots.get(key) or self._place(key)
        owner, due = _SLOT.unpack_from(self._memory, offset)
        interval = 60.0 / per_minute
        if owner != mark or due < now or due > now + 61.0 + interval:
            due = now
        late = due + interval - now - 60.0
        if late > 1e-9:
            return float(late)
        _SLOT.pack_into(self._memory, offset, mark, due + interval)
        return 0.0

    def _place(self, key: str) -> tuple[int, int]:
        digest = hashlib.sha256(key.encode()).digest()
        place = (int.from_bytes(digest[:4], "big") % SLOTS * _SLOT.size, int.from_bytes(digest[8:16], "big") | 1)
        if len(self._slots) > 10_000:
            self._slots.clear()
        self._slots[key] = place
        return place
