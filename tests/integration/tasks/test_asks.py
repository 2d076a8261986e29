"""A run that asks people: it ends, waits without a process, and goes on with the answer, whoever dies in between."""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import rig as rigs
import test_recordings as recorded
import test_task_api as apis

from nexus.ai import agents
from nexus.core import errors
from nexus.kit import clock
from nexus.ports import run as runs
from nexus.ports import task_store as port
from nexus.stores.postgres import engine as engines
from nexus.stores.postgres import task_ask_store
from nexus.tasks import asks as asking

Question = runs.Question


@pytest.fixture
async def bench(rig: rigs.Rig, sockets: Path) -> AsyncIterator[recorded.Bench]:
    async with recorded.opened(rig, sockets) as made:
        yield made


class Room:
    """The verbs of callers, over the same database."""

    def __init__(self, asks: asking.Asks, woken: list[int]) -> None:
        self.asks, self.woken = asks, woken

    async def open(self) -> list[Any]:
        return [ask for ask in await self.asks.list(rigs.CALLER) if ask.status == "open"]


@pytest.fixture
async def room(rig: rigs.Rig) -> AsyncIterator[Room]:
    woken: list[int] = []
    async with engines.open_engine(rig.url, pool_size=2) as engine:
        asks = asking.Asks(
            store=task_ask_store.PostgresAskStore(engine),
            key=b"l" * 32,
            origin="http://host/",
            clock=clock.SystemClock(),
            resumed=lambda: woken.append(1),
        )
        yield Room(asks, woken)


async def park(bench: recorded.Bench, claim: port.Claim, ask_id: str) -> None:
    assert await bench.rig.store.write([port.Park(task_id=claim.id, fence=claim.fence, asks=(ask_id,))]) == [True]


async def asked(attempt: recorded.Attempt, question: Question) -> str:
    """Ask, and be told to leave; the question's id."""
    left: list[Any] = []
    attempt.recording.leave = left.append
    with pytest.raises(runs.Asked):
        await attempt.recording.ask(question)
    return str(left[0]["ask_id"])


async def test_it_rests_until_it_is_answered_and_then_gets_the_answer(bench: recorded.Bench, room: Room) -> None:
    await bench.submit()
    question = Question(text="Refund?", choices=["yes", "no"])
    async with bench.attempt(lost=False) as first:
        said = (await first.ask("q")).json()
        ask_id = await asked(first, question)
        await park(bench, first.claim, ask_id)
    view = await bench.rig.service.show(rigs.CALLER, bench.task_id)
    assert (view.status, view.asking) == ("waiting", True)
    assert not await bench.rig.store.claim("o", limit=1, per_lane=9, paused=()), "it holds nothing while it waits"
    (shown,) = await room.open()
    assert (shown.question, shown.choices, shown.url.startswith("http://host/asks/ask_")) == ("Refund?", ["yes", "no"], True)
    with pytest.raises(errors.Invalid):
        await room.asks.answer(rigs.CALLER, bench.task_id, "perhaps")
    settled = await room.asks.answer(rigs.CALLER, bench.task_id, "yes")
    assert (settled.status, settled.answered_by, room.woken) == ("answered", rigs.CALLER.id, [1])
    assert (await room.asks.answer(rigs.CALLER, bench.task_id, "yes", ask_id=ask_id)).answer == "yes", (
        "the same again is harmless"
    )
    with pytest.raises(errors.Conflict) as late:
        await room.asks.answer(rigs.CALLER, bench.task_id, "no", ask_id=ask_id)
    assert late.value.code == "ask.settled"
    async with bench.attempt() as second:
        assert second.claim.waits == 1
        assert (await second.ask("q")).json() == said
        assert await second.recording.ask(question) == "yes"
        assert len(bench.asked) == 1
    assert [event.name for event in await bench.rig.events(bench.task_id)] == ["ask.answered"]


