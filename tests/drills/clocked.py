"""A dispatcher with the schedules' loop, as control has them, in a process whose clock is set by others.

Arguments: database URL, door socket, owner.
"""

import asyncio
import sys
from pathlib import Path

from nexus.core import principals
from nexus.kit import clock, egress, guard
from nexus.stores.postgres import engine as engines
from nexus.stores.postgres import task_listener, task_schedule_store, task_store
from nexus.tasks import dispatcher, door, schedules
from nexus.tasks.settings import TaskSettings

SETTINGS = TaskSettings(beat_s=0.5, lease_s=5.0, orphan_s=1.0, poll_s=0.2)


async def resolve(caller: principals.Principal, agent: str, environment: str | None) -> str:
    return environment or "production"


async def main(url: str, socket: str, owner: str) -> None:
    async with engines.open_engine(url) as engine, guard.Loops() as loops:
        store = task_store.PostgresTaskStore(engine)
        way = door.GatewayDoor(sockets=lambda: [Path(socket)], token="drill")
        runner = dispatcher.Dispatcher(store=store, door=way, owner=owner, clock=clock.SystemClock(), settings=SETTINGS)
        timed = schedules.Schedules(
            store=task_schedule_store.PostgresScheduleStore(engine),
            resolve_target=resolve,
            allowance=egress.parse_allowance(None),
            submitted=runner.wake,
            settings=SETTINGS,
        )
        ears = task_listener.Listener(
            url=url, channels=[task_listener.CHANNEL_QUEUE], receive=lambda *_: runner.wake(), owner=owner
        )
        loops.start("ears", ears.run)
        async with runner, timed:
            print("ready", flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
