"""The scripted provider asks for tools in every dialect, whole and streamed, as the vendors do."""

import json
from typing import Any

import httpx2
import pytest

from nexus.kit import sse
from nexus.testing import dialects, fake_llm

CALL = dialects.ToolCall(name="add", arguments={"a": 1, "b": 2}, id="call_9")
MESSAGES = {"model": "m", "messages": [{"role": "user", "content": "1 + 2"}]}


async def ask(path: str, body: dict[str, Any]) -> Any:
    async with fake_llm.FakeLlm(replies=[CALL]) as llm, httpx2.AsyncClient(base_url=llm.base_url, timeout=10) as http:
        answer = await http.post(path, json=body)
        if not body.get("stream"):
            return answer.json()
        decoder = sse.Decoder()
        return [json.loads(event.data) for event in decoder.feed(answer.content) if event.data != "[DONE]"]


async def test_chat_completions() -> None:
    choice = (await ask("/chat/completions", MESSAGES))["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    called = choice["message"]["tool_calls"][0]
    assert (called["id"], called["function"]) == ("call_9", {"name": "add", "arguments": '{"a": 1, "b": 2}'})
    chunks = await ask("/chat/completions", MESSAGES | {"stream": True})
    assert chunks[1]["choices"][0]["delta"]["tool_calls"][0] == {"index": 0, **called}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_responses() -> None:
    item = (await ask("/responses", {"model": "m", "input": "1 + 2"}))["output"][0]
    assert (item["type"], item["call_id"], json.loads(item["arguments"])) == ("function_call", "call_9", {"a": 1, "b": 2})
    events = await ask("/responses", {"model": "m", "input": "1 + 2", "stream": True})
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"]["output"] == [item]
    assert "".join(event["delta"] for event in events if event["type"].endswith("arguments.delta")) == item["arguments"]


@pytest.mark.parametrize("stream", [False, True])
async def test_messages(stream: bool) -> None:
    answer = await ask("/messages", MESSAGES | {"max_tokens": 9, "stream": stream})
    if not stream:
        assert answer["stop_reason"] == "tool_use"
        assert answer["content"] == [{"type": "tool_use", "id": "call_9", "name": "add", "input": {"a": 1, "b": 2}}]
        return
    kinds = [event["type"] for event in answer]
    assert answer[kinds.index("content_block_start")]["content_block"]["input"] == {}
    assert json.loads(answer[kinds.index("content_block_delta")]["delta"]["partial_json"]) == {"a": 1, "b": 2}
    assert answer[kinds.index("message_delta")]["delta"]["stop_reason"] == "tool_use"
