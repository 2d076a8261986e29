"""Every framework's example, as it stands, in its real environment: answers, streams, tools, usage, sessions, cancelling.

The provider is scripted: first it asks for a tool, then it answers. What is checked is what a user of the host sees.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.integration.frameworks.cases import CASES, Case
from tests.integration.frameworks.conftest import EXAMPLES, FOLDERS, asked
from tests.integration.worker import conftest as workers

from nexus.cli.agent import templates
from nexus.testing import dialects, fake_llm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180, func_only=True)]


def cases(*without: str) -> Any:
    skip = pytest.mark.skip(reason="make frameworks")
    named = {name: asked(case.of or name) for name, case in CASES.items() if name not in without}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=[] if run else [skip]) for name, run in named.items()])


def case_of(name: str) -> Case:
    return CASES[name]


async def launch(start: Callable, name: str, **options: Any) -> workers.Worker:
    """A worker that runs the example, or the case's own code in the example's environment."""
    case, example = CASES[name], CASES[name].of or name
    files = {"agent.py": case.code} if case.code else None
    return await start(FOLDERS.get(example, example), case.entrypoint, **({"files": files} | options))


def script(llm: fake_llm.FakeLlm, case: Case) -> None:
    llm.replies[:] = case.script


def asked_of(llm: fake_llm.FakeLlm, case: Case) -> list[fake_llm.Request]:
    return [request for request in llm.requests if request.path.partition("?")[0] == case.asks]


def sent(request: fake_llm.Request) -> str:
    return json.dumps(request.body, ensure_ascii=False)


@cases()
async def test_answers_and_counts_tokens(name: str, start: Callable, llm: fake_llm.FakeLlm) -> None:
    case = case_of(name)
    worker = await launch(start, name)
    script(llm, case)
    answer = await worker.run("Please help", context=case.context)
    assert answer.output == case.output
    assert (await worker.call("GET", "/status")).json["adapter"] == (case.adapter or name)
    calls = asked_of(llm, case)
    assert len(calls) == len(case.script)
    assert case.shows in sent(calls[-1])
    if case.counts:
        assert answer.json["metadata"]["tokens_used"] > 0
    assert not [line for line in worker.log() if line.get("level") in ("ERROR", "CRITICAL")], worker.messages()


@cases(*(name for name in CASES if name not in templates.TEMPLATES))
async def test_the_template_answers(name: str, start: Callable, llm: fake_llm.FakeLlm) -> None:
    files = templates.TEMPLATES[name]("my-agent")
    assert set(files["requirements.txt"].split()) <= set(
        (EXAMPLES / (FOLDERS.get(name, name)) / "requirements.txt").read_text().split()
    )
    worker = await launch(start, name, files={"agent.py": files["agent.py"]})
    llm.turn(reply="Good day to you.")
    if name == "smolagents":
        llm.replies[:] = [dialects.ToolCall(name="final_answer", arguments={"answer": "Good day to you."})] * 2
    for said in ("Hello", "Again"):
        assert (await worker.run(said, session="s")).output == "Good day to you."
    assert "Hello" in sent(llm.requests[-1])


@cases()
async def test_streams_tokens_and_tools(name: str, start: Callable, llm: fake_llm.FakeLlm) -> None:
    case = case_of(name)
    worker = await launch(start, name)
    script(llm, case)
    body = json.dumps({"input": "Please help", "context": case.context}).encode()
    answer = await worker.call("POST", "/run", body, {"Accept": "text/event-stream"})
    events = [event async for event in _parse(answer.body)]
    assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
    kinds = [kind for _, kind, _ in events]
    assert kinds[-1] == "run.completed", events[-1]
    assert events[-1][2]["output"] == case.output
    tools = [data for _, kind, data in events if kind == case.tool_event]
    told = next((data for data in tools if case.call is not None and data["name"] == case.call.name), None)
    if case.call is None:
        assert "step" in kinds or not case.steps
    elif case.tool_event == "tool.call":
        assert told["arguments"] == dict(case.call.arguments)
        results = [data for _, kind, data in events if kind == "tool.result"]
        assert told["id"] in [result["id"] for result in results]
        assert case.shows in json.dumps([result["output"] for result in results])
    if isinstance(case.final, str) and not case.plain:
        deltas = [data["text"] for _, kind, data in events if kind == "message.delta"]
        assert "".join(deltas) == case.final
        assert len(deltas) > 1


@cases("agentcore", "asgi")
async def test_a_session_goes_on_after_a_restart(name: str, start: Callable, llm: fake_llm.FakeLlm) -> None:
    case = case_of(name)
    first = await launch(start, name, hosted=True)
    script(llm, case)
    assert (await first.run("I am Ada", context=case.context, session="s1", Nexus_Run_Id="run_a")).output == case.output
    assert await first.stop() == 0
    models = [entry for entry in start.door.seen if entry.path.partition("?")[0] == case.asks]
    assert {entry.run_id for entry in models} == {"run_a"}
    second = await launch(start, name, hosted=True)
    script(llm, case)
    llm.requests.clear()
    assert (await second.run("Who am I?", context=case.context, session="s1")).output == case.output
    again = " ".join(map(sent, asked_of(llm, case)))
    assert case.remembers in again
    assert "Who am I?" in again
    script(llm, case)
    llm.requests.clear()
    await second.run("Hello", context=case.context, session="s2")
    assert case.remembers not in " ".join(map(sent, asked_of(llm, case)))


@cases()
async def test_sessions_at_once_do_not_mix(name: str, start: Callable, llm: fake_llm.FakeLlm) -> None:
    case = case_of(name)
    worker = await launch(start, name)
    llm.turn(latency_s=0.05, reply="fine")
    if case.output != case.final or isinstance(case.final, dialects.ToolCall):
        llm.replies[:] = [case.final] * 8
    answers = await asyncio.gather(*(worker.run(f"I am number {n}", context=case.context, session=f"s{n}") for n in range(4)))
    assert [answer.status for answer in answers] == [200] * 4
    told = [{n for n in range(4) if f"I am number {n}" in sent(request)} for request in asked_of(llm, case)]
    assert all(len(numbers) <= 1 for numbers in told)
    assert set().union(*told) == {0, 1, 2, 3}


@cases("llama-index")
async def test_a_client_that_leaves_cancels_the_model_call(name: str, start: Callable, llm: fake_llm.FakeLlm) -> None:
    case = case_of(name)
    worker = await launch(start, name)
    llm.replies[:] = case.words_after
    llm.turn(tokens=5000, piece_s=0.02)
    async with worker.stream("Tell me everything", session="s") as events:
        async for _, kind, _ in events:
            if kind == case.first:
                break
    await worker.until(lambda: llm.cancelled)
    llm.turn(tokens=2, piece_s=0.0)
    script(llm, case)
    assert (await worker.run("again", context=case.context, session="s")).output == case.output


@cases()
async def test_a_refusing_provider_is_told_and_the_worker_goes_on(name: str, start: Callable, llm: fake_llm.FakeLlm) -> None:
    case = case_of(name)
    worker = await launch(start, name)
    llm.turn(fail=400)
    answer = await worker.run("Please help", context=case.context, session="s")
    assert answer.status >= 400
    assert answer.json["code"] == "agent.failed"
    assert case.refused in answer.json["cause"]
    assert any("scripted failure 400" in json.dumps(line) for line in worker.log())
    llm.turn(fail=None)
    script(llm, case)
    assert (await worker.run("again", context=case.context, session="s")).output == case.output


@cases(*(name for name, case in CASES.items() if case.call is None or case.tool_event != "tool.call"))
async def test_the_frameworks_spans_lie_below_the_runs(name: str, start: Callable, llm: fake_llm.FakeLlm) -> None:
    case = case_of(name)
    worker = await launch(start, name, hosted=True, NEXUS_TRACES="1")
    script(llm, case)
    trace = "0af7651916cd43dd8448eb211c80319c"
    answer = await worker.run("Please help", context=case.context, traceparent=f"00-{trace}-b7ad6b7169203331-01")
    assert answer.output == case.output
    assert await worker.stop() == 0
    posted = [json.loads(entry.body) for entry in start.door.seen if entry.path == "/door/traces"]
    scopes = [scope for body in posted for resource in body["resourceSpans"] for scope in resource["scopeSpans"]]
    spans = [span for scope in scopes for span in scope["spans"]]
    assert case.call is not None
    assert len([span for span in spans if case.call.name in span["name"]]) == 1, [span["name"] for span in spans]
    assert {span["traceId"] for span in spans if not span["name"].endswith(".build")} == {trace}


async def _parse(body: bytes) -> Any:
    from nexus.kit import sse

    for event in sse.Decoder().feed(body):
        yield int(event.id or 0), event.name, json.loads(event.data)
