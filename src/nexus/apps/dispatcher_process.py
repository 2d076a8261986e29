"""A dispatcher as a process of its own: it claims tasks, sends them through this node's gateways and writes their results.

Started by the keeper where the host has dispatchers; control then has none, accepts tasks only, and may die without disturbing a
run. It holds the database's URL and the service token, and no other secret of the host. Killed at any point it loses nothing:
another one takes its tasks back.
"""

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import uvloop

from nexus.apps import dispatching, settings, small_server
from nexus.core import errors
from nexus.kit import clock, guard
from nexus.stores.postgres import engine, migrate, task_listener
from nexus.tasks import dispatcher
from nexus.tasks.settings import TaskSettings

_LOG = logging.getLogger("nexus.dispatcher")
_DATABASE_WAIT_S = 30.0
_POOL = 3


def main() -> int:
    logging.basicConfig(level=os.environ.get("NEXUS_LOG_LEVEL", "INFO").upper(), format="%(levelname)s %(name)s %(message)s")
    try:
        return uvloop.run(serve(os.environ))
    except errors.NexusError as error:
        print("\n".join(settings.explain(error)), file=sys.stderr)  # noqa: T201 - the last words of a process
        return settings.EXIT_CODES[error.kind]


async def serve(environ: Mapping[str, str]) -> int:
    """Until SIGTERM or SIGINT: then what is in hand goes back to the queue. A second one ends the process at once. After SIGHUP
    it takes nothing more and ends when what is in hand has ended: another one runs in its place."""
    host = settings.read_settings(environ)
    number, url = settings.read_dispatcher(environ), settings.require_database(host, "a dispatcher")
    os.umask(0o077)
    await engine.wait_until_up(url, timeout_s=_DATABASE_WAIT_S)
    await migrate.wait_until_current(url, timeout_s=_DATABASE_WAIT_S)
    async with engine.open_engine(url, pool_size=_POOL, max_overflow=0) as database:
        runner = dispatching.build(
            database,
            token=dispatching.service_token(host.home),
            door_sockets=dispatching.door_sockets(host.home, host.gateways),
            clock=clock.SystemClock(),
            settings=TaskSettings(),
        )
        ears = task_listener.Listener(
            url=url,
            channels=dispatching.CHANNELS,
            receive=lambda channel, payload: dispatching.hear(runner, channel, payload),
            owner=runner.owner,
        )
        async with guard.Loops() as loops, runner:
            loops.start("task-listener", ears.run)
            async with small_server.serve(host.home.dispatcher_socket(number), {"/health": _health_of(runner)}):
                gc.collect()
                gc.freeze()
                _LOG.info("dispatcher %d runs tasks as %s", number, runner.owner)
                await _until_told(runner)
    return 0


def _health_of(runner: dispatcher.Dispatcher) -> Any:
    began = time.monotonic()

    def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "pid": os.getpid(),
            "owner": runner.owner,
            "draining": runner.draining,
            "running": runner.running,
            "claimed": runner.claimed,
            "uptime_s": round(time.monotonic() - began, 3),
        }

    return health


async def _until_told(runner: dispatcher.Dispatcher) -> None:
    stopped, relieved, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()

    def stop() -> None:
        if stopped.is_set():
            os._exit(1)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, relieved.set)

    async def drain() -> None:
        await relieved.wait()
        _LOG.info("another dispatcher runs in this one's place; %d tasks are in hand", runner.running)
        await runner.drain()

    ends = [asyncio.create_task(stopped.wait()), asyncio.create_task(drain())]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for task in ends:
        task.cancel()
