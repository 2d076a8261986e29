"""A JSON head and the bytes it speaks of in one body, so that no byte passes through base64: how checkpoints cross the door.

A zero byte, the head's length (4 bytes, big-endian), the head, the bytes. In the head a blob is `[kind, start, size]`.
"""

import json
from typing import Any

_PREFIX = 5


class Packer:
    """Collects blobs, then makes the body."""

    def __init__(self) -> None:
        self._blobs: list[bytes] = []
        self._size = 0

    def add(self, kind: str, blob: bytes) -> tuple[str, int, int]:
        """What stands for it in the head."""
        start, self._size = self._size, self._size + len(blob)
        self._blobs.append(blob)
        return kind, start, len(blob)

    def pack(self, head: Any) -> bytes:
        text = json.dumps(head).encode()
        return b"".join((b"\0", len(text).to_bytes(4, "big"), text, *self._blobs))


class Unpacker:
    """`head`, and the blobs on demand. Raises ValueError where the body is not of this form."""

    def __init__(self, body: bytes) -> None:
        start = _PREFIX + int.from_bytes(body[1:_PREFIX], "big")
        if not is_packed(body) or start > len(body):
            raise ValueError("the body ends inside its head")
        self.head: Any = json.loads(body[_PREFIX:start])
        self._blobs = memoryview(body)[start:]

    def take(self, entry: Any) -> tuple[str, bytes]:
        """The kind and the bytes of a blob of the head."""
        kind, start, size = entry
        if not (type(kind) is str and type(start) is int and type(size) is int) or min(start, size) < 0:
            raise ValueError("a blob is a kind, a start and a size")
        if start + size > len(self._blobs):
            raise ValueError("a blob ends beyond the body")
        return kind, bytes(self._blobs[start : start + size])


def is_packed(body: bytes) -> bool:
    return body[:1] == b"\0"
