"""Logs and traces of the box: lines that say whose they are, storms that stay bounded, spans under the caller's trace."""

import asyncio
import json
from typing import Any

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_prints_and_log_records_carry_their_run(start: Any) -> None:
    code = """
import logging, sys, warnings
def run(input):
    print("plain", input)
    print("no newline", end="")
    print("to stderr", file=sys.stderr)
    logging.getLogger("mine").warning("careful %s", input)
    logging.getLogger("mine").debug("not shown")
    try:
        1 / 0
    except ZeroDivisionError:
        logging.exception("it broke")
    sys.stdout.buffer.write(b"bytes\\n")
"""
    worker = await start(code)
    await worker.run("x", session="s1", Nexus_Run_Id="run_1", traceparent=PARENT)
    lines = [line for line in worker.log() if line.get("run_id") == "run_1"]
    assert [(line["level"], line["message"].split("\n")[0]) for line in lines] == [
        ("info", "plain x"), ("warning", "to stderr"), ("warning", "careful x"), ("error", "it broke"),
        ("info", "no newlinebytes"),
    ]  # fmt: skip
    assert all(line["session_id"] == "s1" and line["trace_id"] == PARENT[3:35] and line["at"] > 1e9 for line in lines)
    assert "ZeroDivisionError" in lines[3]["message"]
    assert lines[2]["logger"] == "mine"


async def test_the_log_level_can_be_set(start: Any) -> None:
    worker = await start("import logging\ndef run(input):\n    logging.debug('deep')", LOG_LEVEL="debug")
    await worker.run()
    assert "deep" in worker.messages()


async def test_long_lines_are_cut_with_a_mark(start: Any) -> None:
    worker = await start("def run(input):\n    print('x' * 1_000_000)\n    print('y' * 100_000, end='')\n    print('after')")
    await worker.run()
    first, second, third = [message for message in worker.messages() if message[:1] in "xya"]
    assert len(first) < 17_000
    assert first.endswith("… [cut: 983616 more characters]")
    assert second.endswith("more characters]")
    assert third == "after"


async def test_a_print_storm_keeps_memory_flat(start: Any) -> None:
    worker = await start("def run(input):\n    for n in range(60000):\n        print('line', n, 'x' * 900)")
    before = (await worker.call("GET", "/health")).json["memory_bytes"]
    await worker.run()
    after = (await worker.call("GET", "/health")).json["memory_bytes"]
    assert after - before < 16 * 1024 * 1024
    assert sum(message.startswith("line ") for message in worker.messages()) == 60000


async def test_spans_arrive_under_the_callers_trace(hosted: Any, door: Any) -> None:
    code = """
from nexus.ai.agents import Agent
from opentelemetry import trace
class MyAgent(Agent):
    async def process(self, input: str):
        tracer = trace.get_tracer(__name__)
        with tracer.start_as_current_span("process_input") as span:
            span.set_attribute("numbers", [1, 2])
            return await self.llm.generate(input)
"""
    worker = await hosted(code, NEXUS_TRACES="1", NEXUS_ENVIRONMENT="staging")
    assert (await worker.run("hi", Nexus_Run_Id="run_1", traceparent=PARENT)).output == "re: hi"
    await worker.stop()
    sent = [json.loads(entry.body) for entry in door.seen if entry.path == "/door/traces"]
    spans = {
        span["name"]: span
        for body in sent
        for entry in body["resourceSpans"]
        for scope in entry["scopeSpans"]
        for span in scope["spans"]
    }
    root, own = spans["run probe"], spans["process_input"]
    assert (root["traceId"], root["parentSpanId"], root["kind"]) == (PARENT[3:35], PARENT[36:52], 2)
    assert (own["traceId"], own["parentSpanId"]) == (root["traceId"], root["spanId"])
    (call,) = door.model_calls()
    assert call.headers["traceparent"] == f"00-{own['traceId']}-{own['spanId']}-01", "a model call hangs on the author's span"
    assert {"key": "numbers", "value": {"arrayValue": {"values": [{"intValue": "1"}, {"intValue": "2"}]}}} in own["attributes"]
    resource = {
        entry["key"]: entry["value"].get("stringValue") for entry in sent[0]["resourceSpans"][0]["resource"]["attributes"]
    }
    assert (resource["service.name"], resource["service.version"], resource["deployment.environment.name"]) == (
        "probe", "1.2.3", "staging",
    )  # fmt: skip


async def test_without_tracing_a_model_call_still_belongs_to_the_runs_trace(hosted: Any, door: Any) -> None:
    code = """
from nexus.ai.agents import Agent
class MyAgent(Agent):
    async def process(self, input: str):
        return await self.llm.generate(input)
"""
    worker = await hosted(code)
    await worker.run("hi", traceparent=PARENT)
    assert door.model_calls()[0].headers["traceparent"] == PARENT


async def test_without_tracing_opentelemetry_is_not_imported(hosted: Any) -> None:
    worker = await hosted(
        "import sys\ndef run(input):\n    return [name for name in sys.modules if name in ('opentelemetry', 'pydantic')]"
    )
    assert (await worker.run()).output == []


async def test_a_log_that_nobody_reads_does_not_stop_the_agent(hosted: Any, box: Any, short: Any) -> None:
    import os

    os.mkfifo(short / "fifo")
    reading = os.open(short / "fifo", os.O_RDWR | os.O_NONBLOCK)
    source = short / "source"
    source.mkdir()
    (source / "agent.py").write_text("def run(input):\n    for n in range(2000):\n        print('x' * 500)\n    return 'done'")
    env = {"NEXUS_SOURCE": str(source), "NEXUS_SOCKET": str(short / "w.sock"), "NEXUS_STATUS_FILE": str(short / "status.json")}
    python, copy = box
    process = await asyncio.create_subprocess_exec(
        str(python), "-P", str(copy / "boot.py"), env=env, stdout=reading, stderr=reading
    )
    try:
        while not (short / "w.sock").exists() or '"ready"' not in (short / "status.json").read_text():
            await asyncio.sleep(0.01)
        from nexus.kit import http_client

        target = http_client.Target(unix=str(short / "w.sock"))
        answer = await http_client.request("POST", target, "/run", headers={}, body=b"{}", timeout_s=30)
        assert json.loads(answer.body)["output"] == "done"
    finally:
        process.kill()
        await process.wait()
        os.close(reading)
