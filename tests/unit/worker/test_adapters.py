"""What adapters decide without any framework: prompts, versions, what is told, and what is refused. No framework is imported."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nexus.core import errors
from nexus.worker import adapters
from nexus.worker.adapters import prompts, quiet, versions

TEXTS: dict[str, tuple[Any, str]] = {
    "text": ("hi", "hi"),
    "prompt": ({"prompt": "hi"}, "hi"),
    "question among others": ({"question": "hi", "top": 3}, "hi"),
    "messages": ([{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}], "hi"),
    "messages in an object": ({"messages": [{"role": "user", "content": "hi"}]}, "hi"),
    "content of parts": ([{"role": "user", "content": [{"type": "text", "text": "a"}, "b", {"type": "image"}]}], "a\nb"),
    "another object": ({"amount": 3, "name": "ü"}, '{"amount": 3, "name": "ü"}'),
    "a list of other things": ([1, 2], "[1, 2]"),
    "a number": (7, "7"),
    "zero": (0, "0"),
    "false": (False, "false"),
    "an empty prompt beside a message": ({"prompt": " ", "message": "hi"}, "hi"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_of(name: str) -> None:
    given, expected = TEXTS[name]
    assert prompts.text_of(given) == expected


@pytest.mark.parametrize("given", [None, "", "  \n", [], {}])
def test_an_empty_input_is_refused(given: Any) -> None:
    with pytest.raises(errors.Invalid) as caught:
        prompts.text_of(given)
    assert caught.value.code == "input.empty"


@pytest.mark.parametrize("given", [[{"role": "user"}], [{"role": 1, "content": ""}], [[]], {"messages": "x"}, "x", []])
def test_what_is_no_list_of_messages(given: Any) -> None:
    assert prompts.messages_of(given) is None


@pytest.mark.parametrize(
    ("installed", "tried", "known"),
    [
        ("1.2.22", "1.2", True),
        ("1.9.0rc1", "1.2", True),
        ("2.0.0", "1.2", False),
        ("0.9", "1.2", False),
        ("0.24.1", "0.24", True),
        ("0.20.0", "0.24", True),
        ("0.25.0", "0.24", False),
        ("garbage", "1.2", False),
    ],
)
def test_known_versions(installed: str, tried: str, known: bool) -> None:
    assert versions.is_known(installed, tried) is known


def test_an_unknown_version_is_said_and_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="nexus.worker"):
        versions.check("pytest", tried="1.0")
        versions.check("no-such-package-at-all", tried="1.0")
        versions.check("pytest", tried="999.0" if pytest.__version__.startswith("999") else pytest.__version__)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["pytest", "the"]


def test_frameworks_keep_quiet_unless_told_otherwise() -> None:
    environ = {"AGNO_TELEMETRY": "true"}
    quiet.quieten(environ)
    assert environ["AGNO_TELEMETRY"] == "true"
    assert environ["CREWAI_DISABLE_TELEMETRY"] == "true"


class Strange:
    pass


class StateGraph:
    pass


@pytest.mark.parametrize("target", [Strange(), Strange, 3, "agent", None, {"a": 1}, StateGraph()])
def test_what_cannot_be_run_is_told_what_could(target: Any) -> None:
    with pytest.raises(errors.AgentFailed) as caught:
        adapters.choose(target)
    assert caught.value.code == "entrypoint.not_an_agent"
    for name in ("LangGraph", "OpenAI Agents SDK", "Google ADK", "CrewAI", "ClaudeAgentOptions", "Pydantic AI"):
        assert name in (caught.value.next_step or "")
    assert ("call .compile()" in caught.value.message) is isinstance(target, StateGraph)


def test_an_authors_own_module_called_agents_is_no_sdk(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").touch()
    (tmp_path / "agents" / "agent.py").write_text("class Agent:\n    def process(self, input):\n        return input\n")
    code = "from agents.agent import Agent; from nexus.worker import adapters; print(adapters.choose(Agent()).name)"
    assert _run(code, tmp_path) == "agent"


def test_the_worker_imports_no_framework_and_no_pydantic(tmp_path: Path) -> None:
    heavy = "pydantic langgraph agents google crewai claude_agent_sdk pydantic_ai openai anthropic httpx httpx2"
    code = f"import sys; from nexus.worker import entry, main; print([n for n in {heavy.split()!r} if n in sys.modules])"
    assert _run(code, tmp_path) == "[]"


def _run(code: str, folder: Path) -> str:
    answer = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    return answer.stdout.strip()
