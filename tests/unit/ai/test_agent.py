"""`Agent` outside a run (an author's own tests) and inside one, told apart by the context variable."""

import contextvars
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from nexus.ai.agents import Agent
from nexus.ports import run as runs


class Bare(Agent):
    def __init__(self) -> None:
        self.key = "k"

    async def process(self, input: str) -> str:
        self.progress(50)
        self.events.emit("x", 1)
        self.state["n"] = self.state.get("n", 0) + 1
        return f"{input}{self.state['n']}{self.session_id}"


class FakeRun:
    run_id, session_id, context = "run_1", "ses_1", {"user": "u"}

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def emit(self, name: str, data: Mapping[str, Any]) -> None:
        self.events.append((name, data))

    def outgoing_headers(self, host: str, port: int) -> dict[str, str]:
        return {}

    def add_usage(self, *, input_tokens: int, output_tokens: int) -> None: ...


async def test_an_agent_works_alone() -> None:
    agent = Bare()
    assert await agent.process("a") == "a1"
    assert await agent.process("a") == "a2"
    assert await Bare().process("a") == "a1"
    assert (agent.context, agent.run_id, agent.name) == ({}, "", "")


def test_one_object_serves_several_runs() -> None:
    agent, found = Bare(), []
    for number in range(2):
        run = FakeRun()

        def inside(run: FakeRun = run, number: int = number) -> None:
            runs.CURRENT.set(run)
            agent.state["number"] = number
            agent.progress(number * 200, "m")
            agent.events.emit("mine", {"a": 1})
            found.append((run.state, run.events, agent.session_id, agent.context))

        contextvars.copy_context().run(inside)
    assert found[0][0] == {"number": 0}
    assert found[1][0] == {"number": 1}
    assert found[1][1] == [("progress", {"percent": 100, "message": "m"}), ("custom", {"name": "mine", "data": {"a": 1}})]
    assert found[1][2:] == ("ses_1", {"user": "u"})


def test_state_can_be_assigned_as_a_whole() -> None:
    agent = Bare()
    agent.state = {"a": 1}
    agent.state = {**agent.state, "b": 2}
    assert agent.state == {"a": 1, "b": 2}


def test_settings_of_document_four_are_kept() -> None:
    agent = Agent(name="n", description="d", model="m", tools=[len], temperature=0.5)
    assert (agent.name, agent.description, agent.model, agent.tools, agent.settings) == (
        "n", "d", "m", [len], {"temperature": 0.5},
    )  # fmt: skip
    with pytest.raises(NotImplementedError, match="process"):
        agent.process("x")


def test_progress_refuses_what_is_not_a_number() -> None:
    with pytest.raises(ValueError, match="number"):
        Bare().progress(float("nan"))


def test_importing_the_sdk_is_light() -> None:
    script = (
        "import sys, nexus.ai.agents; print([n for n in ('pydantic', 'httpx2', 'uvicorn', 'opentelemetry') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"
