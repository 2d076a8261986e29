"""One gateway process from start to stop: opens the listeners, follows the feed, sweeps, drains. Called by `apps.gateway`."""

import asyncio
import gc
import logging
import socket
import ssl
import stat
from pathlib import Path

from nexus.gateway import (
    doors,
    feed,
    handover,
    key_handover,
    limits,
    model_spend,
    outbox,
    outliers,
    runs_door,
    server,
    settings,
    splits,
    upstream,
    usage,
    waiting,
    world,
)
from nexus.kit import guard

_LOG = logging.getLogger(__name__)
_SWEEP_S = 0.5
_CHECKED_AT_ONCE = 256
_ROUTES_WAIT_S = 5.0
_BACKLOG = 4096


async def serve(config: settings.Settings, *, stop: asyncio.Event, force: asyncio.Event) -> None:
    """Serve until `stop` (or until a successor serves), then finish what is under way; `force` (or the drain time) cuts it.
    Raises OSError when a listener cannot be opened."""
    config.home.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    here = build_world(config)
    client = feed.FeedClient(here)
    cached = feed.read_cache(config.home.route_cache)
    if cached is not None:
        here.swap(cached)
    taken = _take_over(config)
    here.keys.settling = taken is not None
    sockets = (_bind_tcp(config), _bind_door(config)) if taken is None else (taken.tcp, taken.door)
    listeners: list[asyncio.AbstractServer] = []

    telling: list[asyncio.Task[None]] = []
    over = asyncio.Event()

    def give_way(line: socket.socket) -> None:
        here.replaced = True
        stop.set()
        telling.append(guard.spawn(key_handover.tell(here.keys, line, here.loop.time(), over), name="keys", owner=here.tasks))

    offer = handover.Offer(_handover_path(config), sockets, give_way)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    try:
        async with guard.Loops() as loops:
            loops.start("feed", client.follow)
            loops.start("sweep", lambda: _sweep(here))
            if taken is not None:
                await _routes_known(here)
            for listening, inside in zip(sockets, (False, True), strict=True):
                listeners.append(await _listen(here, listening, inside=inside))
            if taken is None:
                listeners.append(await _listen_to_siblings(here))
            else:
                taken.serving()
                guard.spawn(_settle(here, taken.line, listeners), name="keys", owner=here.tasks)
            offer.open()
            loops.start("handover", offer.follow)
            if config.number == 0:
                loops.start("route-cache", client.keep_cache)
            _LOG.info("gateway %d serves on %s port %d", config.number, config.host, config.port)
            await stop.wait()
            for listener in listeners:
                listener.close()
            await _drain(here, force)
            over.set()
            if telling:
                await asyncio.wait(telling, timeout=2)
    finally:
        offer.close()
        for connection in list(here.connections):
            connection.transport.abort()
        here.pool.close()
        for task in list(here.tasks):
            task.cancel()
        await asyncio.gather(*here.tasks, return_exceptions=True)
        await asyncio.sleep(0)  # cut connections say so in the next turn; their model calls are settled then
        here.rates.close()
        here.addresses.close()
        here.pins.close()
        here.spend.close()
        if not here.replaced:
            config.home.door_socket(config.number).unlink(missing_ok=True)
            config.home.sibling_socket(config.number).unlink(missing_ok=True)
            _handover_path(config).unlink(missing_ok=True)


def _handover_path(config: settings.Settings) -> Path:
    return config.home.run / f"handover-{config.number}.sock"


def _take_over(config: settings.Settings) -> handover.Taken | None:
    """The sockets of the process that has this number now, when they are where this one is to listen."""
    taken = handover.take(_handover_path(config))
    if taken is None:
        return None
    if taken.tcp.getsockname()[:2] == (config.host, config.port):
        return taken
    _LOG.warning("the gateway that serves now listens on %s; this one binds its own", taken.tcp.getsockname()[:2])
    taken.close()
    return None


async def _routes_known(here: world.World) -> None:
    """Wait a little for routes: until then the older process serves better."""
    try:
        async with asyncio.timeout(_ROUTES_WAIT_S):
            await here.loaded.wait()
    except TimeoutError:
        _LOG.warning("no routes within %.0f s; taking over without", _ROUTES_WAIT_S)


