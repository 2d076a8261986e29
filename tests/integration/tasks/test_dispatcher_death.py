"""Dispatchers as real processes that are killed and stopped: nothing is lost, nothing has two results."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import rig as rigs

# A process stopped inside a transaction holds its locks until the server cuts it off; here that takes one second.
SOON_CUT = "&options=-c%20idle_in_transaction_session_timeout%3D1s"


@asynccontextmanager
async def process(rig: rigs.Rig, owner: str) -> AsyncIterator[asyncio.subprocess.Process]:
    script = Path(__file__).parent / "dispatcher_process.py"
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(script), f"{rig.url}{SOON_CUT}", str(rig.socket), owner, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert await asyncio.wait_for(child.stdout.readline(), rigs.PATIENCE_S) == b"ready\n"
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


class Script:
    """Holds every first attempt until told; second attempts complete at once."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self, call: rigs.Call) -> None:
        if call.attempt > 1:
            call.complete(f"attempt {call.attempt}")
            return
        call.begin()
        call.send("run.started", {})
        await call.writer.drain()
        self.begun.set()
        await self.release.wait()
        call.send("run.completed", {"output": "attempt 1", "metadata": {}}, 2)
        call.end()


async def test_a_killed_dispatchers_task_gets_a_second_attempt(rig: rigs.Rig) -> None:
    script = Script()
    async with rigs.gateway(rig.socket, script), process(rig, "victim") as victim:
        task = await rig.submit()
        async with asyncio.timeout(rigs.PATIENCE_S):
            while not await rig.events(task.task_id):
                await asyncio.sleep(0.01)
        victim.kill()
        await victim.wait()
        async with rig.dispatcher("heir"):
            done = await rig.finished(task.task_id)
        script.release.set()
    assert (done.status, done.output, done.attempt) == ("completed", "attempt 2", 2)
    names = [event.name for event in await rig.events(task.task_id)]
    assert names == ["run.started", "run.retried", "run.started", "run.completed"]


async def test_a_stopped_dispatcher_that_wakes_late_is_fenced_out(rig: rigs.Rig) -> None:
    script = Script()
    async with rigs.gateway(rig.socket, script), process(rig, "zombie") as zombie:
        task = await rig.submit(webhook="http://127.0.0.1:9/")
        await asyncio.wait_for(script.begun.wait(), rigs.PATIENCE_S)
        os.kill(zombie.pid, signal.SIGSTOP)
        async with rig.dispatcher("heir"):
            done = await rig.finished(task.task_id)
        events = await rig.events(task.task_id)
        script.release.set()
        os.kill(zombie.pid, signal.SIGCONT)
        again = await rig.submit("for the zombie")
        await rig.finished(again.task_id)  # it lives on, lets go of the old task and runs the next one
        assert await rig.events(task.task_id) == events
        view = await rig.service.show(rigs.CALLER, task.task_id)
    assert (done.output, view.output, view.attempt) == ("attempt 2", "attempt 2", 2)


async def test_a_database_that_restarts_costs_no_attempt(rig: rigs.Rig) -> None:
    """All connections of the dispatcher are cut while a run is in hand; it goes on and its result is stored."""
    import psycopg

    script = Script()
    async with rigs.gateway(rig.socket, script), rig.dispatcher("steady"):
        task = await rig.submit()
        await asyncio.wait_for(script.begun.wait(), rigs.PATIENCE_S)
        with psycopg.connect(rig.url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        script.release.set()
        done = await rig.finished(task.task_id)
    assert (done.status, done.output, done.attempt) == ("completed", "attempt 1", 1)
