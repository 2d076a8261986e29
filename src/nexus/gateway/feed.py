"""The feed client: keeps the route table true, carries records out, and remembers the routes on disk.

Whatever goes wrong, the last whole table stays in force and a new connection begins with a snapshot. Protocol: `nexus.wire.feed`.
"""

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nexus.gateway import routes
from nexus.gateway.world import World
from nexus.kit import backoff
from nexus.wire import feed as wire_feed

_LOG = logging.getLogger(__name__)
_PAUSES = backoff.Backoff(first_s=0.02, longest_s=0.2, least_s=0.02)  # a local socket: looking costs nothing, waiting does
_SILENCE_S = 6.5
_LONGEST_REFUSAL_S = 5.0  # asking for the same bad snapshot again and again would cost both sides
_LONGEST_LINE = 256 * 1024 * 1024
_RECORD_PAUSE_S = 0.25
_PIECE = 100
_CACHE_PAUSE_S = 0.2


class FeedClient:
    """`follow` and `keep_cache` are endless; run both. Gateway 0 alone writes the cache, all read it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._changed = asyncio.Event()
        self._behind = 0

    async def follow(self) -> None:
        attempt = refused = 0
        while True:
            before = self._world.table
            try:
                await self._converse()
            except* routes.FeedBroken as group:
                refused += 1
                _LOG.warning("what the route feed says is refused (%s); serving version %d", _reason(group), before.version)
            except* (OSError, TimeoutError, EOFError, ValueError) as group:
                if self._world.connected or attempt == 0:
                    _LOG.warning("the route feed broke off (%s); serving version %d", _reason(group), before.version)
            finally:
                self._world.connected = False
            attempt = 0 if self._world.table is not before else attempt + 1
            refused = refused if attempt else 0
            await asyncio.sleep(max(_PAUSES.pause_s(attempt), min(_LONGEST_REFUSAL_S, 0.02 * 2.0 ** min(refused, 10))))

    async def _converse(self) -> None:
        path = str(self._world.settings.home.feed_socket)
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_unix_connection(path, limit=_LONGEST_LINE)
        try:
            await _send(writer, b'{"hello":{"gateway":%d}}' % self._world.settings.number)
            for number, batch in self._world.outbox.unacknowledged():
                await _send_batch(writer, number, batch)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._listen(reader))
                both.create_task(self._report(writer))
        finally:
            writer.close()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while True:
            async with asyncio.timeout(_SILENCE_S):
                line = await reader.readline()
            if not line.endswith(b"\n"):
                raise EOFError("control closed the feed")
            message = json.loads(line)
            if not isinstance(message, dict):
                raise routes.FeedBroken("a line of the feed is not an object")
            self._apply(message)

    def _apply(self, message: Mapping[str, Any]) -> None:
        world = self._world
        if "snapshot" in message:
            world.swap(routes.plan_snapshot(world.table, message["snapshot"]))
            if not world.connected:
                _LOG.info("following the route feed at version %d", world.table.version)
            world.connected = True
            self._behind = 0
            self._changed.set()
        elif "delta" in message:
            world.swap(routes.plan_delta(world.table, message["delta"]))
            self._behind = 0
            self._changed.set()
        elif "ack" in message:
            world.outbox.acknowledge(int(message["ack"]))
        elif "ping" in message:
            self._behind = 0 if message["ping"] == world.table.version else self._behind + 1
            if self._behind >= 2:
                raise routes.FeedBroken(f"control is at version {message['ping']}, this gateway at {world.table.version}")

    async def _report(self, writer: asyncio.StreamWriter) -> None:
        box, calls = self._world.outbox, self._world.calls
        calls.wanting = box.full_batch.set
        while True:
            for deployment_id, version in calls.take():
                await _send(writer, json.dumps({"call": {"deployment": deployment_id, "version": version}}).encode())
            taken = box.take_batch()
            if taken is not None:
                number, batch = taken
                await _send_batch(writer, number, batch)
                if box.goes_on:
                    continue
            try:
                async with asyncio.timeout(_RECORD_PAUSE_S):
                    await box.full_batch.wait()
            except TimeoutError:
                continue

    async def keep_cache(self) -> None:
        """Write the routes to disk after they changed, not more often than five times a second."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(_CACHE_PAUSE_S)
            self._changed.clear()
            await asyncio.to_thread(write_cache, self._world.settings.home.route_cache, self._world.table)


def _reason(error: BaseException) -> str:
    """The first real error in a group of errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__


async def _send_batch(writer: asyncio.StreamWriter, number: int, batch: list[bytes]) -> None:
    """In pieces that are small enough for the allocator to keep: one piece of 150 KiB costs twenty times as much."""
    pieces = [b",".join(batch[start : start + _PIECE]) for start in range(0, len(batch), _PIECE)]
    spaced = [part for piece in pieces for part in (b",", piece)]
    spaced[0:1] = [b'{"records":[']
    await _send(writer, *spaced, b'],"batch":%d}' % number)


async def _send(writer: asyncio.StreamWriter, *pieces: bytes) -> None:
    writer.writelines((*pieces, b"\n"))
    async with asyncio.timeout(10):
        await writer.drain()


def write_cache(path: Path, table: routes.RouteTable) -> None:
    """Replace the cache by this table's entries (0600, atomically). Models that carry a credential are left out: a
    provider's key is not put on disk in clear; such a model is back as soon as control is."""
    kept = {name: value for name, value in table.entries.items() if not (name.startswith("model/") and _holds_secret(value))}
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"epoch": table.epoch, "version": table.version, "entries": kept}, file, separators=(",", ":"))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _holds_secret(model: Mapping[str, Any]) -> bool:
    return bool(model.get("headers") or (model.get("options") or {}).get("auth"))


def read_cache(path: Path) -> routes.RouteTable | None:
    """The routes of the last run, or None when there are none that can be used."""
    try:
        if path.stat().st_uid != os.geteuid():
            _LOG.warning("the route cache %s belongs to another user; it is not used", path)
            return None
        saved: wire_feed.Snapshot = json.loads(path.read_bytes())
        return routes.plan_snapshot(routes.RouteTable(), saved)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, routes.FeedBroken) as error:
        _LOG.warning("the route cache %s cannot be used: %s", path, error)
        return None
