"""The seam for secrets that a room keeps in its own tables: sealed under the host's key, opened only where they are used."""

from typing import Protocol


class Sealer(Protocol):
    def seal(self, plain: bytes, *, context: str) -> bytes:
        """Encrypted and bound to `context`: opening it under another context fails."""
        ...

    def open(self, sealed: bytes, *, context: str) -> bytes:
        """The plain bytes, or `Internal` (code `secret.unreadable`) when key or context differ."""
        ...
