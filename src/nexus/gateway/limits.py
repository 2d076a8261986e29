"""Request rates by GCRA (ITU-T I.371): one number per key, the theoretical arrival time of its next request.

The numbers stand in a small file that every gateway process of the node maps into memory, so a key's limit is one limit
however many processes there are. Two writers at the same instant may lose one count; a limit is not a ledger.
"""

import hashlib
import math
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

SLOTS = 1 << 14
_SLOT_BYTES = 16  # whose it is (64 bits), and a double: when its next request is due
_WINDOW_S = 60.0


class Limit(NamedTuple):
    """So many requests a minute for `key`. `scope` is what is limited: `key`, `tenant` or `agent`; `told` begins its lines."""

    scope: str
    key: str
    per_minute: int
    told: bytes


def limit(scope: str, key: str, per_minute: int) -> Limit:
    name = scope.encode("ascii")
    return Limit(scope, key, per_minute, b'RateLimit-Policy: "%b";q=%d;w=60\r\nRateLimit: "%b"' % (name, per_minute, name))


Verdict = tuple[Limit, float]
"""The tightest limit, and for how many seconds its credit lasts still; negative: after how many seconds there is some again."""


class Rates:
    """The limits of all keys, tenants and agents. Clock: monotonic, which is the same in all processes of a machine."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._view = memoryview(memory)
        self._owners, self._dues = self._view.cast("Q"), self._view.cast("d")
        self._slots: dict[str, tuple[int, int]] = {}

    @classmethod
    def open(cls, path: Path) -> Self:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(descriptor, SLOTS * _SLOT_BYTES)
            return cls(mmap.mmap(descriptor, SLOTS * _SLOT_BYTES))
        finally:
            os.close(descriptor)

    @classmethod
    def private(cls) -> Self:
        return cls(mmap.mmap(-1, SLOTS * _SLOT_BYTES))

    def close(self) -> None:
        for view in (self._owners, self._dues, self._view):
            view.release()
        self._memory.close()

    def take(self, key: str, per_minute: int, now: float) -> float:
        """A whole minute's requests may come at once after a quiet minute; then one every 60/`per_minute` seconds.

        The seconds of credit that are left, or (negative, and nothing is taken) how long until there is enough.
        """
        slot, mark = self._slots.get(key) or self._place(key)
        due = self._dues[slot + 1]
        interval = _WINDOW_S / per_minute
        if self._owners[slot] != mark or due < now or due > now + _WINDOW_S + 1.0 + interval:
            due = now
            self._owners[slot] = mark
        spare = now + _WINDOW_S - due - interval
        if spare < -1e-9:
            return spare
        self._dues[slot + 1] = due + interval
        return spare if spare > 0.0 else 0.0

    def give_back(self, key: str, per_minute: int) -> None:
        """Undo one `take`."""
        slot, mark = self._slots.get(key) or self._place(key)
        if self._owners[slot] == mark:
            self._dues[slot + 1] -= _WINDOW_S / per_minute

    def take_all(self, limits: Sequence[Limit], now: float) -> Verdict:
        """Take one request from each of (at least one) limits, or from none. Gives the tightest."""
        tightest, least = limits[0], _WINDOW_S * 2
        if len(limits) == 1:
            return tightest, self.take(tightest.key, tightest.per_minute, now)
        for at, limit in enumerate(limits):
            spare = self.take(limit.key, limit.per_minute, now)
            if spare < 0:
                for taken in limits[:at]:
                    self.give_back(taken.key, taken.per_minute)
                return limit, spare
            if spare * limit.per_minute < least * tightest.per_minute or not at:
                tightest, least = limit, spare
        return tightest, least

    def _place(self, key: str) -> tuple[int, int]:
        digest = hashlib.sha256(key.encode()).digest()
        place = (int.from_bytes(digest[:4], "big") % SLOTS * 2, int.from_bytes(digest[8:16], "big") | 1)
        if len(self._slots) > 10_000:
            self._slots.clear()
        self._slots[key] = place
        return place


def render(limit: Limit, spare_s: float) -> bytes:
    """`RateLimit-Policy` and `RateLimit` lines: quota and window, what remains and when it is whole again.

    Source: draft-ietf-httpapi-ratelimit-headers-10, sections 3 and 4.
    """
    _, _, per_minute, told = limit
    if spare_s <= 0:
        return b"%b;r=0;t=%d\r\n" % (told, math.ceil(_WINDOW_S - spare_s))
    return b"%b;r=%d;t=%d\r\n" % (told, int(spare_s * per_minute / _WINDOW_S), 60 - int(spare_s))
