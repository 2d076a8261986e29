"""What a session's first run will read is fetched before it comes: the run waits for that, and is not hurt when it fails."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nexus.core import errors
from nexus.worker import bodies, execution, runs, settings
from nexus.worker import door as doors


class Foreseeing:
    name = "foreseeing"
    uses_state = True

    def __init__(self, error: Exception | None) -> None:
        self.error, self.order, self.may_end = error, list[str](), asyncio.Event()

    async def foresee(self, door: doors.Door, session_id: str) -> None:
        self.order.append(f"foresee {session_id}")
        await self.may_end.wait()
        self.order.append("fetched")
        if self.error is not None:
            raise self.error

    async def run(self, run: runs.Run) -> Any:
        self.order.append("run")
        return dict(run.state)


class Door(doors.Door):
    """A state at version 7."""

    def __init__(self) -> None:
        super().__init__("/nowhere", "nxe_none")
        self.session_id, self.loads = "s", 0

    async def load_state(self, session_id: str) -> tuple[dict[str, Any], int | None]:
        self.loads += 1
        return {"n": 41}, 7


@pytest.mark.parametrize("error", [None, errors.Unavailable("away", code="door.unreachable")])
async def test_the_first_run_finds_what_was_fetched_for_it(error: Exception | None) -> None:
    adapter, door = Foreseeing(error), Door()
    executor = execution.Executor(settings.Settings(source=Path(), session_id="s"), adapter, door=door)
    executor.expect("s")
    call = bodies.Call(input=None, context={})
    asked: dict[str, Any] = {"session_id": "s", "streaming": False, "timeout_s": 9, "traceparent": ""}
    first = executor.begin(call, run_id="run_1", **asked)
    while len(adapter.order) < 1:
        await asyncio.sleep(0)
    adapter.may_end.set()
    assert (await first.done).output == '{"n":41}'
    assert adapter.order == ["foresee s", "fetched", "run"]
    assert (await executor.begin(call, run_id="run_2", **asked).done).output == '{"n":41}'
    assert door.loads == 1
