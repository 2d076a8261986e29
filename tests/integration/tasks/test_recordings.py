"""A task's calls through the worker's real relay and steps, the real door routes and a real database: done once, told again."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import rig as rigs
import test_task_api as apis
import uvicorn
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from nexus.api import app as api_app
from nexus.api import services as api_services
from nexus.core import deployments, errors, ids
from nexus.kit import clock, home
from nexus.ports import task_store as port
from nexus.stores.postgres import engine as engines
from nexus.stores.postgres import task_ask_store, task_step_store
from nexus.tasks import asks, recordings
from nexus.worker import door, relay, steps

LANE = port.Lane(tenant="default", agent="echo", environment="production")


class Bench:
    """One task that is tried again and again, and a model that counts how often it is asked."""

    def __init__(self, rig: rigs.Rig, socket: Path) -> None:
        self.rig, self.socket = rig, socket
        self.asked: list[str] = []
        self.fail_next = 0
        self.task_id = ""

    async def submit(self, **more: Any) -> None:
        self.task_id = ids.new_id(ids.TASK)
        await self.rig.store.enlist("o")
        await self.rig.store.submit(
            [port.Submission(id=self.task_id, lane=LANE, principal="k", body=b"{}", digest="d", max_attempts=9, **more)]
        )

    @contextlib.asynccontextmanager
    async def attempt(self, *, lost: bool = True) -> AsyncIterator["Attempt"]:
        """A new worker life. At its end the attempt is lost, as after a kill, unless the test ends it itself."""
        (claim,) = await self.rig.store.claim("o", limit=1, per_lane=9, paused=())
        recorder = steps.Recorder(door.Door(str(self.socket), "instance"))
        recording = recorder.begin(self.task_id, claim.attempt)
        assert recording is not None
        one = relay.Relay(str(self.socket), "instance", keys=(), active_runs=lambda: [self.task_id], recorder=recorder)
        one.start()
        try:
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{one.port}/v1", timeout=30) as client:
                yield Attempt(client, recording, claim)
        finally:
            await asyncio.to_thread(one.stop)
            await recorder.close()
            if lost:
                release = port.Release(task_id=claim.id, fence=claim.fence, pause_s=0, began=True, strike=True)
                await self.rig.store.write([release])

    async def model(self, request: Request) -> Response:
        prompt = (await request.json())["prompt"]
        self.asked.append(prompt)
        if self.fail_next:
            self.fail_next -= 1
            return Response(b'{"error":"busy"}', status_code=503)
        text = f"answer {len(self.asked)} to {prompt}"
        if prompt.startswith("stream"):

            async def pieces() -> AsyncIterator[bytes]:
                for word in text.split():
                    yield f"data: {word}\n\n".encode()

            return StreamingResponse(pieces(), media_type="text/event-stream")
        return Response(json.dumps({"text": text}), media_type="application/json")


class Attempt:
    def __init__(self, client: httpx2.AsyncClient, recording: steps.Recording, claim: port.Claim) -> None:
        self.client, self.recording, self.claim = client, recording, claim

    async def ask(self, prompt: str) -> httpx2.Response:
        headers = {"Authorization": "Bearer instance"}
        return await self.client.post("/chat/completions", json={"prompt": prompt}, headers=headers)


@contextlib.asynccontextmanager
async def opened(rig: rigs.Rig, sockets: Path) -> AsyncIterator[Bench]:
    made = Bench(rig, sockets / "control.sock")
    async with engines.open_engine(rig.url, pool_size=4) as engine:
        services = api_services.Services(
            identity=apis.Identity(),
            hosting=None,
            secrets=None,
            home=home.Home(sockets),
            recordings=recordings.Recordings(store=task_step_store.PostgresStepStore(engine)),
            asks=asks.Asks(
                store=task_ask_store.PostgresAskStore(engine), key=b"l" * 32, origin="http://host", clock=clock.SystemClock()
            ),
        )
        app = api_app.create_app(services)
        app.post("/v1/chat/completions")(made.model)
        server = uvicorn.Server(uvicorn.Config(app, uds=str(made.socket), log_config=None, lifespan="off"))
        serving = asyncio.create_task(server.serve())
        async with asyncio.timeout(30):
            while not server.started:
                await asyncio.sleep(0.01)
        try:
            yield made
        finally:
            server.should_exit = True
            await serving


@pytest.fixture
async def bench(rig: rigs.Rig, sockets: Path) -> AsyncIterator[Bench]:
    async with opened(rig, sockets) as made:
        yield made


async def test_a_new_attempt_goes_on_where_the_last_one_died(bench: Bench) -> None:
    await bench.submit()
    async with bench.attempt() as first:
        said = [(await first.ask(f"q{number}")).json() for number in range(4)]
    async with bench.attempt() as second:
        again = [(await second.ask(f"q{number}")).json() for number in range(4)]
        assert again == said
        assert len(bench.asked) == 4, "nothing was paid for twice"
        assert (await second.ask("q4")).json() == {"text": "answer 5 to q4"}
    async with bench.attempt() as third:
        assert [(await third.ask(f"q{number}")).status_code for number in range(5)] == [200] * 5
    assert bench.asked == ["q0", "q1", "q2", "q3", "q4"]


async def test_the_same_question_twice_has_two_answers(bench: Bench) -> None:
    await bench.submit()
    async with bench.attempt() as first:
        said = [(await first.ask("same")).text for _ in range(3)]
    async with bench.attempt() as second:
        assert [(await second.ask("same")).text for _ in range(3)] == said
    assert len(set(said)) == 3


async def test_where_the_agent_diverges_the_recording_ends(bench: Bench) -> None:
    await bench.submit()
    async with bench.attempt() as first:
        for prompt in ("a", "b", "c"):
            await first.ask(prompt)
    async with bench.attempt() as second:
        for prompt in ("a", "other", "c"):
            await second.ask(prompt)
    assert bench.asked == ["a", "b", "c", "other", "c"]


async def test_a_stream_is_told_again_byte_for_byte(bench: Bench) -> None:
    await bench.submit()
    async with bench.attempt() as first:
        said = (await first.ask("stream it")).content
    async with bench.attempt() as second:
        answer = await second.ask("stream it")
    assert answer.content == said
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert len(bench.asked) == 1


async def test_a_failed_call_is_not_recorded_and_does_not_end_the_recording(bench: Bench) -> None:
    await bench.submit()
    bench.fail_next = 1
    async with bench.attempt() as first:
        assert (await first.ask("q")).status_code == 503
        said = (await first.ask("q")).json()
        await first.ask("r")
    async with bench.attempt() as second:
        assert (await second.ask("q")).json() == said
        await second.ask("r")
    assert len(bench.asked) == 3


async def test_a_named_step_is_made_once_over_all_attempts(bench: Bench) -> None:
    await bench.submit()
    made = []

    async def charge() -> Any:
        made.append(1)
        return {"charged": len(made), "ö": "\ud800"}

    async with bench.attempt() as first:
        said = await first.recording.step("charge Ünicode/1", charge)
        assert await first.recording.step("charge Ünicode/1", charge) != said, "the second of that name is another step"
    async with bench.attempt() as second:
        assert await second.recording.step("charge Ünicode/1", charge) == said
    assert len(made) == 2


async def test_a_step_that_raised_is_made_again_and_one_that_is_no_json_says_so(bench: Bench) -> None:
    await bench.submit()

    async def breaks() -> Any:
        raise ValueError("no")

    async def opaque() -> Any:
        return object()

    async def works() -> Any:
        return 7

    async with bench.attempt() as first:
        with pytest.raises(ValueError, match="no"):
            await first.recording.step("s", breaks)
        assert await first.recording.step("s", works) == 7
        with pytest.raises(errors.AgentFailed) as told:
            await first.recording.step("t", opaque)
    assert told.value.code == "step.unserialisable"
    async with bench.attempt() as second:
        assert await second.recording.step("s", breaks) == 7


@pytest.mark.parametrize(("policy", "outcome"), [("repeat", 8), ("fail", "step.unknown_outcome")])
async def test_the_policy_decides_about_a_call_nobody_saw_the_end_of(bench: Bench, policy: str, outcome: object) -> None:
    await bench.submit(retry=port.Retry(unknown=policy))

    async def killed() -> Any:
        raise asyncio.CancelledError

    async def works() -> Any:
        return 8

    async with bench.attempt() as first:
        with pytest.raises(asyncio.CancelledError):
            await first.recording.step("pay", killed)
    async with bench.attempt() as second:
        try:
            found: object = await second.recording.step("pay", works)
        except errors.Conflict as error:
            found = error.code
    assert found == outcome


async def test_a_zombie_can_neither_read_nor_write_the_recording(bench: Bench) -> None:
    await bench.submit()

    async def works() -> Any:
        return 1

    begun, going = asyncio.Event(), asyncio.Event()

    async def slow() -> Any:
        begun.set()
        await going.wait()
        return "zombie"

    async with bench.attempt() as first:
        zombie = first.recording
        late = asyncio.create_task(zombie.step("s", slow))
        await asyncio.wait_for(begun.wait(), 30)
    async with bench.attempt() as second:
        assert await second.recording.step("s", works) == 1
        going.set()
        with pytest.raises(errors.Conflict) as told:
            await late
        assert told.value.code == "task.fenced"
        with pytest.raises(errors.Conflict):
            await zombie.step("other", works)
    async with bench.attempt() as third:
        assert await third.recording.step("s", works) == 1


async def test_an_instance_of_another_agent_finds_nothing(bench: Bench) -> None:
    await bench.submit()
    async with bench.attempt() as first:
        other = deployments.InstanceOwner(
            instance_id="i", tenant="default", agent="other", environment="production", deployment_id="d", version="1"
        )
        async with engines.open_engine(bench.rig.url, pool_size=1) as engine:
            rooms = recordings.Recordings(store=task_step_store.PostgresStepStore(engine))
            with pytest.raises(errors.Conflict):
                await rooms.open(other, bench.task_id, key="step/s/0", attempt=first.claim.attempt, live=False)
            for key in ("nonsense", "step/a b/0", "step/s/x", "step/" + "s" * 300 + "/0"):
                with pytest.raises(errors.Invalid):
                    await rooms.open(apis.OWNER, bench.task_id, key=key, attempt=1, live=False)


def test_plain_runs_are_not_recorded() -> None:
    assert steps.Recorder(door.Door("/nowhere", "t")).begin(ids.new_id(ids.RUN), 1) is None