async def test_whoever_dies_before_the_rest_asks_the_same_question_again(bench: recorded.Bench, room: Room) -> None:
    await bench.submit()
    question = Question(text="Sure?")
    async with bench.attempt() as first:
        ask_id = await asked(first, question)
    async with bench.attempt() as second:
        assert await asked(second, question) == ask_id
        await room.asks.answer(rigs.CALLER, bench.task_id, "while it runs")
        await park(bench, second.claim, ask_id)
        assert (await bench.rig.service.show(rigs.CALLER, bench.task_id)).status == "pending", "the answer was there already"
    async with bench.attempt() as third:
        told: list[str] = []
        third.recording.tell = lambda name, data: told.append(name)
        assert await third.recording.ask(question) == "while it runs"
        assert told == ["ask.answered"], "nobody had told of it yet"
    assert len(await room.asks.list(rigs.CALLER, task_id=bench.task_id)) == 1


async def test_an_answer_and_the_rest_at_the_same_moment_lose_nothing(bench: recorded.Bench, room: Room) -> None:
    for number in range(10):
        await bench.submit()
        async with bench.attempt(lost=False) as attempt:
            ask_id = await asked(attempt, Question(text=f"{number}?"))
            await asyncio.gather(park(bench, attempt.claim, ask_id), room.asks.answer(rigs.CALLER, bench.task_id, 1))
        view = await bench.rig.service.show(rigs.CALLER, bench.task_id)
        assert (view.status, view.asking) == ("pending", False)
        async with bench.attempt(lost=False) as attempt:
            assert await attempt.recording.ask(Question(text=f"{number}?")) == 1
            finish = port.Finish(
                task_id=attempt.claim.id, fence=attempt.claim.fence, phase=rigs.RunPhase.COMPLETED,
                event=port.TaskEvent(seq=attempt.claim.last_seq + 9, name="run.completed", data="{}"),
            )  # fmt: skip
            assert await bench.rig.store.write([finish]) == [True]


async def test_two_questions_at_once_are_told_apart(bench: recorded.Bench, room: Room) -> None:
    await bench.submit()
    async with bench.attempt(lost=False) as first:
        one, two = await asked(first, Question(text="a?")), await asked(first, Question(text="b?"))
        await bench.rig.store.write([port.Park(task_id=first.claim.id, fence=first.claim.fence, asks=(one, two))])
    with pytest.raises(errors.Conflict) as unclear:
        await room.asks.answer(rigs.CALLER, bench.task_id, 1)
    assert unclear.value.code == "ask.ambiguous"
    await room.asks.answer(rigs.CALLER, bench.task_id, "B", ask_id=two)
    async with bench.attempt(lost=False) as second:
        assert await asked(second, Question(text="a?")) == one
        assert await second.recording.ask(Question(text="b?")) == "B"
        await park(bench, second.claim, one)
    assert (await bench.rig.service.show(rigs.CALLER, bench.task_id)).status == "waiting"


@pytest.mark.parametrize("default", [(), ("later",)])
async def test_too_late(bench: recorded.Bench, room: Room, default: tuple[Any, ...]) -> None:
    await bench.submit()
    question = Question(text="Quick?", timeout_s=0.05, default=default)
    async with bench.attempt(lost=False) as first:
        await park(bench, first.claim, await asked(first, question))
    async with asyncio.timeout(rigs.PATIENCE_S):
        while not await room.asks.expire():
            await asyncio.sleep(0.01)
    assert await room.asks.expire() == 0
    async with bench.attempt() as second:
        if default:
            assert await second.recording.ask(question) == "later"
        else:
            with pytest.raises(errors.Exhausted) as late:
                await second.recording.ask(question)
            assert late.value.code == "ask.timeout"
    with pytest.raises(errors.NotFound):
        await room.asks.answer(rigs.CALLER, bench.task_id, "x")
    assert [event.name for event in await bench.rig.events(bench.task_id)] == ["ask.expired"]


async def test_pause_and_answer_each_hold_it(bench: recorded.Bench, room: Room) -> None:
    await bench.submit()
    async with bench.attempt(lost=False) as first:
        await park(bench, first.claim, await asked(first, Question(text="Go?")))
    rooms = bench.rig.service
    assert (await rooms.pause(rigs.CALLER, bench.task_id)).paused
    assert (await rooms.resume(rigs.CALLER, bench.task_id)).status == "waiting", "nobody has answered"
    await rooms.pause(rigs.CALLER, bench.task_id)
    await room.asks.answer(rigs.CALLER, bench.task_id, True)
    assert (await rooms.show(rigs.CALLER, bench.task_id)).status == "waiting", "it is paused"
    assert (await rooms.resume(rigs.CALLER, bench.task_id)).status == "pending"


