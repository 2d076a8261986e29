"""The platform's checkpointer for LangGraph over a real door and a real database: LangGraph's own conformance suite, and graphs
that are interrupted and killed."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from tests.integration.frameworks.conftest import asked
from tests.integration.worker import conftest as workers

from nexus.api import app as api_app
from nexus.api import services as api_services
from nexus.core import deployments, ids, principals
from nexus.kit import clock, home, session_tokens
from nexus.ports import task_store as port
from nexus.stores.postgres import checkpoint_store, engine, task_ask_store, task_step_store, task_store
from nexus.tasks import asks, checkpoints, recordings

SOURCE = Path(__file__).parent / "langgraph_saver"
OWNER = deployments.InstanceOwner(
    instance_id="ins_1", tenant="default", agent="graph", environment="production", deployment_id="dep_1", version="1"
)
LANE = port.Lane(tenant="default", agent="graph", environment="production")
CALLER = principals.Principal(id="key_1", tenant="default", roles=frozenset({principals.Role.DEVELOPER}))
BASE = {"put", "put_writes", "get_tuple", "list", "delete_thread", "delete_for_runs"}
pytestmark = [
    pytest.mark.slow, pytest.mark.timeout(300, func_only=True),
    pytest.mark.skipif(not asked("langgraph"), reason="make frameworks"),
]  # fmt: skip


class Identity:
    async def instance_of(self, token: str) -> deployments.InstanceOwner:
        return OWNER


@dataclass
class Control:
    """The rooms behind the door."""

    socket: Path
    graphs: checkpoints.Checkpoints
    calls: list[str]
    tasks: task_store.PostgresTaskStore
    asks: asks.Asks


@pytest.fixture
async def control(postgres_url: str) -> AsyncIterator[Control]:
    folder = Path(tempfile.mkdtemp(prefix="nxs-"))
    async with engine.open_engine(postgres_url, pool_size=6) as database:
        questions = asks.Asks(
            store=task_ask_store.PostgresAskStore(database), key=b"l" * 32, origin="http://host", clock=clock.SystemClock()
        )
        graphs, calls = checkpoints.Checkpoints(store=checkpoint_store.PostgresCheckpointStore(database)), list[str]()
        app = api_app.create_app(None)

        async def noted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                calls.append(scope["method"])
            await app(scope, receive, send)

        services = api_services.Services(
            identity=Identity(), hosting=None, secrets=None, home=home.Home(folder), asks=questions,
            checkpoints=graphs,
            recordings=recordings.Recordings(store=task_step_store.PostgresStepStore(database)),
        )  # fmt: skip
        app.state.services = services
        config = uvicorn.Config(noted, uds=str(folder / "door.sock"), log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        yield Control(folder / "door.sock", graphs, calls, task_store.PostgresTaskStore(database), questions)
        server.should_exit = True
        await serving
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("how", ["asks", "recalls"])
async def test_langgraphs_own_conformance_suite(build: Callable[..., Any], copy: Path, control: Control, how: str) -> None:
    python = await build(SOURCE)
    process = await asyncio.create_subprocess_exec(
        str(python), str(SOURCE / "conformance.py"), str(control.socket), "nxi_test", how,
        env={"PYTHONPATH": f"{copy / 'lib'}", "PATH": ""}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    told, wrong = await process.communicate()
    assert process.returncode == 0, wrong.decode()[-4000:]
    results = json.loads(told.decode().splitlines()[-1])
    failures = {name: found["failures"] for name, found in results.items() if found["failed"]}
    assert failures == {}
    assert set(results) >= BASE
    assert sum(found["passed"] for found in results.values()) > 60


GRAPH = """
import os
from pathlib import Path
from typing import TypedDict
from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt

SEEN = Path({seen!r})

class State(TypedDict, total=False):
    order: int
    first: str
    answer: str

def note(text):
    with SEEN.open("a") as file:
        file.write(text + "\\n")

