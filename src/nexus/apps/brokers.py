"""The process that listens to message brokers. Control starts it while there is a queue trigger, and has no broker client itself.

Everything it needs comes as one line of JSON on its standard input, so that no secret is in its environment or among its
arguments; when that closes, control is gone and this process ends. What it was doing is unacknowledged and comes again.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from types import SimpleNamespace
from typing import Any

import uvloop

from nexus.apps import control_tasks
from nexus.core import errors, principals
from nexus.kit import clock, egress, guard
from nexus.providers import brokers
from nexus.stores.postgres import engine, hosting, task_store, task_trigger_store
from nexus.tasks import listening, triggers

_POOL = 4


def main() -> int:
    logging.basicConfig(level=os.environ.get("NEXUS_LOG_LEVEL", "INFO").upper(), format="%(levelname)s %(name)s %(message)s")
    return uvloop.run(serve())


async def serve() -> int:
    """Until standard input closes, or SIGTERM."""
    reader = asyncio.StreamReader(limit=1024 * 1024)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    line = await reader.readline()
    if not line:
        return 0
    given = json.loads(line)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with engine.open_engine(given["database_url"], pool_size=_POOL) as database, guard.Loops() as loops:
        listener = _build(database, given)
        loops.start("brokers", listener.run)
        parent, told = asyncio.create_task(reader.read()), asyncio.create_task(stopped.wait())
        await asyncio.wait({parent, told}, return_when=asyncio.FIRST_COMPLETED)
        parent.cancel()
        told.cancel()
    return 0


def _build(database: Any, given: dict[str, Any]) -> listening.Listening:
    store = task_trigger_store.PostgresTriggerStore(database)
    allowance = egress.parse_allowance(given["egress_allow"])
    policies = control_tasks.hosting_policies(SimpleNamespace(store=hosting.PostgresHostingStore(database)))
    room = triggers.Triggers(
        store=store,
        tasks=task_store.PostgresTaskStore(database),
        resolve_target=_nowhere,
        allowance=allowance,
        key=bytes.fromhex(given["trigger_key"]),
        origin="",
        clock=clock.SystemClock(),
        policy_of=control_tasks.remember_policies(policies),
    )
    return listening.Listening(store=store, room=room, broker=brokers.FastStreamBroker(), allowance=allowance)


async def _nowhere(caller: principals.Principal, agent: str, environment: str | None) -> str:
    raise errors.Internal("triggers are created in control")


if __name__ == "__main__":
    sys.exit(main())
