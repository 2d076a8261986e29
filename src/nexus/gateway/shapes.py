"""Heads like the last one: on a kept connection the same head comes again, but for a few values.

`lines` judges a head line by line. A shape is a head that it has judged, with gaps where values change from message to message.
A head that fits a shape differs from a judged one in these values alone, and they are checked here as strictly as there.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

from nexus.gateway import endings, lines, mint

T = TypeVar("T")
_END = b"\r\n\r\n"
_REMEMBERED = 4096
_NO_SESSION = (b"", b".", b"..")
_AT_ONCE, _EVERY = 4, 32
LONGEST = 16 * 1024
IN_REQUESTS: Mapping[bytes, int] = {
    b"content-length": lines.LENGTH, b"nexus-session-id": lines.SESSION, b"traceparent": lines.TRACE,
    b"nexus-user-id": lines.USER,
}  # fmt: skip
IN_ANSWERS: Mapping[bytes, int] = {b"content-length": lines.LENGTH, b"nexus-usage": lines.USAGE}

_SOUND: Mapping[int, Callable[[bytes], object]] = {
    lines.SESSION: lambda value: (
        len(value) <= 256 and value not in _NO_SESSION and not value.translate(None, lines.SESSION_BYTES)
    ),
    lines.TRACE: lambda value: len(value) <= 256 and mint.parse_traceparent(value) is not None,
    lines.USER: lambda value: 0 < len(value) <= 256 and not value.translate(None, lines.VISIBLE),
    lines.USAGE: lambda value: endings.read_usage(value) is not None,
}
"""What a value must be like to be believed where it stands; a length is compared with the body."""

Values = tuple[bytes | None, bytes | None, bytes | None, bytes]
"""What is in the gaps of a message: its session, its trace, its user (of an answer: what its run used), and its body."""

Pieces = tuple[tuple[bytes, int], ...]
"""Bytes that must come next, and the kind of the value that follows them up to the end of its line."""


class Shape(Generic[T]):
    """One head, and the `meaning` that all heads of this shape have (for as long as `table` is in force)."""

    __slots__ = ("_pieces", "_tail", "meaning", "table")

    def __init__(self, pieces: Pieces, tail: bytes, *, meaning: T, table: object) -> None:
        self._pieces, self._tail = pieces, tail
        self.meaning = meaning
        self.table = table

    def fit(self, data: bytes) -> Values | None:
        """The values of the one whole message that `data` is; None when it has another head, is a part, or is more.

        `removeprefix` and `partition` copy what is left, and are still the quickest way through a few hundred bytes.
        """
        if len(data) > LONGEST:
            return None
        length = b""
        session = trace = other = None
        rest = data
        for literal, kind in self._pieces:
            left = rest.removeprefix(literal)
            if left is rest:
                return None
            value, _, rest = left.partition(b"\r")
            if kind == lines.LENGTH:
                length = value
            elif not _SOUND[kind](value):
                return None
            elif kind == lines.SESSION:
                session = value
            elif kind == lines.TRACE:
                trace = value
            else:
                other = value
        body = rest.removeprefix(self._tail)
        if body is rest or len(length) > 9 or not length.isdigit() or int(length) != len(body):
            return None
        return session, trace, other, body


def cut(data: bytes, gaps: Mapping[bytes, int]) -> tuple[Pieces, bytes] | None:
    """A judged head as pieces and tail; None when a value that changes is not written plainly (`Name: value`)."""
    head, _, _ = data.partition(_END)
    pieces: list[tuple[bytes, int]] = []
    literal, has_length = b"", False
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        kind = gaps.get(name.lower())
        if kind is None:
            literal += line + b"\r\n"
            continue
        if value[:1] != b" " or value[1:] != value.strip(b" \t"):
            return None
        pieces.append((literal + name + b": ", kind))
        literal = b"\n"
        has_length = has_length or kind == lines.LENGTH
    return (tuple(pieces), literal + b"\r\n") if has_length else None


class Known(Generic[T]):
    """Shapes that connections share: many clients of one make send one head, and a shape is not small."""

    def __init__(self, gaps: Mapping[bytes, int]) -> None:
        self._gaps = gaps
        self._shapes: dict[Hashable, Shape[T]] = {}

    def learn(self, data: bytes, *, meaning: T, table: object) -> Shape[T] | None:
        """The shape of a judged head."""
        if len(data) > LONGEST:
            return None
        parts = cut(data, self._gaps)
        if parts is None:
            return None
        shape = self._shapes.get(parts)
        if shape is None or shape.table is not table:
            if len(self._shapes) >= _REMEMBERED:
                self._shapes.clear()
            shape = self._shapes[parts] = Shape(*parts, meaning=meaning, table=table)
        return shape

    def clear(self) -> None:
        self._shapes.clear()


def is_worth_learning(misses: int) -> bool:
    """Whether to learn after so many messages in a row that fitted no shape: a proxy's connection carries many clients' heads."""
    return misses <= _AT_ONCE or misses % _EVERY == 0