def build_world(config: settings.Settings) -> world.World:
    loop = asyncio.get_running_loop()
    return world.World(
        settings=config,
        loop=loop,
        pool=upstream.Pool(config, loop),
        waiting=waiting.Room(),
        rates=limits.Rates.open(config.home.run / "rates.map"),
        addresses=limits.Rates.open(config.home.run / "addresses.map"),
        outbox=outbox.Outbox(),
        ledger=usage.Ledger(),
        open_handler=doors.open_handler,
        reader=runs_door.build_reader(),
        pins=splits.Pins.open(config.home.run / "sessions.map"),
        spend=model_spend.Spend.open(config.home.spend),
    )


def _bind_tcp(config: settings.Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((config.host, config.port))
    except OSError:
        listening.close()
        raise
    return listening


def _bind_door(config: settings.Settings) -> socket.socket:
    path = config.home.door_socket(config.number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o711)
    _clear(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        path.chmod(0o666)  # an agent is another user; the run folder above is its owner's alone, and every call shows a token
    except OSError:
        listening.close()
        raise
    return listening


async def _listen(here: world.World, listening: socket.socket, *, inside: bool) -> asyncio.AbstractServer:
    listening.setblocking(False)

    def connect() -> server.ClientConnection:
        return server.ClientConnection(here, inside=inside)

    if inside:
        return await here.loop.create_unix_server(connect, sock=listening, backlog=_BACKLOG)
    context = _tls_context(here.settings)
    return await here.loop.create_server(connect, sock=listening, backlog=_BACKLOG, ssl=context)


async def _settle(here: world.World, line: socket.socket, listeners: list[asyncio.AbstractServer]) -> None:
    """Learn of the keys that the older process knows; then runs with a key are taken here."""
    known = asyncio.Event()
    listening = asyncio.ensure_future(key_handover.listen(here.keys, line, here.loop.time(), known))
    await known.wait()
    if not here.draining:
        listeners.append(await _listen_to_siblings(here))
    here.keys.settling = False
    await listening


async def _listen_to_siblings(here: world.World) -> asyncio.AbstractServer:
    """The other gateways of the node, in the run folder that is its owner's alone. A successor simply takes the name over."""
    path = here.settings.home.sibling_socket(here.settings.number)
    _clear(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    path.chmod(0o600)
    return await here.loop.create_unix_server(
        lambda: server.ClientConnection(here, inside=False, relayed=True), sock=listening, backlog=_BACKLOG
    )


def _tls_context(config: settings.Settings) -> ssl.SSLContext | None:
    """TLS 1.2 and newer, HTTP/1.1 only. Raises OSError (ssl.SSLError) when certificate and key do not fit."""
    if config.tls_certificate is None or config.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(config.tls_certificate, config.tls_key)
    return context


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
        await _check_connections(here)
        now = here.loop.time()
        here.waiting.look_again()
        here.pool.sweep(now)
        for by_environment in here.table.agents.values():
            for deployment in by_environment.values():
                if deployment.balancer == "health-based":
                    outliers.sweep(deployment, now)
        here.spend.sweep()


async def _check_connections(here: world.World) -> None:
    """End what has waited too long. Thousands of connections are looked at in parts, so that no request waits for all of them."""
    everyone = list(here.connections)
    for start in range(0, len(everyone), _CHECKED_AT_ONCE):
        now = here.loop.time()
        for connection in everyone[start : start + _CHECKED_AT_ONCE]:
            if connection in here.connections:
                connection.check(now)
        await asyncio.sleep(0)


async def _drain(here: world.World, force: asyncio.Event) -> None:
    """Finish what is under way. After a handover idle connections stay open a while: their next request is answered, and told
    to close, so that no client sends into a closed connection; and streams may go on for long, since nobody waits."""
    here.draining = True
    busy = sum(connection.is_busy() for connection in here.connections)
    _LOG.info("stopping: %d requests are being finished", busy)
    started = here.loop.time()
    deadline = started + (here.settings.replaced_drain_s if here.replaced else here.settings.drain_s)
    patience = started + (here.settings.handover_patience_s if here.replaced else 0.0)
    while here.connections and here.loop.time() < deadline and not force.is_set():
        if here.loop.time() >= patience:
            for connection in list(here.connections):
                connection.drain()
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