def first(state):
    note("first")
    return {{"first": f"order {{state['order']}}"}}

def second(state):
    if {dies!r} and SEEN.read_text().count("second") == 0:
        note("second")
        os._exit(9)
    note("second")
    return {{"answer": interrupt({{"question": "Ship it?"}})}} if {asks!r} else {{"answer": "done"}}

builder = StateGraph(State)
builder.add_node("first", first)
builder.add_node("second", second)
builder.add_edge(START, "first")
builder.add_edge("first", "second")
builder.add_edge("second", END)
graph = builder.compile()
"""


class Bench:
    """One task of a real worker in a real LangGraph environment."""

    def __init__(self, control: Control, start: workers.Start, tmp_path: Path) -> None:
        self.control, self.start, self.seen = control, start, tmp_path / "seen"
        self.task_id, self.session_id = ids.new_id(ids.TASK), ids.new_id(ids.SESSION)

    async def submit(self) -> None:
        await self.control.tasks.enlist("o")
        entry = port.Submission(id=self.task_id, lane=LANE, principal="k", body=b"{}", digest="d", session_id=self.session_id)
        await self.control.tasks.submit([entry])

    async def worker(self, *, dies: bool = False, asks: bool = False) -> workers.Worker:
        return await self.start(GRAPH.format(seen=str(self.seen), dies=dies, asks=asks), entrypoint="agent:graph")

    async def attempt(self, worker: workers.Worker, value: Any) -> tuple[port.Claim, list[tuple[str, Any]]]:
        (claim,) = await self.control.tasks.claim("o", limit=1, per_lane=9, paused=())
        headers = {
            "Accept": "text/event-stream", "Nexus-Run-Id": self.task_id, "Nexus-Session-Id": self.session_id,
            "Nexus-Attempt": str(claim.attempt),
        }  # fmt: skip
        answer = await worker.call("POST", "/run", json.dumps({"input": value}).encode(), headers)
        lines = answer.body.decode().splitlines()
        names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
        data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        return claim, list(zip(names, data, strict=True))

    def nodes(self) -> list[str]:
        return self.seen.read_text().split()


@pytest.fixture
async def bench(build: Callable[..., Any], copy: Path, control: Control, tmp_path: Path) -> AsyncIterator[Bench]:
    folder = control.socket.parent / "w"
    folder.mkdir()
    starter = workers.Start((await build(SOURCE), copy), folder, door=str(control.socket))
    made = Bench(control, starter, tmp_path)
    await made.submit()
    yield made
    await workers._end(starter)


async def test_an_interrupt_asks_a_person_and_the_graph_goes_on_in_another_process(bench: Bench) -> None:
    worker = await bench.worker(asks=True)
    claim, events = await bench.attempt(worker, {"order": 7})
    name, told = events[-1]
    assert name == "run.waiting", events
    ask_id = told["asks"][0]["ask_id"]
    assert told["asks"][0]["question"] == "Ship it?"
    await bench.control.tasks.write([port.Park(task_id=claim.id, fence=claim.fence, asks=(ask_id,))])
    await worker.stop()
    await bench.control.asks.answer(CALLER, bench.task_id, {"when": "today"})
    _, events = await bench.attempt(await bench.worker(asks=True), {"order": 7})
    assert events[-1][0] == "run.completed", events
    assert events[-1][1]["output"] == {"order": 7, "first": "order 7", "answer": {"when": "today"}}
    assert bench.nodes() == ["first", "second", "second"], "what was done before the question is not done again"


async def test_a_killed_attempt_goes_on_at_the_node_that_it_was_in(bench: Bench) -> None:
    worker = await bench.worker(dies=True)
    with pytest.raises(Exception):  # noqa: B017 - the connection breaks in one way or another
        await bench.attempt(worker, {"order": 8})
    await worker.process.wait()
    claimed = await bench.control.tasks.fetch("default", bench.task_id)
    assert claimed is not None
    await bench.control.tasks.write([port.Release(task_id=bench.task_id, fence=1, pause_s=0, began=True, strike=True)])
    _, events = await bench.attempt(await bench.worker(dies=True), {"order": 8})
    assert events[-1][1]["output"] == {"order": 8, "first": "order 8", "answer": "done"}
    assert bench.nodes() == ["first", "second", "second"]


async def test_a_plain_run_tells_of_its_interrupt_and_the_next_one_resumes(bench: Bench) -> None:
    worker = await bench.worker(asks=True)
    told = (await worker.run({"order": 9}, session="ses-1")).output
    assert [each["value"] for each in told["interrupts"]] == [{"question": "Ship it?"}]
    await worker.stop()
    worker = await bench.worker(asks=True)
    assert (await worker.run({"resume": "yes"}, session="ses-1")).output["answer"] == "yes"
    assert (await worker.run({"order": 1}, session="ses-1")).output["interrupts"], "a new message begins anew"


CHAT = """
from typing import TypedDict
from langgraph.graph import END, START, StateGraph

