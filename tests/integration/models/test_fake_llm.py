"""The scripted provider, asked over real sockets in every dialect and made to fail in every way."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from nexus.kit import sse
from nexus.testing import fake_llm

CHAT = {"model": "m", "messages": [{"role": "user", "content": "one two three"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/chat/completions": CHAT,
    "/completions": {"model": "m", "prompt": "one two three"},
    "/responses": {"model": "m", "input": "one two three"},
    "/messages": CHAT | {"max_tokens": 9},
}


@pytest.fixture
async def llm() -> AsyncIterator[fake_llm.FakeLlm]:
    async with fake_llm.FakeLlm(knobs=fake_llm.Knobs(reply="hello to you")) as server:
        yield server


@pytest.fixture
async def http(llm: fake_llm.FakeLlm) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=llm.base_url, timeout=10) as client:
        yield client


def text_of(answer: dict[str, Any]) -> str:
    if "choices" in answer:
        choice = answer["choices"][0]
        return str(choice["text"] if "text" in choice else choice["message"]["content"])
    content = answer["output"][0]["content"] if "output" in answer else answer["content"]
    return str(content[0]["text"])


def tokens_of(usage: dict[str, int]) -> tuple[int, int]:
    return usage.get("prompt_tokens", usage.get("input_tokens", -1)), usage.get(
        "completion_tokens", usage.get("output_tokens", -1)
    )


@pytest.mark.parametrize("path", BODIES)
async def test_every_dialect_says_the_same_and_counts_it(llm: fake_llm.FakeLlm, http: httpx2.AsyncClient, path: str) -> None:
    answer = (await http.post(path, json=BODIES[path])).json()
    assert text_of(answer) == "hello to you"
    assert tokens_of(answer["usage"]) == (3, 3)
    assert (llm.requests[-1].path, llm.requests[-1].body) == ("/v1" + path, BODIES[path])


@pytest.mark.parametrize("path", BODIES)
async def test_every_dialect_streams_the_same_text(http: httpx2.AsyncClient, path: str) -> None:
    body = BODIES[path] | {"stream": True, "stream_options": {"include_usage": True}}
    decoder, said = sse.Decoder(), ""
    async with http.stream("POST", path, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [event async for chunk in answer.aiter_bytes() for event in decoder.feed(chunk)]
    for event in events:
        if event.data == "[DONE]":
            continue
        value = json.loads(event.data)
        if value.get("choices"):
            choice = value["choices"][0]
            said += choice.get("text") or choice.get("delta", {}).get("content") or ""
        elif isinstance(value.get("delta"), str):
            said += value["delta"]
        elif isinstance(value.get("delta"), dict):
            said += value["delta"].get("text", "")
    assert said == "hello to you"
    assert any("usage" in event.data for event in events)


async def test_embeddings_are_the_same_for_the_same_text(http: httpx2.AsyncClient) -> None:
    answer = (await http.post("/embeddings", json={"model": "m", "input": ["a", "b", "a"]})).json()
    first, second, third = (row["embedding"] for row in answer["data"])
    assert first == third != second


async def test_scripted_replies_come_first_and_in_order(llm: fake_llm.FakeLlm, http: httpx2.AsyncClient) -> None:
    llm.replies.extend(["first", "second"])
    said = [text_of((await http.post("/chat/completions", json=CHAT)).json()) for _ in range(3)]
    assert said == ["first", "second", "hello to you"]


async def test_fails_as_often_as_told_with_retry_after(llm: fake_llm.FakeLlm, http: httpx2.AsyncClient) -> None:
    llm.turn(fail=429, fail_times=2, retry_after_s=7)
    answers = [await http.post("/messages", json=CHAT) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [429, 429, 200]
    assert answers[0].headers["retry-after"] == "7"
    assert answers[0].json()["error"]["type"] == "rate_limit_error"


async def test_leaves_usage_out_when_told(llm: fake_llm.FakeLlm, http: httpx2.AsyncClient) -> None:
    llm.turn(usage=False)
    for path, body in BODIES.items():
        assert not (await http.post(path, json=body)).json().get("usage")


@pytest.mark.parametrize("stream", [True, False])
async def test_cuts_an_answer_in_the_middle(llm: fake_llm.FakeLlm, http: httpx2.AsyncClient, stream: bool) -> None:
    llm.turn(cut_after=2)
    with pytest.raises(httpx2.RemoteProtocolError):
        await http.post("/chat/completions", json=CHAT | {"stream": stream})


async def test_refuses_the_wrong_key_in_either_header(llm: fake_llm.FakeLlm, http: httpx2.AsyncClient) -> None:
    llm.turn(key="right")
    for headers, status in (
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer right"}, 200),
        ({"x-api-key": "right"}, 200),
    ):
        assert (await http.post("/messages", json=CHAT, headers=headers)).status_code == status


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/nowhere", b"{}", 404),
        ("GET", "/chat/completions", b"", 405),
        ("POST", "/chat/completions", b"{not json", 400),
        ("POST", "/chat/completions", b"[]", 400),
    ],
)
async def test_refuses_what_is_no_request(http: httpx2.AsyncClient, method: str, path: str, content: bytes, status: int) -> None:
    assert (await http.request(method, path, content=content)).status_code == status


async def test_a_client_that_leaves_is_noticed(llm: fake_llm.FakeLlm, http: httpx2.AsyncClient) -> None:
    llm.turn(tokens=10_000, reply=None, piece_s=0.05)
    async with http.stream("POST", "/chat/completions", json=CHAT | {"stream": True}) as answer:
        await anext(answer.aiter_bytes())
    async with asyncio.timeout(10):
        while not llm.cancelled:
            await asyncio.sleep(0.01)
