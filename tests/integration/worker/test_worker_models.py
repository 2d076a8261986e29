"""Model calls: `self.llm`, plain HTTP libraries, whose run they belong to, and who may use the relay."""

import asyncio
import json
import sys
from typing import Any

from nexus.kit import http_client

LLM = """
from nexus.ai.agents import Agent
class A(Agent):
    async def process(self, input):
        reply = await self.llm.generate(input, system="be kind", max_tokens=5, temperature=0.1)
        return {"text": reply, "model": reply.model, "tokens": [reply.input_tokens, reply.output_tokens]}
"""


async def test_llm_generate_and_what_it_cost(hosted: Any, door: Any) -> None:
    worker = await hosted(LLM)
    answer = await worker.run("hello", Nexus_Run_Id="run_7")
    assert answer.output == {"text": "re: hello", "model": "default", "tokens": [11, 3]}
    metadata = answer.json["metadata"]
    assert (metadata["tokens_used"], metadata["input_tokens"], metadata["output_tokens"]) == (14, 11, 3)
    (call,) = door.model_calls()
    assert call.run_id == "run_7"
    assert json.loads(call.body) == {
        "model": "default", "max_tokens": 5, "temperature": 0.1,
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}],
    }  # fmt: skip


async def test_llm_stream_becomes_message_deltas(hosted: Any) -> None:
    code = """
from nexus.ai.agents import Agent
class A(Agent):
    async def process(self, input):
        async for text in self.llm.stream(input):
            yield text
"""
    worker = await hosted(code)
    events = await worker.events("a b")
    assert [data["text"] for _, name, data in events if name == "message.delta"] == ["re: ", "a ", "b "]
    assert events[-2][1:] == ("usage", {"input_tokens": 11, "output_tokens": 3})
    assert events[-1][2]["metadata"]["tokens_used"] == 14


async def test_a_client_that_leaves_ends_the_model_call_too(hosted: Any, door: Any) -> None:
    door.hang_after_first = True
    code = """
from nexus.ai.agents import Agent
class A(Agent):
    async def process(self, input):
        async for text in self.llm.stream(input):
            yield text
"""
    worker = await hosted(code)
    async with worker.stream("x y") as events:
        await anext(events)
        assert (await anext(events))[2] == {"text": "re: "}
    await asyncio.wait_for(door.gone.wait(), 20)


URLLIB = """
import json, os, urllib.request, threading
def ask(text):
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, {"Authorization": "Bearer any"})
    return json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]
barrier = threading.Barrier(2)
def run(input):
    barrier.wait(20)
    return ask(input)
"""


async def test_concurrent_runs_are_told_apart_without_the_authors_help(hosted: Any, door: Any) -> None:
    worker = await hosted(URLLIB)
    one, two = await asyncio.gather(worker.run("1", Nexus_Run_Id="run_1"), worker.run("2", Nexus_Run_Id="run_2"))
    assert (one.output, two.output) == ("re: 1", "re: 2")
    assert sorted((call.run_id, json.loads(call.body)["messages"][0]["content"]) for call in door.model_calls()) == [
        ("run_1", "1"), ("run_2", "2"),
    ]  # fmt: skip
    assert one.json["metadata"]["tokens_used"] == two.json["metadata"]["tokens_used"] == 14


async def test_the_only_run_in_hand_is_taken_when_a_call_does_not_say(hosted: Any, door: Any) -> None:
    code = """
import json, os, subprocess, sys
SCRIPT = '''
import http.client, json, os, urllib.parse
url = urllib.parse.urlsplit(os.environ["OPENAI_BASE_URL"])
c = http.client.HTTPConnection(url.netloc)
c.request("POST", url.path + "/chat/completions", json.dumps({"model": "m", "messages": [{"content": "sub"}]}),
          {"x-api-key": os.environ["OPENAI_API_KEY"], "content-type": "application/json"})
print(json.load(c.getresponse())["choices"][0]["message"]["content"])
'''
def run(input):
    return subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout.strip()
"""
    worker = await hosted(code)
    answer = await worker.run(Nexus_Run_Id="run_only")
    assert answer.output == "re: sub"
    assert [call.run_id for call in door.model_calls()] == ["run_only"]
    assert answer.json["metadata"]["tokens_used"] == 14


async def test_httpx2_requests_and_their_streams_carry_the_run(hosted: Any, door: Any, box: Any) -> None:
    """With this test's own libraries on the path, as if the author's environment had them."""
    site = next(path for path in sys.path if path.endswith("site-packages"))
    code = f"""
import sys; sys.path.append({site!r})
import asyncio, os, httpx2, requests
URL = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
def body(text): return {{"model": "m", "messages": [{{"role": "user", "content": text}}]}}
ready = asyncio.Event(); count = 0
async def run(input):
    global count
    count += 1
    if count == 2: ready.set()
    await ready.wait()
    async with httpx2.AsyncClient() as client:
        async with client.stream("POST", URL, json=body("async " + input)) as answer:
            await answer.aread()
    httpx2.post(URL, json=body("sync " + input)).raise_for_status()
    await asyncio.to_thread(lambda: requests.post(URL, json=body("requests " + input)).raise_for_status())
    return input
"""
    worker = await hosted(code)
    await asyncio.gather(worker.run("1", Nexus_Run_Id="run_1"), worker.run("2", Nexus_Run_Id="run_2"))
    calls = sorted((json.loads(call.body)["messages"][0]["content"], call.run_id) for call in door.model_calls())
    assert calls == [(f"{kind} {n}", f"run_{n}") for kind in ("async", "requests", "sync") for n in ("1", "2")]


async def test_the_relay_serves_nobody_else_and_hides_what_the_caller_sent(hosted: Any, door: Any) -> None:
    worker = await hosted("import os\ndef run(input):\n    return [os.environ['OPENAI_BASE_URL'], os.environ['OPENAI_API_KEY']]")
    url, key = (await worker.run()).output
    target = http_client.parse_target(url)
    refused = await http_client.request("POST", target, "/chat/completions", headers={"Authorization": "Bearer x"}, timeout_s=10)
    assert (refused.status, json.loads(refused.body)["code"]) == (401, "relay.refused")
    assert door.model_calls() == []
    body = json.dumps({"model": "m", "messages": [{"content": "x"}]}).encode()
    headers = {"X-Api-Key": key, "Nexus-Tenant": "other", "Nexus-Run-Id": "run_forged"}
    answer = await http_client.request("POST", target, "/chat/completions", headers=headers, body=body, timeout_s=10)
    assert answer.status == 200
    (call,) = door.model_calls()
    assert "nexus-tenant" not in call.headers
    assert "x-api-key" not in call.headers
    assert call.run_id == ""


async def test_the_authors_own_key_is_kept_and_accepted(hosted: Any, door: Any) -> None:
    code = LLM.replace("return {", "import os; return os.environ['OPENAI_API_KEY'] + str(reply) or {")
    worker = await hosted(code, OPENAI_API_KEY="sk-mine")
    assert (await worker.run("x")).output == "sk-minere: x"


async def test_a_door_that_is_gone_is_a_clear_error(hosted: Any, short: Any) -> None:
    worker = await hosted(LLM)
    (short / "door.sock").unlink()
    answer = await worker.run("x")
    assert (answer.status, answer.json["code"], answer.json["kind"]) == (503, "door.unreachable", "unavailable")
    assert "nexus status" in answer.json["next_step"]