async def test_a_cancelled_task_takes_no_answer(bench: recorded.Bench, room: Room) -> None:
    await bench.submit()
    async with bench.attempt(lost=False) as first:
        await park(bench, first.claim, await asked(first, Question(text="Go?")))
    (shown,) = await room.open()
    assert (await bench.rig.service.cancel(rigs.CALLER, bench.task_id)).status == "cancelled"
    assert await room.open() == []
    for late in (
        room.asks.answer(rigs.CALLER, bench.task_id, 1), room.asks.look_by_link(shown.url.rpartition("/")[2]),
    ):  # fmt: skip
        with pytest.raises(errors.Conflict) as told:
            await late
        assert told.value.code == "task.finished"


SCHEMAS: list[tuple[Any, Any, Any]] = [
    ({"type": "integer", "minimum": 1}, 3, 0),
    ({"type": "string", "pattern": "^(a+)+$"}, "aaa", "a" * 50_000 + "b"),
    ({"type": "object", "required": ["sum"], "properties": {"sum": {"type": "number"}}}, {"sum": 1.5}, {"sum": "1.5"}),
]


@pytest.mark.parametrize(("schema", "good", "bad"), SCHEMAS)
async def test_answers_have_the_form_asked_for(bench: recorded.Bench, room: Room, schema: Any, good: Any, bad: Any) -> None:
    await bench.submit()
    async with bench.attempt(lost=False) as first:
        await park(bench, first.claim, await asked(first, Question(text="How much?", schema=schema)))
    with pytest.raises(errors.Invalid) as refused:
        await room.asks.answer(rigs.CALLER, bench.task_id, bad)
    assert refused.value.code == "ask.invalid_answer"
    assert (await room.asks.answer(rigs.CALLER, bench.task_id, good)).answer == good


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"schema": {"$ref": "http://127.0.0.1:1/schema"}}, "ask.invalid_schema"),
        ({"schema": {"type": "nonsense"}}, "ask.invalid_schema"),
        ({"choices": []}, "ask.invalid"),
        ({"timeout_s": -1}, "ask.invalid"),
        ({"text": "x" * 300_000}, "body.too_large"),
    ],
)
async def test_questions_that_cannot_be_asked(bench: recorded.Bench, change: dict[str, Any], code: str) -> None:
    await bench.submit()
    async with bench.attempt() as first:
        with pytest.raises(errors.Invalid) as refused:
            await first.recording.ask(Question(**{"text": "?", **change}))
    assert refused.value.code == code


