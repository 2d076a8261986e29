"""Every form an author may write, run by a real worker process."""

from typing import Any

import pytest

AGENT = "from nexus.ai.agents import Agent\n"
HEAD = AGENT + "class A(Agent):\n    "

FORMS: dict[str, tuple[str, str, Any]] = {
    "function": ("def run(input):\n    return input.upper()", "", "HI"),
    "function with context": ("def handler(input, context):\n    return [input, context['user']]", "", ["hi", "u1"]),
    "function without parameters": ("def run():\n    return 7", "", 7),
    "keyword-only context": ("async def run(input, *, context):\n    return context['user']", "", "u1"),
    "second parameter with a default": ("def run(input, temperature=0.5):\n    return temperature", "", 0.5),
    "coroutine": ("async def run(input):\n    return {'said': input}", "", {"said": "hi"}),
    "generator": ("def run(input):\n    yield 'a'\n    yield input", "", "ahi"),
    "generator of numbers": ("def run(input):\n    yield 1\n    yield 2", "", 2),
    "generator with a return": ("def run(input):\n    yield 1\n    return 'done'", "", "done"),
    "async generator": ("async def run(input):\n    yield 'a'\n    yield {'text': 'b'}\n    yield {'note': 1}", "", "ab"),
    "callable object": ("class F:\n    def __call__(self, input):\n        return 1\nrun = F()", "", 1),
    "partial": ("import functools\ndef f(a, input):\n    return a + input\nrun = functools.partial(f, 'x')", "", "xhi"),
    "function returning a coroutine": ("async def g(x):\n    return x\nrun = lambda input: g(input)", "", "hi"),
    "agent class": (HEAD + "async def process(self, input):\n        return self.name", "", "A"),
    "agent object": (
        HEAD + "def process(self, input, context):\n        return self.model + context['user']\n"
        "agent = A(name='n', description='d', model='m', tools=[len])",
        "",
        "mu1",
    ),
    "agent without super().__init__": (
        HEAD + "def __init__(self):\n        self.key = 'k'\n"
        "    async def process(self, input):\n        return self.key + self.name",
        "",
        "k",
    ),
    "agent that streams": (HEAD + "async def process(self, input):\n        yield 'x'\n        yield 'y'", "", "xy"),
    "agent whose generator is synchronous": (HEAD + "def process(self, input):\n        yield 'x'", "", "x"),
    "named entry point": ("class Deep:\n    @staticmethod\n    def go(input):\n        return 'deep'", "agent:Deep.go", "deep"),
    "module only": ("def process(input):\n    return 'found'", "agent", "found"),
    "duck-typed class": ("class Mine:\n    def process(self, input):\n        return 'mine'", "agent:Mine", "mine"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
async def test_form(name: str, start: Any) -> None:
    code, entrypoint, expected = FORMS[name]
    worker = await start(code, entrypoint=entrypoint)
    answer = await worker.run("hi", context={"user": "u1"})
    assert answer.output == expected


async def test_entry_file_is_found_and_src_is_importable(start: Any) -> None:
    (start.source / "src").mkdir(parents=True)
    (start.source / "src" / "inner.py").write_text("VALUE = 'inner'\n")
    worker = await start({"main.py": "import inner\ndef run(input):\n    return inner.VALUE\n"})
    assert (await worker.run()).output == "inner"


async def test_answer_carries_metadata_status_and_health(start: Any) -> None:
    worker = await start("def run(input):\n    return 1")
    answer = await worker.run("x", session="s-1", Nexus_Run_Id="run_1")
    metadata = answer.json["metadata"]
    assert metadata.pop("duration_ms") >= 0
    assert metadata == {
        "tokens_used": 0, "input_tokens": 0, "output_tokens": 0, "run_id": "run_1", "session_id": "s-1", "version": "1.2.3",
    }  # fmt: skip
    status = (await worker.call("GET", "/status")).json
    assert (status["phase"], status["version"], status["active_runs"], status["adapter"]) == ("ready", "1.2.3", 0, "function")
    health = (await worker.call("GET", "/health")).json
    assert health["status"] == "healthy"
    assert health["requests_processed"] == 1
    assert health["memory_usage"].endswith("MB")
    assert health["cpu_usage"].endswith("%")
    assert health["memory_bytes"] > 5_000_000


async def test_an_output_of_many_kinds_is_json(start: Any) -> None:
    code = """
import dataclasses, datetime, enum, uuid, decimal
@dataclasses.dataclass
class Point:
    x: int
class Colour(enum.Enum):
    RED = "red"
class Model:
    def model_dump(self, mode):
        return {"mode": mode}
def run(input):
    return {"point": Point(1), "colour": Colour.RED, "set": {2, 1}, "day": datetime.date(2026, 1, 2), "model": Model(),
            "money": decimal.Decimal("1.10"), "half": "\\ud800", "tuple": (1, 2)}
"""
    worker = await start(code)
    assert (await worker.run()).output == {
        "point": {"x": 1}, "colour": "red", "set": [1, 2], "day": "2026-01-02", "model": {"mode": "json"}, "money": "1.10",
        "half": "\ud800", "tuple": [1, 2],
    }  # fmt: skip


UNKNOWN_VERSION = """
import pathlib
about = pathlib.Path("agno-99.1.dist-info")
about.mkdir(exist_ok=True)
(about / "METADATA").write_text("Metadata-Version: 2.1\\nName: agno\\nVersion: 99.1\\n")

class Ended:
    event, content = "RunCompleted", "from the future"

class Agent:
    __module__, __qualname__ = "agno.agent.agent", "Agent"
    async def arun(self, messages, **options):
        yield Ended()

agent = Agent()
"""


async def test_an_unknown_version_of_a_framework_is_run_and_said(start: Any) -> None:
    worker = await start(UNKNOWN_VERSION)
    assert (await worker.run("hi")).output == "from the future"
    said = "agno 99.1 is not a version this host was tried with (3.1); it is run all the same"
    assert said in worker.messages()
    assert start.status()["note"] == said
