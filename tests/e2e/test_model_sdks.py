"""The vendors' SDKs, unmodified, against the models door of a whole host, before a provider that misbehaves on request."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from nexus.testing import dialects, fake_llm
from tests.e2e.conftest import Host, start_host, until

HELLO = [{"role": "user", "content": "one two three"}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PROVIDERS = """
providers:
  azure:
    kind: azure
    base_url: {origin}/openai
    auth:
      deployments: true
      api_version: 2024-10-21
      command: [{python}, -c, "print('entra-token')"]
  bedrock:
    kind: bedrock
    base_url: {origin}/v1
    auth: {{endpoint: mantle, region: eu-west-1}}
"""
BROKEN_OFF = (openai.APIConnectionError, anthropic.APIConnectionError, httpx2.RemoteProtocolError)


@dataclass
class Provider:
    """The scripted provider on a thread of its own; what is told to it happens on its loop."""

    llm: fake_llm.FakeLlm
    loop: asyncio.AbstractEventLoop

    def reset(self, **knobs: Any) -> fake_llm.FakeLlm:
        async def change() -> None:
            self.llm.replies.clear()
            self.llm.requests.clear()
            self.llm.cancelled = 0
            self.llm.knobs = fake_llm.Knobs(**{"reply": "hello to you", **knobs})

        asyncio.run_coroutine_threadsafe(change(), self.loop).result(10)
        return self.llm


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    loop, llm = asyncio.new_event_loop(), fake_llm.FakeLlm()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(llm.__aenter__(), loop).result(10)
    yield Provider(llm, loop)
    asyncio.run_coroutine_threadsafe(llm.__aexit__(None, None, None), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture(scope="module")
def door(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host whose providers are all the scripted one, asked in their own ways."""
    llm, home = provider.llm, tmp_path_factory.mktemp("sdk home")
    (home / "models.yaml").write_text(PROVIDERS.format(origin=llm.origin, python=sys.executable))
    given = {"OPENAI_BASE_URL": llm.base_url, "OPENAI_API_KEY": "sk-host", "ANTHROPIC_BASE_URL": llm.origin}
    host = start_host(home, ANTHROPIC_API_KEY="sk-ant-host", AWS_ACCESS_KEY_ID="AKID", AWS_SECRET_ACCESS_KEY="s", **given)
    try:
        yield host
    finally:
        host.cli("down", timeout=60)


