"""Sessions: turns in order of arrival, shared state as a transaction of the run, limits on what runs at once."""

import asyncio
from typing import Any

from nexus.kit import session_tokens

COUNTER = """
from nexus.ai.agents import Agent
class Counter(Agent):
    async def process(self, input):
        self.state.setdefault("seen", []).append(input)
        if input == "fail":
            raise ValueError("no")
        if input == "bad":
            self.state["bad"] = object()
        return self.state["seen"]
"""


async def test_two_runs_of_one_session_see_the_same_state(start: Any) -> None:
    worker = await start(COUNTER)
    assert (await worker.run("a", session="s")).output == ["a"]
    assert (await worker.run("b", session="s")).output == ["a", "b"]
    assert (await worker.run("c", session="other")).output == ["c"]
    assert (await worker.run("d")).output == ["d"]


async def test_a_failed_run_leaves_the_state_as_it_was(start: Any) -> None:
    worker = await start(COUNTER)
    await worker.run("a", session="s")
    assert (await worker.run("fail", session="s")).status == 500
    assert (await worker.run("bad", session="s")).json["code"] == "agent.unserialisable"
    assert (await worker.run("b", session="s")).output == ["a", "b"]


async def test_state_is_kept_by_the_platform_and_survives_the_process(hosted: Any, door: Any) -> None:
    worker = await hosted(COUNTER)
    await worker.run("a", session="s")
    assert door.states == {"s": {"seen": ["a"]}}
    await worker.stop()
    worker = await hosted(COUNTER)
    assert (await worker.run("b", session="s")).output == ["a", "b"]
    door.states["s"] = {"seen": ["elsewhere"]}
    assert (await worker.run("c", session="s")).output == ["elsewhere", "c"]


async def test_the_only_worker_of_a_session_asks_for_its_state_once_and_is_told_when_it_was_overtaken(
    hosted: Any, door: Any
) -> None:
    door.versions = {}
    door.token = session_tokens.mint("h" * 64, instance_id="ins_1", session_id="s", expires_at=9e9)
    worker = await hosted(COUNTER, NEXUS_TOKEN=door.token)
    assert [(await worker.run(text, session="s")).output for text in "abc"] == [["a"], ["a", "b"], ["a", "b", "c"]]
    assert [each.method for each in door.seen] == ["GET", "PUT", "PUT", "PUT"]
    door.states["s"], door.versions["s"] = {"seen": ["elsewhere"]}, 9
    refused = await worker.run("lost", session="s")
    assert (refused.status, refused.json["code"]) == (409, "state.moved")
    assert (await worker.run("d", session="s")).output == ["elsewhere", "d"]


async def test_state_that_cannot_be_read_fails_the_run_and_a_known_one_goes_on(hosted: Any, door: Any) -> None:
    worker = await hosted(COUNTER)
    await worker.run("a", session="known")
    door.state_status = 503
    refused = await worker.run("a", session="fresh")
    assert (refused.status, refused.json["code"]) == (503, "state.unavailable")
    assert (await worker.run("b", session="known")).output == ["a", "b"]
    door.state_status = 200
    assert (await worker.run("c", session="known")).output == ["a", "b", "c"]
    assert door.states["known"] == {"seen": ["a", "b", "c"]}


async def test_a_state_that_is_too_large_is_an_error_of_the_run(hosted: Any, door: Any) -> None:
    worker = await hosted(COUNTER)
    await worker.run("a", session="s")
    door.state_status = 413
    refused = await worker.run("b", session="s")
    assert (refused.status, refused.json["code"]) == (413, "state.too_large")
    door.state_status = 200
    assert (await worker.run("c", session="s")).output == ["a", "c"]


async def test_state_nobody_foresaw_is_read_all_the_same(hosted: Any, door: Any) -> None:
    code = """
from nexus.ai.agents import Agent
def touch(agent):
    agent.state["n"] = agent.state.get("n", 0) + 1
    return agent.state["n"]
class A(Agent):
    async def process(self, input):
        return touch(self)
"""
    door.states["s"] = {"n": 41}
    worker = await hosted(code)
    assert (await worker.run(session="s")).output == 42
    assert door.states["s"] == {"n": 42}


async def test_an_agent_without_state_asks_the_platform_for_nothing(hosted: Any, door: Any) -> None:
    worker = await hosted("async def run(input):\n    return input")
    assert (await worker.run("x", session="s")).output == "x"
    assert door.seen == []


GATED = """
import asyncio, os
running, most, order = 0, 0, []
async def run(input):
    global running, most
    running += 1; most = max(most, running); order.append(input)
    open("began-" + input, "w").close()
    while not os.path.exists("go"):
        await asyncio.sleep(0.005)
    running -= 1
    return {"most": most, "order": list(order)}
"""


