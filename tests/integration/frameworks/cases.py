"""What each framework's example is asked, what its scripted model says, and what must come out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.integration.frameworks import variants

from nexus.cli.agent import framework_templates
from nexus.testing import dialects

SAID = "Fourteen hundred UTC suits both of you."


@dataclass(frozen=True, kw_only=True)
class Case:
    """`shows` is what the tool found, as the model must see it; `final` what the model says last, `output` what comes out.

    `plain` ones call the model by themselves: their text does not stream. `remembers` is what a later run knows.
    `first` is the first event of a stream of words, which begins once the model said `words_after`. `counts`: the framework
    tells tokens itself, and `steps` where it tells no tools; `refused` is what it says when its provider refuses. Another entry
    point of a framework has `code` of its own and names what it is `of`, whose environment it shares.
    """

    call: dialects.ToolCall | None = None
    shows: str = ""
    context: Mapping[str, Any] = field(default_factory=dict)
    final: str | dialects.ToolCall = SAID
    output: Any = SAID
    adapter: str = ""
    tool_event: str = "tool.call"
    asks: str = "/v1/chat/completions"
    before: tuple[str | dialects.ToolCall, ...] = ()
    between: tuple[str, ...] = ()
    words_after: tuple[str, ...] = ()
    entrypoint: str = "agent:agent"
    plain: bool = False
    remembers: str = "I am Ada"
    first: str = "message.delta"
    of: str = ""
    code: str = ""
    counts: bool = True
    steps: bool = True
    refused: str = "scripted failure 400"

    @property
    def script(self) -> list[str | dialects.ToolCall]:
        return [*self.before, *([self.call] if self.call is not None else []), *self.between, self.final]


INVOICE = {"number": "A-7", "lines": [{"text": "Paper", "net": "100.00"}], "net": "100.00", "gross": "119.00"}
CASES = {
    "langgraph": Case(entrypoint="agent:graph", before=("a fact",), words_after=("a fact",)),
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
        words_after=("- Ada ships on Friday",),
        shows="3 words",
    ),
    "smolagents": Case(
        call=dialects.ToolCall(name="planting_dates", arguments={"plant": "bean", "last_frost": "2027-04-20"}),
        shows="sow on 27 April",
        final=dialects.ToolCall(name="final_answer", arguments={"answer": SAID}, id="call_fake2"),
        first="custom",
    ),
    "strands": Case(call=dialects.ToolCall(name="scale", arguments={"amount": "250", "guests": 4, "for_guests": 6}), shows="375"),
    "agno": Case(call=dialects.ToolCall(name="readability", arguments={"text": "The cat sat."}), shows="119"),
    "agent-framework": Case(
        call=dialects.ToolCall(name="monthly_rate", arguments={"amount": 1200, "years": 1, "percent": 0}), shows="100.00 a month"
    ),
    "llama-index": Case(before=("a part",), plain=True, remembers=SAID, counts=False),
    "asgi": Case(entrypoint="agent:app", counts=False, steps=False),
    "foundry": Case(entrypoint="agent:app", counts=False, steps=False, refused="internal server error"),
    "agentcore": Case(entrypoint="agent:app", counts=False, steps=False),
    "anthropic": Case(
        call=dialects.ToolCall(name="search", arguments={"pattern": "ERROR"}),
        shows="2: ERROR disk full",
        context={"log": "INFO begun\nERROR disk full\nINFO ended"},
        adapter="agent",
        tool_event="custom",
        asks="/v1/messages",
        counts=False,
    ),
    "agno-team": Case(
        of="agno",
        code=variants.AGNO_TEAM,
        adapter="agno",
        before=(dialects.ToolCall(name="delegate_task_to_member", arguments={"member_id": "editor", "task": "x"}, id="call_0"),),
        call=dialects.ToolCall(name="readability", arguments={"text": "The cat sat."}),
        between=("It reads well.",),
        shows="It reads well.",
    ),
    "agent-framework-workflow": Case(
        of="agent-framework",
        code=variants.AGENT_FRAMEWORK_WORKFLOW,
        call=dialects.ToolCall(name="monthly_rate", arguments={"amount": 1200}),
        shows="100.00 a month",
        between=("A draft.",),
        words_after=("A draft.",),
    ),
    "crewai-flow": Case(of="crewai", code=variants.CREWAI_FLOW, counts=False),
    "llama-index-stream": Case(
        of="llama-index",
        code=framework_templates.FRAMEWORKS["llama-index"].code,
        adapter="llama-index",
        counts=False,
        steps=False,
    ),
    "langgraph-function": Case(of="langgraph", code=variants.LANGGRAPH_FUNCTION, adapter="langgraph"),
    "smolagents-code": Case(
        of="smolagents",
        code=variants.SMOLAGENTS_CODE,
        adapter="smolagents",
        before=('Thought: look.\n<code>\nprint(planting_dates("bean"))\n</code>',),
        shows="sow on 27 April",
        final=f'Thought: known.\n<code>\nfinal_answer("{SAID}")\n</code>',
        first="custom",
        plain=True,
    ),
}
