"""A dispatcher dies before and after each of its durable writes; another finishes the work. Nothing is lost or doubled."""

import asyncio
import sys
from pathlib import Path

import pytest
import rig as rigs
import test_dispatcher_death as deaths

TERMINAL = {"run.completed", "run.failed", "run.cancelled"}
POINTS = [
    f"{when} {verb} {number}"
    for verb, number in (("claim", 1), ("write", 1), ("write", 2), ("write", 4), ("beat", 2), ("tend", 2), ("enlist", 1))
    for when in ("before", "after")
]


async def chatty(call: rigs.Call) -> None:
    """Several durable writes for each run, as it takes its time between events, and one attempt that fails on the way."""
    call.begin()
    call.send("run.started", {})
    await asyncio.sleep(0.05)
    call.send("progress", {"percent": 50}, 2)
    await asyncio.sleep(0.05)
    if call.attempt == 1 and call.body["input"] == 0:
        return  # lost: it is released and tried again
    call.send("run.completed", {"output": call.body["input"], "metadata": {}}, 3)
    call.end()


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
async def test_dying_at_any_point_loses_and_doubles_nothing(rig: rigs.Rig, point: str) -> None:
    tasks = [await rig.submit(number, webhook="http://127.0.0.1:9/hook", max_attempts=9) for number in range(5)]
    await rig.submit(99, delay=3600)
    script = Path(__file__).parent / "dying_process.py"
    url = f"{rig.url}{deaths.SOON_CUT}"
    async with rigs.gateway(rig.socket, chatty) as gateway:
        child = await asyncio.create_subprocess_exec(sys.executable, str(script), url, str(rig.socket), "victim", point)
        try:
            assert await asyncio.wait_for(child.wait(), rigs.PATIENCE_S) == -9, "it died where it was told to"
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        async with rig.dispatcher("heir"):
            done = [await rig.finished(task.task_id) for task in tasks]
    assert [(view.status, view.output) for view in done] == [("completed", number) for number in range(5)]
    for view in done:
        events = await rig.events(view.task_id)
        assert [event.seq for event in events] == list(range(1, len(events) + 1)), "numbered without a gap"
        assert [event.name for event in events if event.name in TERMINAL] == ["run.completed"]
        runs = sum(call.fields["nexus-run-id"] == view.task_id for call in gateway.calls)
        assert view.attempt >= runs, "no execution without a recorded attempt"
        assert view.webhook is not None
        assert view.webhook["status"] == "pending", "one delivery was born with the result"