@pytest.fixture(scope="module")
def gpt(door: Host) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=door.url + "/v1", api_key=door.key, max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def claude(door: Host) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=door.url, api_key=door.key, max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture(autouse=True)
def _well(provider: Provider, gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    """Failures of the test before may have opened the providers' circuits: begin when they answer again."""
    provider.reset()

    def answers() -> bool:
        with contextlib.suppress(openai.APIStatusError, anthropic.APIStatusError):
            gpt.chat.completions.create(model="gpt-x", messages=HELLO)
            claude.messages.create(model="claude-x", max_tokens=9, messages=HELLO)
            return True
        return False

    until(answers, what="the providers to answer again")


def test_openai_chat_whole_and_streamed_with_usage(provider: Provider, gpt: openai.OpenAI) -> None:
    llm = provider.reset()
    whole = gpt.chat.completions.create(model="gpt-x", messages=HELLO)
    assert whole.choices[0].message.content == "hello to you"
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 3)
    assert llm.requests[-1].headers["authorization"] == "Bearer sk-host"
    chunks = list(gpt.chat.completions.create(model="gpt-x", messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hello to you"
    asked = gpt.chat.completions.create(model="gpt-x", messages=HELLO, stream=True, stream_options={"include_usage": True})
    last = list(asked)[-1]
    assert last.usage is not None
    assert last.usage.total_tokens == 6


def test_openai_tools_whole_and_streamed(provider: Provider, gpt: openai.OpenAI) -> None:
    llm = provider.reset()
    call = dialects.ToolCall(name="weather", arguments={"city": "Oslo"})
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    llm.replies.extend([call, call])
    made = gpt.chat.completions.create(model="gpt-x", messages=HELLO, tools=tools).choices[0]
    assert made.finish_reason == "tool_calls"
    assert made.message.tool_calls[0].function.arguments == '{"city": "Oslo"}'
    assert llm.requests[-1].body["tools"] == tools
    with gpt.chat.completions.stream(model="gpt-x", messages=HELLO, tools=tools) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    assert final.choices[0].message.tool_calls[0].function.name == "weather"


def test_openai_responses_whole_and_streamed(provider: Provider, gpt: openai.OpenAI) -> None:
    provider.reset()
    whole = gpt.responses.create(model="gpt-x", input="one two three")
    assert whole.output_text == "hello to you"
    with gpt.responses.stream(model="gpt-x", input="one two three") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == "hello to you"
    assert final.usage.input_tokens == 3


def test_openai_embeddings_and_models(provider: Provider, gpt: openai.OpenAI) -> None:
    provider.reset()
    one, two, again = gpt.embeddings.create(model="gpt-x", input=["a", "b", "a"]).data
    assert one.embedding == again.embedding != two.embedding
    assert "smollm2" in [model.id for model in gpt.models.list()]


def test_anthropic_messages_tools_and_counting(provider: Provider, claude: anthropic.Anthropic) -> None:
    llm = provider.reset()
    whole = claude.messages.create(model="claude-x", max_tokens=50, messages=HELLO)
    assert whole.content[0].text == "hello to you"
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (3, 3)
    assert llm.requests[-1].headers["x-api-key"] == "sk-ant-host"
    assert "authorization" not in llm.requests[-1].headers
    with claude.messages.stream(model="claude-x", max_tokens=50, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == "hello to you"
        assert stream.get_final_message().usage.output_tokens == 3
    tools: Any = [{"name": "weather", "input_schema": WEATHER}]
    llm.replies.extend([dialects.ToolCall(name="weather", arguments={"city": "Oslo"})] * 2)
    used = claude.messages.create(model="claude-x", max_tokens=50, messages=HELLO, tools=tools)
    assert (used.stop_reason, used.content[0].input) == ("tool_use", {"city": "Oslo"})
    with claude.messages.stream(model="claude-x", max_tokens=50, messages=HELLO, tools=tools) as stream:
        assert stream.get_final_message().content[0].input == {"city": "Oslo"}
    assert claude.messages.count_tokens(model="claude-x", messages=HELLO).input_tokens == 3


def test_both_async_at_once(provider: Provider, door: Host) -> None:
    provider.reset()

    async def ask() -> list[str]:
        async with (
            openai.AsyncOpenAI(base_url=door.url + "/v1", api_key=door.key) as gpt,
            anthropic.AsyncAnthropic(base_url=door.url, api_key=door.key) as claude,
        ):

            async def chunks() -> str:
                stream = await gpt.chat.completions.create(model="gpt-x", messages=HELLO, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            async def texts() -> str:
                async with claude.messages.stream(model="claude-x", max_tokens=9, messages=HELLO) as stream:
                    return "".join([text async for text in stream.text_stream])

            return await asyncio.gather(*[ask() for _ in range(8) for ask in (chunks, texts)])

    assert asyncio.run(ask()) == ["hello to you"] * 16


def test_a_wrong_key_is_an_authentication_error(door: Host) -> None:
    with (
        openai.OpenAI(base_url=door.url + "/v1", api_key="nxk_wrong", max_retries=0) as gpt,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        gpt.chat.completions.create(model="gpt-x", messages=HELLO)
    assert refused.value.code == "auth.unknown_key"
    with (
        anthropic.Anthropic(base_url=door.url, api_key="nxk_wrong", max_retries=0) as claude,
        pytest.raises(anthropic.AuthenticationError),
    ):
        claude.messages.create(model="claude-x", max_tokens=9, messages=HELLO)


def test_a_model_the_provider_does_not_know(provider: Provider, gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    provider.reset(strict=True, models=("gpt-x",))
    assert gpt.chat.completions.create(model="gpt-x", messages=HELLO).choices
    with pytest.raises(openai.NotFoundError):
        gpt.chat.completions.create(model="gpt-unknown", messages=HELLO)
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="claude-unknown", max_tokens=9, messages=HELLO)


def test_the_sdks_own_retries_obey_the_providers_pause(provider: Provider, door: Host) -> None:
    llm = provider.reset(fail=429, fail_times=1, retry_after_s=0.05)
    with openai.OpenAI(base_url=door.url + "/v1", api_key=door.key, max_retries=2) as gpt:
        assert gpt.chat.completions.create(model="gpt-x", messages=HELLO).choices
    assert len(llm.requests) == 2


@pytest.mark.parametrize(("status", "kind"), [(429, "RateLimitError"), (500, "InternalServerError")])
def test_a_providers_failure_has_its_own_exception(
    provider: Provider, gpt: openai.OpenAI, claude: anthropic.Anthropic, status: int, kind: str
) -> None:
    provider.reset(fail=status, retry_after_s=7)
    with pytest.raises(getattr(openai, kind)) as first:
        gpt.chat.completions.create(model="gpt-x", messages=HELLO)
    with pytest.raises(getattr(anthropic, kind)) as second:
        claude.messages.create(model="claude-x", max_tokens=9, messages=HELLO)
    for raised in (first.value, second.value):
        assert raised.response.headers["retry-after"] == "7"
        assert f"scripted failure {status}" in str(raised)


def test_the_hosts_own_wrong_credential_is_not_the_callers_fault(provider: Provider, gpt: openai.OpenAI) -> None:
    provider.reset(key="sk-another")
    with pytest.raises(openai.InternalServerError) as raised:
        gpt.chat.completions.create(model="gpt-x", messages=HELLO)
    assert raised.value.code == "model.credential_refused"
    assert "sk-host" not in raised.value.response.text


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_cut_in_the_middle_is_an_error_and_never_a_short_answer(
    provider: Provider, gpt: openai.OpenAI, claude: anthropic.Anthropic, stream: bool
) -> None:
    provider.reset(cut_after=2)

    def read(made: Any) -> list[Any]:
        return list(made) if stream else [made]

    with pytest.raises((*BROKEN_OFF, openai.InternalServerError)):
        read(gpt.chat.completions.create(model="gpt-x", messages=HELLO, stream=stream))
    with pytest.raises((*BROKEN_OFF, anthropic.InternalServerError)):
        read(claude.messages.create(model="claude-x", max_tokens=9, messages=HELLO, stream=stream))


def test_garbage_is_an_error_in_both(provider: Provider, gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    provider.reset(garbage=True)
    with pytest.raises((openai.APIError, ValueError)):
        list(gpt.chat.completions.create(model="gpt-x", messages=HELLO, stream=True))
    with pytest.raises((anthropic.APIError, ValueError)):
        list(claude.messages.create(model="claude-x", max_tokens=9, messages=HELLO, stream=True))


def test_a_reader_that_leaves_ends_the_providers_work(
    provider: Provider, gpt: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    llm = provider.reset(reply=None, tokens=2000, piece_s=0.01)
    stream = gpt.chat.completions.create(model="gpt-x", messages=HELLO, stream=True)
    next(iter(stream))
    stream.close()
    until(lambda: llm.cancelled == 1, timeout=5, what="the provider's answer to be cancelled")
    messages = claude.messages.create(model="claude-x", max_tokens=9, messages=HELLO, stream=True)
    next(iter(messages))
    messages.close()
    until(lambda: llm.cancelled == 2, timeout=5, what="the provider's answer to be cancelled")


def test_an_async_reader_that_is_cancelled_ends_the_providers_work(provider: Provider, door: Host) -> None:
    llm = provider.reset(latency_s=60)

    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=door.url + "/v1", api_key=door.key, max_retries=0) as gpt:
            asking = asyncio.create_task(gpt.chat.completions.create(model="gpt-x", messages=HELLO))
            while not llm.requests:
                await asyncio.sleep(0.01)
            asking.cancel()
            await asyncio.wait([asking])

    asyncio.run(leave())
    until(lambda: llm.cancelled == 1, timeout=5, what="the provider's answer to be cancelled")


def test_azure_is_asked_by_deployment_and_version_with_a_fetched_token(provider: Provider, gpt: openai.OpenAI) -> None:
    llm = provider.reset()

    def answer() -> Any:
        with contextlib.suppress(openai.APIStatusError):  # until the token is there, at most a moment after the start
            return gpt.chat.completions.create(model="azure/gpt-4o", messages=HELLO)

    made = until(answer, what="a token for azure")
    assert made.choices[0].message.content == "hello to you"
    assert llm.requests[-1].path == "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"
    assert llm.requests[-1].headers["authorization"] == "Bearer entra-token"


def test_bedrock_is_asked_with_a_signature_in_both_dialects(
    provider: Provider, gpt: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    llm = provider.reset()
    gpt.chat.completions.create(model="bedrock/openai.gpt-oss-120b", messages=HELLO)
    with claude.messages.stream(model="bedrock/anthropic.claude-x", max_tokens=9, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == "hello to you"
    assert [request.path for request in llm.requests] == ["/v1/chat/completions", "/anthropic/v1/messages"]
    assert [request.body["model"] for request in llm.requests] == ["openai.gpt-oss-120b", "anthropic.claude-x"]
    for request in llm.requests:
        assert request.headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKID/")
        assert "/eu-west-1/bedrock-mantle/aws4_request" in request.headers["authorization"]
        assert "x-api-key" not in request.headers


def test_every_call_is_audited_once_also_when_control_is_killed_meanwhile(
    provider: Provider, door: Host, gpt: openai.OpenAI
) -> None:
    provider.reset()
    for number in range(60):
        if number == 30:
            processes = json.loads((door.home / "host.json").read_text())["processes"]
            os.kill(next(one["pid"] for one in processes if one["name"] == "control"), signal.SIGKILL)
        gpt.chat.completions.create(model=f"audited-{number}", messages=HELLO, user="ann")

    def recorded() -> list[Any]:
        result = door.cli("audit", "export", "--format", "jsonl")
        lines = [json.loads(line) for line in result.out.splitlines()] if result.code == 0 else []
        found = [line["record"] for line in lines if str(line["record"].get("upstream_model")).startswith("audited-")]
        return found if len(found) >= 60 else []

    found = until(recorded, what="all records in the trail")
    assert sorted(one["upstream_model"] for one in found) == sorted(f"audited-{number}" for number in range(60))
    assert {one["outcome"] for one in found} == {"completed"}
    assert {(one["input_tokens"], one["output_tokens"]) for one in found} == {(3, 3)}
    assert door.ok("audit", "verify", "--json").json["intact"]
    exported = door.home / "trail.jsonl"
    door.ok("audit", "export", "-o", str(exported))
    assert "intact" in door.ok("audit", "verify", "--file", str(exported)).out
    exported.write_text(exported.read_text().replace('"output_tokens":3', '"output_tokens":2', 1))
    changed = door.cli("audit", "verify", "--file", str(exported))
    assert (changed.code, "was altered" in changed.err) == (6, True)