class State(TypedDict, total=False):
    said: str
    told: list
    fails: bool

def node(state):
    if state.get("fails"):
        raise RuntimeError("as asked")
    return {"told": [*state.get("told", []), state["said"]]}

builder = StateGraph(State)
builder.add_node("node", node)
builder.add_edge(START, "node")
builder.add_edge("node", END)
graph = builder.compile()
"""


class Talk:
    """Workers of one session, each with a token for it: the only ones of its thread."""

    def __init__(self, control: Control, box: tuple[Path, Path]) -> None:
        self.control, self.box, self.session_id = control, box, ids.new_id(ids.SESSION)
        self.starts: list[workers.Start] = []

    async def worker(self) -> workers.Worker:
        folder = self.control.socket.parent / f"w{len(self.starts)}"
        folder.mkdir()
        start = workers.Start(self.box, folder, door=str(self.control.socket))
        self.starts.append(start)
        token = session_tokens.mint("h" * 64, instance_id="ins_1", session_id=self.session_id, expires_at=9e9)
        return await start(CHAT, entrypoint="agent:graph", NEXUS_TOKEN=token)

    async def say(self, worker: workers.Worker, text: str, **more: Any) -> Any:
        self.control.calls.clear()
        answer = await worker.run({"said": text, **more}, session=self.session_id)
        return answer.json["output"]["told"] if answer.status == 200 else answer.json["code"]


@pytest.fixture
async def talk(build: Callable[..., Any], copy: Path, control: Control) -> AsyncIterator[Talk]:
    made = Talk(control, (await build(SOURCE), copy))
    yield made
    for start in made.starts:
        await workers._end(start)


async def test_a_live_session_only_writes_and_a_worker_that_was_overtaken_is_told(talk: Talk) -> None:
    first = await talk.worker()
    assert await talk.say(first, "a") == ["a"]
    assert talk.control.calls == ["GET", "PUT"]
    assert await talk.say(first, "b") == ["a", "b"]
    assert talk.control.calls == ["PUT"]
    assert await talk.say(first, "no", fails=True) == "agent.failed"
    assert await talk.say(first, "c", fails=False) == ["a", "b", "c"]
    second = await talk.worker()
    assert await talk.say(second, "d") == ["a", "b", "c", "d"]
    assert await talk.say(first, "lost") == "checkpoint.moved"
    assert await talk.say(first, "e") == ["a", "b", "c", "d", "e"]
    assert await talk.say(second, "lost") == "checkpoint.moved"
    assert await talk.say(second, "f") == ["a", "b", "c", "d", "e", "f"]


async def test_a_thread_that_is_deleted_meanwhile_is_not_brought_back_in_part(talk: Talk) -> None:
    worker = await talk.worker()
    assert await talk.say(worker, "a") == ["a"]
    await talk.control.graphs.delete(OWNER, talk.session_id)
    assert await talk.say(worker, "b") == "checkpoint.moved"
    assert await talk.say(worker, "c") == ["c"]
