"""The route feed's server (`wire.feed`): gateways connect, get everything, then every change; their run records come back.

Each publisher owns a part of the map (`hosting`, `keys`, `models` …); a change of any part is one version. A gateway that reads
too slowly is cut off and gets a snapshot when it comes again.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nexus.core import errors, ids
from nexus.kit import private_socket
from nexus.wire import feed, runs

_LOG = logging.getLogger(__name__)
PING_EVERY_S = 2.0
MOST_WAITING = 1000
LONGEST_LINE = 16 * 1024 * 1024
HELLO_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 10.0
STORE_TIMEOUT_S = 30.0

Sink = Callable[[Sequence[runs.Record]], Awaitable[None]]


@dataclass(slots=True)
class RouteMap:
    """All entries with a version; `replace_part` gives the delta, or None when nothing changed."""

    epoch: str
    version: int = 0
    entries: dict[str, Any] = field(default_factory=dict)
    _parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def replace_part(self, part: str, entries: Mapping[str, Any]) -> feed.Delta | None:
        before = self._parts.get(part, {})
        changed = {key: value for key, value in entries.items() if before.get(key) != value}
        gone = [key for key in before if key not in entries]
        if not changed and not gone:
            return None
        self._parts[part] = dict(entries)
        self.entries.update(changed)
        for key in gone:
            del self.entries[key]
        self.version += 1
        return {"epoch": self.epoch, "previous": self.version - 1, "version": self.version, "set": changed, "delete": gone}

    def snapshot(self) -> feed.Snapshot:
        return {"epoch": self.epoch, "version": self.version, "entries": self.entries}


class FeedServer:
    """`publish` may be called at any time; `serve` listens on the socket for as long as its context lasts. `called` hears which
    deployment's version a session waits for."""

    def __init__(self, *, sink: Sink) -> None:
        self._sink = sink
        self.called: Callable[[str, str], None] = _nobody
        self._routes = RouteMap(epoch=ids.new_id("epo"))
        self._readers: dict[asyncio.Queue[bytes | None], int | None] = {}
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def gateways(self) -> list[int]:
        """The numbers of the gateways that are connected."""
        return sorted(number for number in self._readers.values() if number is not None)

    def publish(self, part: str, entries: Mapping[str, Any]) -> bool:
        """Make these the entries of this part; True when that changed anything."""
        delta = self._routes.replace_part(part, entries)
        if delta is None:
            return False
        line = _encode({"delta": delta})
        for queue in list(self._readers):
            try:
                queue.put_nowait(line)
            except asyncio.QueueFull:
                _LOG.warning("a gateway does not read its feed; cutting it off")
                self._readers.pop(queue, None)
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(None)
        return True

    @contextlib.asynccontextmanager
    async def serve(self, socket: Path) -> AsyncIterator[None]:
        """Listen on `socket` (0600), replacing one that a dead process left."""
        listener = private_socket.listen(socket)
        server = await asyncio.start_unix_server(self._accept, sock=listener, limit=LONGEST_LINE)
        try:
            yield
        finally:
            server.close()
            for task in list(self._connections):
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(MOST_WAITING)
        # Snapshot and registration happen in one step, so no delta falls between them.
        queue.put_nowait(_encode({"snapshot": self._routes.snapshot()}))
        self._readers[queue] = None
        try:
            async with asyncio.TaskGroup() as group:
                writing = group.create_task(self._write(queue, writer))
                await self._read(queue, reader)
                writing.cancel()
        except* (ConnectionError, TimeoutError, ValueError, KeyError, TypeError) as broken:
            _LOG.info("a gateway's feed ended: %r", broken.exceptions[0])
        except* errors.NexusError as refused:
            _LOG.warning("a gateway's records could not be stored; it will send them again: %s", refused.exceptions[0])
        finally:
            self._readers.pop(queue, None)
            writer.close()

    async def _write(self, queue: asyncio.Queue[bytes | None], writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                async with asyncio.timeout(PING_EVERY_S):
                    line = await queue.get()
            except TimeoutError:
                line = _encode({"ping": self._routes.version})
            if line is None:
                raise ConnectionResetError("it read too slowly")
            writer.write(line)
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await writer.drain()

    async def _read(self, queue: asyncio.Queue[bytes | None], reader: asyncio.StreamReader) -> None:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            hello = await reader.readline()
        if not hello:
            return
        self._readers[queue] = int(json.loads(hello)["hello"]["gateway"])
        while line := await reader.readline():
            message = json.loads(line)
            if "call" in message:
                self.called(str(message["call"]["deployment"]), str(message["call"]["version"]))
            if "records" not in message:
                continue
            async with asyncio.timeout(STORE_TIMEOUT_S):
                await self._sink(message["records"])
            await queue.put(_encode({"ack": message["batch"]}))


def _nobody(deployment_id: str, version: str) -> None:
    """Nobody minds which versions sessions wait for."""


def _encode(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"
