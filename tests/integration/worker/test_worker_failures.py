"""What goes wrong: bodies, author code, and starts that cannot succeed. Each with its stable code."""

import json
import os
import signal
from typing import Any

import pytest

BODIES: dict[str, tuple[bytes, int, str]] = {
    "not json": (b"{nope", 400, "body.invalid_json"),
    "empty": (b"", 400, "body.invalid_json"),
    "not utf-8": (b'{"input": "\xff"}', 400, "body.invalid_json"),
    "nan": (b'{"input": NaN}', 400, "body.invalid_json"),
    "huge number": (b'{"input": ' + b"9" * 5000 + b"}", 400, "body.invalid_json"),
    "a list": (b"[1]", 400, "body.not_an_object"),
    "a string": (b'"x"', 400, "body.not_an_object"),
    "context is a list": (b'{"context": []}', 400, "body.bad_context"),
    "deep": (b'{"input":' + b"[" * 250 + b"]" * 250 + b"}", 400, "body.too_deep"),
    "very deep": (b'{"input":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "body.too_deep"),
    "half a pair": (b'{"input": "\\ud83d"}', 400, "body.invalid_unicode"),
    "too large": (b'{"input": "' + b"x" * 70_000 + b'"}', 413, "body.too_large"),
}


async def test_bad_bodies_are_refused_and_the_worker_goes_on(start: Any) -> None:
    worker = await start("def run(input):\n    return input", NEXUS_MAX_BODY="65536")
    for name, (body, status, code) in BODIES.items():
        if name == "very deep":
            continue
        answer = await worker.call("POST", "/run", body)
        assert (name, answer.status, answer.json["code"], answer.headers["nexus-error-code"]) == (name, status, code, code)
        assert answer.headers["content-type"] == "application/problem+json"
    assert (await worker.run("\U0001f600")).output == "\U0001f600"


async def test_a_body_nested_beyond_recursion_is_refused(start: Any) -> None:
    worker = await start("def run(input):\n    return input")
    body, status, code = BODIES["very deep"]
    answer = await worker.call("POST", "/run", body)
    assert (answer.status, answer.json["code"]) == (status, code)
    shallow = b'{"input":' + b"[" * 199 + b"]" * 199 + b"}"
    assert (await worker.call("POST", "/run", shallow)).status == 200


async def test_wrong_paths_methods_and_session_ids(start: Any) -> None:
    worker = await start("def run(input):\n    return input")
    assert (await worker.call("GET", "/run")).json["code"] == "method.not_allowed"
    assert (await worker.call("GET", "/nowhere")).json["code"] == "route.not_found"
    assert (await worker.run("x", session="a b")).json["code"] == "session.invalid_id"


RAISING = """
import sys, os, asyncio
class Odd: pass
def deeper(kind):
    if kind == "value": raise ValueError("no such thing\\nsecond line")
    if kind == "exit": sys.exit(3)
    if kind == "memory": raise MemoryError("all gone")
    if kind == "stop": raise StopIteration
    if kind == "interrupt": raise KeyboardInterrupt
    if kind == "cancel": raise asyncio.CancelledError("own")
    if kind == "odd": return {"list": [1, {"it": Odd()}]}
    if kind == "nan": return {"x": float("nan")}
    if kind == "loop":
        x = []; x.append(x); return x
    if kind == "keys": return {(1, 2): 3}
    if kind == "bytes": return b"x"
    if kind == "die": os._exit(9)
    return "fine"
async def run(input):
    return deeper(input)
def sync(input):
    return deeper(input)
"""
EXPECTED = {
    "value": (500, "agent.failed", "ValueError: no such thing second line"),
    "exit": (500, "agent.failed", "sys.exit(3) at agent.py:6"),
    "memory": (500, "run.memory", "MemoryError: all gone"),
    "stop": (500, "agent.failed", "RuntimeError"),
    "interrupt": (500, "agent.failed", "KeyboardInterrupt"),
    "cancel": (500, "agent.failed", "CancelledError: own"),
    "odd": (500, "agent.unserialisable", "Odd has no JSON form"),
    "nan": (500, "agent.unserialisable", "Out of range"),
    "loop": (500, "agent.unserialisable", "contains itself"),
    "keys": (500, "agent.unserialisable", "keys must be"),
    "bytes": (500, "agent.unserialisable", "bytes has no JSON form"),
}


@pytest.mark.parametrize("entrypoint", ["agent:run", "agent:sync"])
async def test_author_failures_are_typed_and_the_worker_lives(start: Any, entrypoint: str) -> None:
    worker = await start(RAISING, entrypoint=entrypoint)
    for kind, (status, code, cause) in EXPECTED.items():
        answer = await worker.run(kind)
        problem = answer.json
        assert (kind, answer.status, problem["code"]) == (kind, status, code), problem
        assert cause in problem["cause"]
        assert "Traceback" not in answer.body.decode()
        assert problem["next_step"]
    assert (await worker.run("value")).json["location"] == "agent.py:5"
    assert (await worker.run("odd")).json["detail"].endswith("output.list[1].it is a Odd")
    assert (await worker.run("")).output == "fine"
    assert any("Traceback" in message and "no such thing" in message for message in worker.messages())


async def test_the_instance_token_never_leaves_in_an_error(hosted: Any) -> None:
    worker = await hosted("import os\ndef run(input):\n    raise ValueError(os.environ['OPENAI_API_KEY'])")
    answer = await worker.run()
    assert answer.json["cause"] == "ValueError: ***"


STARTS: dict[str, tuple[str, str, str, str]] = {
    "missing module": ("x = 1", "nothing:run", "entrypoint.not_found", "there is agent"),
    "missing attribute": ("def walk(input): ...", "agent:run", "entrypoint.not_found", "it has walk"),
    "nothing fits": ("x = 1", "", "entrypoint.not_found", ""),
    "raises": ("import os\nos.environ['EXTERNAL_API_KEY']", "", "entrypoint.import_failed", "'EXTERNAL_API_KEY' (agent.py:2)"),
    "missing package": ("import numpyy", "", "entrypoint.import_failed", "No module named 'numpyy' (agent.py:1)"),
    "syntax error": ("def run(:\n  pass", "", "entrypoint.syntax_error", "(agent.py:1)"),
    "exits": ("import sys\nsys.exit(0)", "", "entrypoint.import_failed", "sys.exit(0) (agent.py:2)"),
    "not callable": ("run = 5", "agent:run", "entrypoint.not_an_agent", "int"),
    "three parameters": ("def run(a, b, c): ...", "", "entrypoint.bad_signature", "it requires a, b, c"),
    "constructor raises": (
        "from nexus.ai.agents import Agent\nclass A(Agent):\n    def __init__(self):\n        raise OSError('no disk')",
        "",
        "entrypoint.import_failed",
        "OSError: no disk (agent.py:4)",
    ),
    "constructor needs arguments": (
        "from nexus.ai.agents import Agent\nclass A(Agent):\n    def __init__(self, key):\n        self.key = key",
        "",
        "entrypoint.bad_signature",
        "requires key",
    ),
    "two agents": (
        "from nexus.ai.agents import Agent\nclass A(Agent): ...\nclass B(Agent): ...",
        "",
        "entrypoint.ambiguous",
        "",
    ),
    "no process": ("from nexus.ai.agents import Agent\nagent = Agent(name='x')", "", "entrypoint.not_an_agent", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", STARTS)
async def test_a_start_that_cannot_succeed_says_why(start: Any, name: str) -> None:
    code, entrypoint, expected, cause = STARTS[name]
    problem = await start.fails(code, entrypoint=entrypoint)
    assert (problem["code"], problem["phase"], problem["kind"]) == (expected, "import", "agent_failed")
    assert cause in problem.get("cause", "")
    assert problem["next_step"]
    if expected in ("entrypoint.import_failed", "entrypoint.syntax_error"):
        assert "agent.py" in "".join(problem["log_tail"])
        assert "nexus/worker" not in "".join(problem["log_tail"])


async def test_no_entry_file_at_all(start: Any) -> None:
    problem = await start.fails({"other.py": "x = 1"})
    assert problem["code"] == "entrypoint.not_found"


async def test_a_hang_while_importing_can_be_looked_at_and_ended(start: Any) -> None:
    worker = await start.launch("import time\nopen('hanging', 'w').close()\nprint('waiting')\ntime.sleep(600)")
    await worker.until((start.source / "hanging").exists)
    assert start.status()["phase"] == "importing"
    os.kill(worker.process.pid, signal.SIGUSR1)
    await worker.until(lambda: any("agent.py" in line.get("raw", "") for line in worker.log()))
    worker.process.send_signal(signal.SIGTERM)
    assert await worker.process.wait() == -signal.SIGTERM
    assert "waiting" in worker.messages()


async def test_abort_dumps_the_stack(start: Any) -> None:
    worker = await start.launch("import time\nopen('hanging', 'w').close()\ntime.sleep(600)")
    await worker.until((start.source / "hanging").exists)
    worker.process.send_signal(signal.SIGABRT)
    assert await worker.process.wait() == -signal.SIGABRT
    assert any("agent.py" in line.get("raw", "") for line in worker.log())


async def test_stop_lets_runs_finish_and_refuses_new_ones(start: Any) -> None:
    code = """
import asyncio, os
async def run(input):
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    return "finished"
"""
    worker = await start(code, NEXUS_GRACE_S="20")
    async with worker.stream() as events:
        await anext(events)
        worker.process.send_signal(signal.SIGTERM)
        (start.source / "go").touch()
        assert [event async for event in events][-1][2]["output"] == "finished"
    assert await worker.process.wait() == 0


async def test_stop_cancels_what_does_not_finish_in_time(start: Any) -> None:
    code = """
import asyncio
async def run(input):
    try:
        await asyncio.sleep(60)
    finally:
        open("cleaned", "w").close()
"""
    worker = await start(code, NEXUS_GRACE_S="0.2")
    async with worker.stream() as events:
        await anext(events)
        worker.process.send_signal(signal.SIGTERM)
        last = [event async for event in events][-1]
    assert (last[1], last[2]["code"], last[2]["kind"]) == ("run.failed", "instance.stopping", "unavailable")
    assert await worker.process.wait() == 0
    assert (start.source / "cleaned").exists()


async def test_stop_does_not_wait_for_the_authors_threads(start: Any) -> None:
    worker = await start("import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\ndef run(): ...")
    assert await worker.stop() == 0


async def test_a_bad_setting_is_named(start: Any) -> None:
    worker = await start.launch("def run(): ...", NEXUS_CONCURRENCY="many")
    assert await worker.process.wait() == 70
    assert "NEXUS_CONCURRENCY" in json.dumps(worker.log())
