"""One gateway process from start to stop: opens the listeners, follows the feed, sweeps, drains. Called by `apps.gateway`."""

import asyncio
import gc
import logging
import socket
import stat
from pathlib import Path

from nexus.gateway import doors, feed, limits, outbox, runs_door, server, settings, splits, upstream, usage, waiting, world
from nexus.kit import guard

_LOG = logging.getLogger(__name__)
_SWEEP_S = 0.5
_BACKLOG = 4096


async def serve(config: settings.Settings, *, stop: asyncio.Event, force: asyncio.Event) -> None:
    """Serve until `stop`, then finish what is under way; `force` (or the drain time) cuts it. Raises OSError when a
    listener cannot be opened."""
    config.home.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    here = build_world(config)
    client = feed.FeedClient(here)
    cached = feed.read_cache(config.home.route_cache)
    if cached is not None:
        here.swap(cached)
    listeners = [await _listen_tcp(here), await _listen_door(here)]
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    try:
        async with guard.Loops() as loops:
            loops.start("feed", client.follow)
            loops.start("sweep", lambda: _sweep(here))
            if config.number == 0:
                loops.start("route-cache", client.keep_cache)
            _LOG.info("gateway %d serves on %s port %d", config.number, config.host, config.port)
            await stop.wait()
            for listener in listeners:
                listener.close()
            await _drain(here, force)
    finally:
        for connection in list(here.connections):
            connection.transport.abort()
        here.pool.close()
        for task in list(here.tasks):
            task.cancel()
        await asyncio.gather(*here.tasks, return_exceptions=True)
        here.rates.close()
        here.pins.close()
        config.home.door_socket(config.number).unlink(missing_ok=True)


def build_world(config: settings.Settings) -> world.World:
    loop = asyncio.get_running_loop()
    return world.World(
        settings=config,
        loop=loop,
        pool=upstream.Pool(config, loop),
        waiting=waiting.Room(),
        rates=limits.Rates.open(config.home.run / "rates.map"),
        outbox=outbox.Outbox(),
        ledger=usage.Ledger(),
        open_handler=doors.open_handler,
        reader=runs_door.build_reader(),
        pins=splits.Pins.open(config.home.run / "sessions.map"),
    )


async def _listen_tcp(here: world.World) -> asyncio.AbstractServer:
    config = here.settings
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((config.host, config.port))
    except OSError:
        listening.close()
        raise
    return await here.loop.create_server(lambda: server.ClientConnection(here, inside=False), sock=listening, backlog=_BACKLOG)


async def _listen_door(here: world.World) -> asyncio.AbstractServer:
    path = here.settings.home.door_socket(here.settings.number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o711)
    _clear(path)
    listener = await here.loop.create_unix_server(lambda: server.ClientConnection(here, inside=True), str(path), backlog=_BACKLOG)
    path.chmod(0o666)  # an agent is another user; the run folder above is its owner's alone, and every call shows a token
    return listener


def _clear(path: Path) -> None:
    """Take a socket away that a killed process left behind; anything else there is not ours to delete."""
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
    except FileNotFoundError:
        return


async def _sweep(here: world.World) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        now = here.loop.time()
        for connection in list(here.connections):
            connection.check(now)
        here.waiting.look_again()
        here.pool.sweep(now)


async def _drain(here: world.World, force: asyncio.Event) -> None:
    here.draining = True
    busy = sum(connection.is_busy() for connection in here.connections)
    _LOG.info("stopping: %d requests are being finished", busy)
    for connection in list(here.connections):
        connection.drain()
    deadline = here.loop.time() + here.settings.drain_s
    while here.connections and here.loop.time() < deadline and not force.is_set():
        try:
            async with asyncio.timeout(0.05):
                await force.wait()
        except TimeoutError:
            continue
    if here.connections:
        _LOG.warning("%d connections are cut", len(here.connections))
    if here.connected and not force.is_set():
        try:
            async with asyncio.timeout(2):
                await here.outbox.all_stored.wait()
        except TimeoutError:
            _LOG.warning("%d records were not stored", here.outbox.pending)
