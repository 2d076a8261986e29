"""Server-sent events, both ways. Source: WHATWG HTML, "Server-sent events" (9.2)."""

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `data` keeps its line breaks; `id` and `name` hold none."""

    data: str
    name: str = "message"
    id: str | None = None


def encode(event: Event) -> bytes:
    lines = []
    if event.id is not None:
        lines.append(f"id: {event.id}")
    if event.name != "message":
        lines.append(f"event: {event.name}")
    lines.extend(f"data: {line}" for line in event.data.split("\n"))
    return ("\n".join(lines) + "\n\n").encode()


@dataclass(slots=True)
class Decoder:
    """Feed bytes as they come; each call yields the events completed by them. Comments are dropped.

    One event may have at most `limit` bytes; a larger one raises ValueError, so a peer cannot fill memory.
    """

    limit: int = 16 * 1024 * 1024
    _rest: bytes = b""
    _data: list[str] = field(default_factory=list)
    _name: str = ""
    _id: str | None = None
    _size: int = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        if len(self._rest) + len(chunk) + self._size > self.limit:
            raise ValueError(f"an event is larger than {self.limit} bytes")
        text = self._rest + chunk
        held_back = b"\r" if text.endswith(b"\r") else b""
        text = text[: len(text) - len(held_back)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._rest = rest + held_back
        for line in lines:
            if line:
                self._take(line.decode("utf-8", "replace"))
            elif (event := self._flush()) is not None:
                yield event

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            self._size += len(value)
        elif name == "event":
            self._name = value
        elif name == "id" and "\0" not in value:
            self._id = value

    def _flush(self) -> Event | None:
        data, name, self._data, self._name, self._size = self._data, self._name, [], "", 0
        if not data:
            return None
        return Event(data="\n".join(data), name=name or "message", id=self._id)