async def test_runs_of_one_session_take_turns_in_order_of_arrival(start: Any) -> None:
    worker = await start(GATED)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(worker.run("0", session="s"))
        await worker.until((start.source / "began-0").exists)
        later = []
        for n in range(1, 4):
            later.append(group.create_task(worker.run(str(n), session="s")))
            while (await worker.call("GET", "/status")).json["active_runs"] < n + 1:
                await asyncio.sleep(0.005)
        (start.source / "go").touch()
    assert first.result().output == {"most": 1, "order": ["0"]}
    assert later[-1].result().output == {"most": 1, "order": ["0", "1", "2", "3"]}


async def test_sessions_run_side_by_side_up_to_the_limit(start: Any) -> None:
    worker = await start(GATED, NEXUS_CONCURRENCY="2")
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(worker.run(str(n), session=f"s{n}")) for n in range(5)]
        await worker.until(lambda: len(list(start.source.glob("began-*"))) == 2)
        while (await worker.call("GET", "/status")).json["active_runs"] < 5:
            await asyncio.sleep(0.005)
        (start.source / "go").touch()
    assert max(task.result().output["most"] for task in tasks) == 2


async def test_a_run_whose_client_leaves_while_it_waits_never_begins(start: Any) -> None:
    worker = await start(GATED)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(worker.run("0", session="s"))
        await worker.until((start.source / "began-0").exists)
        async with worker.stream("never", session="s") as events:
            assert (await anext(events))[1] == "run.started"
        while (await worker.call("GET", "/status")).json["active_runs"] > 1:
            await asyncio.sleep(0.005)
        (start.source / "go").touch()
    assert first.result().output["order"] == ["0"]
    assert (await worker.run("2", session="s")).output["order"] == ["0", "2"]


async def test_a_second_message_is_rejected_where_that_is_the_rule(start: Any) -> None:
    worker = await start(GATED, NEXUS_ON_MESSAGE="reject")
    async with asyncio.TaskGroup() as group:
        first = group.create_task(worker.run("0", session="s"))
        await worker.until((start.source / "began-0").exists)
        refused = await worker.run("1", session="s")
        assert (refused.status, refused.json["code"]) == (409, "session.busy")
        other = group.create_task(worker.run("2", session="other"))
        await worker.until((start.source / "began-2").exists)
        (start.source / "go").touch()
    assert (first.result().status, other.result().status) == (200, 200)
    assert (await worker.run("3", session="s")).status == 200


async def test_a_second_message_interrupts_where_that_is_the_rule(start: Any) -> None:
    worker = await start(GATED, NEXUS_ON_MESSAGE="interrupt")
    async with asyncio.TaskGroup() as group:
        first = group.create_task(worker.run("0", session="s"))
        await worker.until((start.source / "began-0").exists)
        second = group.create_task(worker.run("1", session="s"))
        await worker.until((start.source / "began-1").exists)
        (start.source / "go").touch()
    assert (first.result().status, first.result().json["code"]) == (409, "run.interrupted")
    assert second.result().output["order"] == ["0", "1"]


async def test_messages_run_side_by_side_where_that_is_the_rule(start: Any) -> None:
    worker = await start(GATED, NEXUS_ON_MESSAGE="parallel")
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(worker.run(str(n), session="s")) for n in range(3)]
        await worker.until(lambda: len(list(start.source.glob("began-*"))) == 3)
        (start.source / "go").touch()
    assert max(task.result().output["most"] for task in tasks) == 3


async def test_runs_side_by_side_share_the_state(hosted: Any, door: Any) -> None:
    code = """
import asyncio, os
from nexus.ai.agents import Agent
class A(Agent):
    async def process(self, input):
        self.state[input] = True
        open("began-" + input, "w").close()
        while not os.path.exists("go-" + input):
            await asyncio.sleep(0.005)
        return sorted(self.state)
"""
    worker = await hosted(code, NEXUS_ON_MESSAGE="parallel")
    async with asyncio.TaskGroup() as group:
        first = group.create_task(worker.run("a", session="s"))
        await worker.until((hosted.source / "began-a").exists)
        second = group.create_task(worker.run("b", session="s"))
        await worker.until((hosted.source / "began-b").exists)
        (hosted.source / "go-a").touch()
        assert (await first).output == ["a", "b"]
        (hosted.source / "go-b").touch()
    assert second.result().output == ["a", "b"]
    assert door.states["s"] == {"a": True, "b": True}
