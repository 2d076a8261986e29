"""Streams: events in order, as they happen, ending in exactly one terminal event; and runs that are stopped."""

from typing import Any

STREAMING = """
import asyncio, os
async def run(input):
    yield "one "
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    yield {"step": 2}
    yield "two"
"""


async def test_events_arrive_before_the_next_is_made(start: Any) -> None:
    worker = await start(STREAMING)
    async with worker.stream("x", session="s") as events:
        first = [await anext(events), await anext(events)]
        (start.source / "go").touch()
        rest = [event async for event in events]
    assert [(number, name) for number, name, _ in first + rest] == [
        (1, "run.started"), (2, "message.delta"), (3, "custom"), (4, "message.delta"), (5, "run.completed"),
    ]  # fmt: skip
    assert first[0][2]["session_id"] == "s"
    assert first[1][2] == {"text": "one "}
    assert rest[0][2] == {"name": "output", "data": {"step": 2}}
    assert rest[-1][2]["output"] == "one two"
    assert rest[-1][2]["metadata"]["version"] == "1.2.3"


async def test_progress_and_own_events_from_sync_and_async_code(start: Any) -> None:
    code = """
from nexus.ai.agents import Agent
class A(Agent):
    def process(self, input):
        self.progress(45, "half")
        self.events.emit("found", {"n": 1})
        return self.run_id != "" and self.session_id
"""
    worker = await start(code)
    events = await worker.events("x", session="s9")
    assert [(name, data) for _, name, data in events][1:3] == [
        ("progress", {"percent": 45, "message": "half"}), ("custom", {"name": "found", "data": {"n": 1}}),
    ]  # fmt: skip
    assert events[-1][2]["output"] == "s9"


async def test_ten_thousand_items_of_a_sync_generator_all_arrive_in_order(start: Any) -> None:
    worker = await start("def run(input):\n    for n in range(10000):\n        yield f'{n} '")
    events = await worker.events()
    texts = [data["text"] for _, name, data in events if name == "message.delta"]
    assert texts == [f"{n} " for n in range(10000)]
    assert [number for number, _, _ in events] == list(range(1, 10003))


async def test_events_that_pile_up_are_an_error_and_never_lost_silently(start: Any) -> None:
    code = """
from nexus.ai.agents import Agent
class A(Agent):
    async def process(self, input):
        for n in range(20000):
            self.events.emit("n", n)
"""
    worker = await start(code)
    events = await worker.events()
    assert events[-1][1] == "run.failed"
    assert events[-1][2]["code"] == "run.events_overflow"
    assert [data["data"] for _, name, data in events if name == "custom"] == list(range(10000))


async def test_a_failure_in_the_middle_ends_the_stream_with_its_problem(start: Any) -> None:
    worker = await start("async def run(input):\n    yield 'a'\n    raise ValueError('broken')")
    events = await worker.events()
    assert [name for _, name, _ in events] == ["run.started", "message.delta", "run.failed"]
    problem = events[-1][2]
    assert (problem["code"], problem["cause"], problem["location"]) == ("agent.failed", "ValueError: broken", "agent.py:3")


LEAVING = """
import asyncio, time
async def run(input):
    try:
        await asyncio.sleep(60)
    finally:
        open("cleaned", "w").close()
def gen(input):
    try:
        while True:
            yield "tick "
            time.sleep(0.01)
    finally:
        open("cleaned", "w").close()
"""


async def test_a_client_that_leaves_cancels_a_coroutine(start: Any) -> None:
    worker = await start(LEAVING)
    async with worker.stream() as events:
        assert (await anext(events))[1] == "run.started"
    await worker.until((start.source / "cleaned").exists)


async def test_a_client_that_leaves_closes_a_sync_generator(start: Any) -> None:
    worker = await start(LEAVING, entrypoint="agent:gen")
    async with worker.stream() as events:
        await anext(events)
        assert (await anext(events))[2] == {"text": "tick "}
    await worker.until((start.source / "cleaned").exists)


async def test_a_run_that_takes_too_long_is_stopped_with_a_typed_error(start: Any) -> None:
    worker = await start(LEAVING, NEXUS_RUN_TIMEOUT_S="0.1")
    answer = await worker.run()
    assert (answer.status, answer.json["code"], answer.headers["nexus-error-code"]) == (504, "run.timeout", "run.timeout")
    assert (start.source / "cleaned").exists()
    events = await worker.events()
    assert (events[-1][1], events[-1][2]["code"]) == ("run.failed", "run.timeout")


async def test_the_callers_deadline_counts_and_code_that_ignores_it_does_not_hold_the_answer(start: Any) -> None:
    code = """
import asyncio, os
async def run(input):
    if input == "quick":
        return "quick"
    while not os.path.exists("end"):
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            open("ignored", "w").close()
"""
    worker = await start(code)
    answer = await worker.run(session="a", Nexus_Deadline="1000")
    assert answer.json["code"] == "run.timeout"
    assert (start.source / "ignored").exists()
    assert (await worker.run("quick", session="b")).output == "quick"
    assert (await worker.call("GET", "/status")).json["active_runs"] == 1
    (start.source / "end").touch()
    assert (await worker.run("quick", session="a")).output == "quick"


async def test_sync_code_that_was_stopped_keeps_its_sessions_turn(start: Any) -> None:
    code = """
import os, time
def run(input):
    if input == "slow":
        while not os.path.exists("end"):
            time.sleep(0.01)
        open("ended", "w").close()
    return os.path.exists("ended")
"""
    worker = await start(code, NEXUS_RUN_TIMEOUT_S="5")
    slow = await worker.run("slow", session="s", Nexus_Deadline="1000")
    assert slow.json["code"] == "run.timeout"
    async with worker.stream("next", session="s") as events:
        assert (await anext(events))[1] == "run.started"
        (start.source / "end").touch()
        assert [event async for event in events][-1][2]["output"] is True
