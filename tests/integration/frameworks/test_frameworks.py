"""Every framework's example, as it stands, in its real environment: answers, streams, tools, usage, sessions, cancelling.

The provider is scripted: first it asks for a tool, then it answers. What is checked is what a user of the host sees.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.integration.frameworks.conftest import EXAMPLES, FOLDERS, asked

from nexus.cli.agent import templates
from nexus.testing import dialects, fake_llm

SAID = "Fourteen hundred UTC suits both of you."


@dataclass(frozen=True, kw_only=True)
class Case:
    """`shows` is what the tool found, as the model must see it; `final` what the model says last, `output` what comes out.

    `plain` ones call the model by themselves: their text does not stream. `remembers` is what a later run of the session knows.
    """

    call: dialects.ToolCall | None = None
    shows: str = ""
    context: Mapping[str, Any] = field(default_factory=dict)
    final: str | dialects.ToolCall = SAID
    output: Any = SAID
    adapter: str = ""
    tool_event: str = "tool.call"
    asks: str = "/v1/chat/completions"
    before: tuple[str, ...] = ()
    entrypoint: str = "agent:agent"
    plain: bool = False
    remembers: str = "I am Ada"

    @property
    def script(self) -> list[str | dialects.ToolCall]:
        return [*self.before, *([self.call] if self.call is not None else []), self.final]


INVOICE = {"number": "A-7", "lines": [{"text": "Paper", "net": "100.00"}], "net": "100.00", "gross": "119.00"}
CASES = {
    "langgraph": Case(entrypoint="agent:graph", before=("a fact",)),
    "openai-agents": Case(
        call=dialects.ToolCall(name="common_hours", arguments={"zones": ["Europe/Berlin", "Asia/Tokyo"], "date": "2026-07-01"}),
        shows="07:00",
    ),
    "pydantic-ai": Case(
        call=dialects.ToolCall(name="gross_of", arguments={"net": "100.00"}),
        shows="119.00",
        context={"currency": "EUR", "tax_percent": 19},
        final=dialects.ToolCall(name="final_result", arguments=INVOICE, id="call_fake2"),
        output=INVOICE,
    ),
    "google-adk": Case(call=dialects.ToolCall(name="add_expense", arguments={"what": "train", "amount": 12.5}), shows="12.5"),
    "claude-agent": Case(
        call=dialects.ToolCall(name="mcp__shop__price", arguments={"article": "ink", "pieces": 10}),
        shows="197.10 EUR",
        asks="/v1/messages",
    ),
    "crewai": Case(
        call=dialects.ToolCall(name="count_words", arguments={"text": "one two three"}),
        before=("- Ada ships on Friday",),
        shows="3 words",
    ),
    "strands": Case(call=dialects.ToolCall(name="scale", arguments={"amount": "250", "guests": 4, "for_guests": 6}), shows="375"),
    "agno": Case(call=dialects.ToolCall(name="readability", arguments={"text": "The cat sat."}), shows="119"),
    "agent-framework": Case(
        call=dialects.ToolCall(name="monthly_rate", arguments={"amount": 1200, "years": 1, "percent": 0}), shows="100.00 a month"
    ),
    "llama-index": Case(before=("a part",), plain=True, remembers=SAID),
    "agentcore": Case(plain=True, adapter="asgi", entrypoint="agent:app"),
    "anthropic": Case(
        call=dialects.ToolCall(name="search", arguments={"pattern": "ERROR"}),
        shows="2: ERROR disk full",
        context={"log": "INFO begun\nERROR disk full\nINFO ended"},
        adapter="agent",
        tool_event="custom",
        asks="/v1/messages",
    ),
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(60, func_only=True)]


def cases(*without: str) -> Any:
    names = [name for name in CASES if name not in without]
    skip = pytest.mark.skip(reason="make frameworks")
    return pytest.mark.parametrize("name", [pytest.param(name, marks=[] if asked(name) else [skip]) for name in names])


def case_of(name: str) -> Case:
    return CASES[name]


def script(llm: fake_llm.FakeLlm, case: Case) -> None:
    llm.replies[:] = case.script


def asked_of(llm: fake_llm.FakeLlm, case: Case) -> list[fake_llm.Request]:
    return [request for request in llm.requests if request.path.partition("?")[0] == case.asks]


def sent(request: fake_llm.Request) -> str:
    return json.dumps(request.body, ensure_ascii=False)


@cases()
async def test_answers_and_counts_tokens(name: str, start: Callable, llm: fake_llm.FakeLlm) -> None:
    case = case_of(name)
    worker = await start(FOLDERS.get(name, name), case.entrypoint)
    script(llm, case)
    answer = await worker.run("Please help", context=case.context)
    assert answer.output == case.output
    assert (await worker.call("GET", "/status")).json["adapter"] == (case.adapter or name)
    calls = asked_of(llm, case)
    assert len(calls) == len(case.script)
    assert case.shows in sent(calls[-1])
    if name not in ("anthropic", "llama-index", "agentcore"):
        assert answer.json["metadata"]["tokens_used"] > 0
    assert not [line for line in worker.log() if line.get("level") in ("ERROR", "CRITICAL")], worker.messages()


@cases(*(name for name in CASES if name not in templates.TEMPLATES))
async def test_the_template_answers(name: str, start: Callable, llm: fake_llm.FakeLlm) -> None:
    case = case_of(name)
    files = templates.TEMPLATES[name]("my-agent")
    assert set(files["requirements.txt"].split()) <= set(
        (EXAMPLES / (FOLDERS.get(name, name)) / "requirements.txt").read_text().split()
    )
    worker = await start(FOLDERS.get(name, name), case.entrypoint, files={"agent.py": files["agent.py"]})
    llm.turn(reply="Good day to you.")
    for said in ("Hello", "Again"):
        assert (await worker.run(said, session="s")).output == "Good day to you."
    assert "Hello" in sent(llm.requests[-1])


@cases()
async def test_streams_tokens_and_tools(name: str, start: Callable, llm: fake_llm.FakeLlm) -> None:
    case = case_of(name)
    worker = await start(FOLDERS.get(name, name), case.entrypoint)
    script(llm, case)
    body = json.dumps({"input": "Please help", "context": case.context}).encode()
    answer = await worker.call("POST", "/run", body, {"Accept": "text/event-stream"})
    events = [event async for event in _parse(answer.body)]
    assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
    kinds = [kind for _, kind, _ in events]
    assert kinds[-1] == "run.completed", events[-1]
    assert events[-1][2]["output"] == case.output
    told = next((data for _, kind, data in events if kind == case.tool_event), None)
    if case.call is None:
        assert "step" in kinds or case.adapter == "asgi"
    elif case.tool_event == "tool.call":
        assert (told["name"], told["arguments"]) == (case.call.name, dict(case.call.arguments))
        result = next(data for _, kind, data in events if kind == "tool.result")
        assert result["id"] == told["id"]
        assert case.shows in json.dumps(result["output"])
    if isinstance(case.final, str) and not case.plain:
        deltas = [data["text"] for _, kind, data in events if kind == "message.delta"]
        assert "".join(deltas) == case.final
        assert len(deltas) > 1


@cases("agentcore")
async def test_a_session_goes_on_after_a_restart(name: str, start: Callable, llm: fake_llm.FakeLlm) -> None:
    case = case_of(name)
    first = await start(FOLDERS.get(name, name), case.entrypoint, hosted=True)
    script(llm, case)
    assert (await first.run("I am Ada", context=case.context, session="s1", Nexus_Run_Id="run_a")).output == case.output
    assert await first.stop() == 0
    models = [entry for entry in start.door.seen if entry.path.partition("?")[0] == case.asks]
    assert {entry.run_id for entry in models} == {"run_a"}
    second = await start(FOLDERS.get(name, name), case.entrypoint, hosted=True)
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
    worker = await start(FOLDERS.get(name, name), case.entrypoint)
    llm.turn(latency_s=0.05, reply="fine")
    if isinstance(case.final, dialects.ToolCall):
        llm.replies[:] = [case.final] * 8
    answers = await asyncio.gather(*(worker.run(f"I am number {n}", context=case.context, session=f"s{n}") for n in range(4)))
    assert [answer.status for answer in answers] == [200] * 4
    told = [{n for n in range(4) if f"I am number {n}" in sent(request)} for request in asked_of(llm, case)]
    assert all(len(numbers) <= 1 for numbers in told)
    assert set().union(*told) == {0, 1, 2, 3}


@cases("llama-index", "agentcore")
async def test_a_client_that_leaves_cancels_the_model_call(name: str, start: Callable, llm: fake_llm.FakeLlm) -> None:
    case = case_of(name)
    worker = await start(FOLDERS.get(name, name), case.entrypoint)
    llm.replies[:] = case.before
    llm.turn(tokens=5000, piece_s=0.02)
    async with worker.stream("Tell me everything", session="s") as events:
        async for _, kind, _ in events:
            if kind == "message.delta":
                break
    await worker.until(lambda: llm.cancelled)
    llm.turn(tokens=2, piece_s=0.0)
    script(llm, case)
    assert (await worker.run("again", context=case.context, session="s")).output == case.output


@cases()
async def test_a_refusing_provider_is_told_and_the_worker_goes_on(name: str, start: Callable, llm: fake_llm.FakeLlm) -> None:
    case = case_of(name)
    worker = await start(FOLDERS.get(name, name), case.entrypoint)
    llm.turn(fail=400)
    answer = await worker.run("Please help", context=case.context, session="s")
    assert answer.status >= 400
    assert answer.json["code"] == "agent.failed"
    assert "scripted failure 400" in answer.json["cause"]
    llm.turn(fail=None)
    script(llm, case)
    assert (await worker.run("again", context=case.context, session="s")).output == case.output


@cases(*(name for name in CASES if name not in ("openai-agents", "google-adk", "strands")))
async def test_the_frameworks_spans_lie_below_the_runs(name: str, start: Callable, llm: fake_llm.FakeLlm) -> None:
    case = case_of(name)
    worker = await start(name, hosted=True, NEXUS_TRACES="1")
    script(llm, case)
    trace = "0af7651916cd43dd8448eb211c80319c"
    assert (await worker.run("Please help", traceparent=f"00-{trace}-b7ad6b7169203331-01")).output == case.output
    assert await worker.stop() == 0
    posted = [json.loads(entry.body) for entry in start.door.seen if entry.path == "/door/traces"]
    scopes = [scope for body in posted for resource in body["resourceSpans"] for scope in resource["scopeSpans"]]
    spans = [span for scope in scopes for span in scope["spans"]]
    assert case.call is not None
    assert any(case.call.name in span["name"] for span in spans), [span["name"] for span in spans]
    assert {span["traceId"] for span in spans} == {trace}


async def _parse(body: bytes) -> Any:
    from nexus.kit import sse

    for event in sse.Decoder().feed(body):
        yield int(event.id or 0), event.name, json.loads(event.data)
