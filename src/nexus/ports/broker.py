"""The seam between message brokers and tasks. Adapters: `providers.brokers`. A vendor's exceptions stay behind it."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """`id` is the same each time this message is delivered, None where the broker cannot tell."""

    body: bytes = field(repr=False)
    id: str | None = None
    content_type: str | None = None
    correlation: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where to listen; see `wire.triggers.QueueParams`. `url` holds the password. At most `prefetch` messages are unsettled."""

    url: str = field(repr=False)
    name: str
    group: str
    stream: str | None = None
    prefetch: int = 16


# Settles one message: when it returns, the message is acknowledged; while it waits, or when it is cancelled, it is not.
Handle = Callable[[Message], Awaitable[None]]


class Connection(Protocol):
    """A connection that listens."""

    async def publish(self, topic: str, body: bytes, *, correlation: str | None) -> None:
        """JSON to a queue, topic, subject or stream. Raises `Unavailable` (`broker.unavailable`)."""
        ...

    async def ended(self) -> str:
        """Returns, saying why, once the connection is lost for good. A short loss is the adapter's to mend."""
        ...


class Broker(Protocol):
    def listen(self, source: Source, handle: Handle) -> AbstractAsyncContextManager[Connection]:
        """Listen inside the context. Raises `Unavailable` (`broker.unavailable`, or `install.incomplete` naming the extra)."""
        ...