async def test_a_question_whose_words_change_needs_a_name(
    bench: recorded.Bench, room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.submit()
    for attempt_number, (name, same) in enumerate([(None, False), ("go", True)]):
        async with bench.attempt(lost=False) as attempt:
            ask_id = await asked(attempt, Question(text=f"It is {attempt_number}:00. Go?", name=name))
            await park(bench, attempt.claim, ask_id)
        await room.asks.answer(rigs.CALLER, bench.task_id, "go", ask_id=ask_id)
        async with bench.attempt() as attempt:
            later = Question(text=f"It is {attempt_number}:30. Go?", name=name)
            if same:
                assert await attempt.recording.ask(later) == "go"
            else:
                await asked(attempt, later)
                assert "give the question a name" in caplog.text


async def test_a_zombie_asks_nobody(bench: recorded.Bench, room: Room) -> None:
    await bench.submit()
    async with bench.attempt() as first:
        pass
    async with bench.attempt():
        with pytest.raises(errors.Conflict) as told:
            await first.recording.ask(Question(text="Hello?"))
    assert told.value.code == "task.fenced"
    assert await room.open() == []


async def test_another_tenant_sees_and_answers_nothing(bench: recorded.Bench, room: Room) -> None:
    await bench.submit()
    async with bench.attempt(lost=False) as first:
        await park(bench, first.claim, await asked(first, Question(text="Go?")))
    other = rigs.principals.Principal(id="k2", tenant="other", roles=frozenset({rigs.principals.Role.ADMIN}))
    assert await room.asks.list(other) == await room.asks.list(other, task_id=bench.task_id) == []
    with pytest.raises(errors.NotFound):
        await room.asks.answer(other, bench.task_id, 1)
    viewer = rigs.principals.Principal(id="k3", tenant="default", roles=frozenset({rigs.principals.Role.VIEWER}))
    assert (await room.asks.list(viewer))[0].url is None
    with pytest.raises(errors.Forbidden):
        await room.asks.answer(viewer, bench.task_id, 1)


async def test_a_step_that_asks_has_no_unknown_outcome(bench: recorded.Bench, room: Room) -> None:
    await bench.submit(retry=port.Retry(unknown="fail"))
    for answered in (False, True):
        async with bench.attempt(lost=False) as attempt:
            left: list[Any] = []
            attempt.recording.leave = left.append

            async def work(attempt: recorded.Attempt = attempt) -> Any:
                return await attempt.recording.ask(Question(text="Which?"))

            if answered:
                assert await attempt.recording.step("choose", work) == "this"
                continue
            with pytest.raises(runs.Asked):
                await attempt.recording.step("choose", work)
            await park(bench, attempt.claim, left[0]["ask_id"])
        await room.asks.answer(rigs.CALLER, bench.task_id, "this")


DECISIONS: list[tuple[Any, Any]] = [("repeat", 7), ("fail", "step.unknown_outcome"), ({"result": 5}, 5)]


@pytest.mark.parametrize(("decision", "outcome"), DECISIONS)
async def test_a_person_decides_about_an_unknown_outcome(bench: recorded.Bench, room: Room, decision: Any, outcome: Any) -> None:
    await bench.submit(retry=port.Retry(unknown="ask"))

    async def killed() -> Any:
        raise asyncio.CancelledError

    async def works() -> Any:
        return 7

    async with bench.attempt() as first:
        with pytest.raises(asyncio.CancelledError):
            await first.recording.step("pay", killed)
    async with bench.attempt(lost=False) as second:
        left: list[Any] = []
        second.recording.leave = left.append
        with pytest.raises(runs.Asked):
            await second.recording.step("pay", works)
        await park(bench, second.claim, left[0]["ask_id"])
    await room.asks.answer(rigs.CALLER, bench.task_id, decision)
    for _ in range(2):
        async with bench.attempt() as third:
            try:
                found = await third.recording.step("pay", works)
            except errors.Conflict as error:
                found = error.code
        assert found == outcome


async def test_a_model_call_with_an_unknown_outcome_is_decided_too(bench: recorded.Bench, room: Room) -> None:
    await bench.submit(retry=port.Retry(unknown="ask"))
    async with bench.attempt() as first:
        await first.recording.open_call("/v1/chat/completions", b'{"prompt":"p"}')
    async with bench.attempt(lost=False) as second:
        left: list[Any] = []
        second.recording.leave = left.append
        await second.client.post("/chat/completions", content=b"{}", headers={"Authorization": "Bearer instance"})
        answer = await second.client.post(
            "/chat/completions", content=b'{"prompt":"p"}', headers={"Authorization": "Bearer instance"}
        )
        assert (answer.status_code, answer.json()["code"]) == (409, "ask.waiting")
        await park(bench, second.claim, left[0]["ask_id"])
    await room.asks.answer(rigs.CALLER, bench.task_id, "repeat")
    async with bench.attempt() as third:
        answer = await third.client.post(
            "/chat/completions", content=b'{"prompt":"p"}', headers={"Authorization": "Bearer instance"}
        )
        assert answer.status_code == 200


def in_thread(work: Callable[[], Any]) -> Any:
    """Run it as the worker runs plain code: in a thread without an event loop. Errors are returned."""
    found: list[Any] = []

    def call() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(60)
    return found[0]


class Held:
    """As much of a run as authors' verbs look at."""

    def __init__(self, recording: Any) -> None:
        self.recording = recording


async def test_plain_functions_step_and_ask_without_await(bench: recorded.Bench, room: Room) -> None:
    made: list[int] = []

    def charge(amount: int) -> int:
        asyncio.run(asyncio.sleep(0))  # code of a library that brings a loop of its own
        made.append(amount)
        return amount

    async def later(amount: int) -> int:
        return amount + 1

    def author(recording: Any) -> Any:
        runs.CURRENT.set(Held(recording))  # type: ignore[arg-type]
        first = agents.step("charge", charge, 3)
        second = agents.step("later", later, amount=first)
        return [first, second, agents.ask("Send?", schema=bool)]

    await bench.submit()
    async with bench.attempt(lost=False) as attempt:
        left: list[Any] = []
        attempt.recording.leave = left.append
        assert isinstance(await asyncio.to_thread(in_thread, lambda: author(attempt.recording)), runs.Asked)
        await park(bench, attempt.claim, left[0]["ask_id"])
    await room.asks.answer(rigs.CALLER, bench.task_id, True)
    async with bench.attempt() as attempt:
        assert await asyncio.to_thread(in_thread, lambda: author(attempt.recording)) == [3, 4, True]
    assert made == [3], "done once"


def test_without_a_task_steps_are_made_and_questions_refused() -> None:
    assert in_thread(lambda: agents.step("s", lambda: 5)) == 5
    error = in_thread(lambda: agents.ask("Hello?"))
    assert (error.code, error.kind) == ("ask.not_a_task", "conflict")


async def test_the_page_of_a_link(postgres_url: str, sockets: Path) -> None:
    async with apis.opened(postgres_url, sockets, {"NEXUS_EGRESS_ALLOW": "127.0.0.1"}) as api:
        ask_ids: list[str] = []

        async def asks(call: rigs.Call) -> None:
            if len(ask_ids) == 2:
                return call.complete("over")
            question = {"question": "<b>Pay</b>?", "choices": ["<yes>", "no"]} if not ask_ids else {"question": "Why?"}
            path = f"/door/runs/{call.fields['nexus-run-id']}/asks?key=ask/{len(ask_ids)}/0&attempt={call.attempt}"
            opened = (await api("POST", path, "instance", content=json.dumps(question).encode())).json()
            ask_ids.append(opened["ask_id"])
            call.begin()
            call.send("run.waiting", {"asks": [{"ask_id": opened["ask_id"], "question": "?"}]})
            call.end()

        async def link(count: int) -> str:
            async with asyncio.timeout(rigs.PATIENCE_S):
                while len(found := (await api("GET", "/v1/asks")).json()["items"]) != 1 or len(ask_ids) < count:
                    await asyncio.sleep(0.02)
            return str(found[0]["url"].removeprefix("http://host"))

        async with rigs.gateway(sockets / "door-0.sock", asks):
            task = (await api("POST", "/agents/echo/tasks", json={"input": 1})).json()
            url = await link(1)
            for _ in range(2):
                page = await api("GET", url, headers={"Authorization": ""})
                assert (page.status_code, page.headers["cache-control"]) == (200, "no-store")
                assert "&lt;b&gt;Pay" in page.text
                assert "<b>" not in page.text
                assert "&lt;yes&gt;" in page.text
            assert (await api("GET", url[:-1] + ("A" if url[-1] != "A" else "B"))).status_code == 404
            assert (await api("POST", url, content=b"choice=7")).status_code == 400
            done = await api("POST", url, content=b"choice=0")
            assert (done.status_code, "&lt;yes&gt;" in done.text) == (200, True)
            assert (await api("POST", url, content=b"choice=1")).status_code == 409
            assert (await api("GET", url)).status_code == 410
            why = await link(2)
            assert "<textarea" in (await api("GET", why)).text
            told = await api("POST", why, json={"answer": "because"})
            assert (told.status_code, told.json()["answer"]) == (200, "because")
            finished = await api.finished(task["task_id"])
        assert (finished["status"], finished["output"], finished["attempt"]) == ("completed", "over", 3)
        log = (await api("GET", f"/tasks/{task['task_id']}/events")).text
        assert re.findall(r"event: (\S+)", log) == [
            "run.waiting", "ask.answered", "run.resumed", "run.waiting", "ask.answered", "run.resumed",
            "run.started", "run.completed",
        ]  # fmt: skip
