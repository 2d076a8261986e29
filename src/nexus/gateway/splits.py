"""Which version a session runs on while a deployment has several: the one it began on, else by the weights of the split.

`assign` is a real hash, so every process (and a later start) decides the same. `Pins` remembers where sessions began, in a file
that all gateway processes of the node map into memory: it outlives them and costs no talking.
"""

import hashlib
import mmap
import os
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Self

from nexus.gateway import wishes

_SETS = 1 << 14
_WAYS = 4
_SLOT = struct.Struct("=QII")
_SPACE = 1 << 53


def point(deployment_id: str, name: str, key: str) -> float:
    """Where a key falls in [0, 1): the first 53 bits of SHA-256 over deployment, experiment and key."""
    found = hashlib.sha256(f"{deployment_id}\0{name}\0{key}".encode("utf-8", "surrogateescape")).digest()
    return (int.from_bytes(found[:8], "big") >> 11) / _SPACE


def assign(split: wishes.Split, deployment_id: str, key: str, served: Collection[str]) -> str | None:
    """The version for a key. A version that is not served leaves its share to the others; None when none is served.

    Weights are laid side by side in their given order, so moving weight from one version to its neighbour moves only the keys
    on their border.
    """
    at = point(deployment_id, split.name, key)
    for weights in (split.weights, tuple(pair for pair in split.weights if pair[0] in served)):
        total = sum(weight for _, weight in weights)
        if total <= 0:
            return None
        left = at * total
        for version, weight in weights:
            left -= weight
            if left < 0:
                if version in served:
                    return version
                break
    return None


class Pins:
    """A hash table of fixed size: session -> version. Each set of slots drops what was seen longest ago."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @classmethod
    def open(cls, path: Path) -> Self:
        size = _SETS * _WAYS * _SLOT.size
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(descriptor, size)
            return cls(mmap.mmap(descriptor, size))
        finally:
            os.close(descriptor)

    @classmethod
    def private(cls) -> Self:
        return cls(mmap.mmap(-1, _SETS * _WAYS * _SLOT.size))

    def close(self) -> None:
        self._memory.close()

    def find(self, deployment_id: str, session_id: str, versions: Collection[str]) -> str | None:
        """The version among `versions` that the session began on, or None when that is not known."""
        start, mark = _place(deployment_id, session_id)
        for offset in range(start, start + _WAYS * _SLOT.size, _SLOT.size):
            owner, version, _ = _SLOT.unpack_from(self._memory, offset)
            if owner == mark:
                return next((name for name in versions if _short(name) == version), None)
        return None

    def put(self, deployment_id: str, session_id: str, version: str, now: float) -> None:
        start, mark = _place(deployment_id, session_id)
        oldest, oldest_at = start, 1 << 33
        for offset in range(start, start + _WAYS * _SLOT.size, _SLOT.size):
            owner, _, seen = _SLOT.unpack_from(self._memory, offset)
            if owner == mark:
                oldest = offset
                break
            if seen < oldest_at:
                oldest, oldest_at = offset, seen
        _SLOT.pack_into(self._memory, oldest, mark, _short(version), int(now) & 0xFFFFFFFF)


def _place(deployment_id: str, session_id: str) -> tuple[int, int]:
    found = hashlib.sha256(f"{deployment_id}\0{session_id}".encode("utf-8", "surrogateescape")).digest()
    number = int.from_bytes(found[:4], "big") % _SETS
    return number * _WAYS * _SLOT.size, int.from_bytes(found[8:16], "big") | 1


def _short(version: str) -> int:
    return int.from_bytes(hashlib.sha256(version.encode()).digest()[:4], "big")
