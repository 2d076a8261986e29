"""An agent's SDK of one vendor on a model of the other, by the real translator in its own environment, on a whole host."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from nexus.testing import dialects, fake_llm
from tests.e2e.conftest import Host, start_host, until

HELLO = [{"role": "user", "content": "one two three"}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
OSLO = dialects.ToolCall(name="weather", arguments={"city": "Oslo"})
PROVIDERS = """
providers:
  claude: {{kind: anthropic, base_url: {base}, key: env:CLAUDE_KEY, dialects: [anthropic], translate: true}}
  gpt: {{base_url: {base}, key: env:GPT_KEY, translate: true}}
  deaf: {{base_url: {base}, key: env:GPT_KEY}}
"""


@pytest.fixture(scope="module")
def llm() -> Iterator[fake_llm.FakeLlm]:
    loop, scripted = asyncio.new_event_loop(), fake_llm.FakeLlm(knobs=fake_llm.Knobs(reply="hello to you"))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(scripted.__aenter__(), loop).result(10)
    yield scripted
    asyncio.run_coroutine_threadsafe(scripted.__aexit__(None, None, None), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def begin(home: Path, llm: fake_llm.FakeLlm) -> Host:
    home.mkdir(exist_ok=True)
    (home / "models.yaml").write_text(PROVIDERS.format(base=llm.base_url))
    return start_host(home, CLAUDE_KEY="sk-claude", GPT_KEY="sk-gpt")


@pytest.fixture(scope="module")
def host(llm: fake_llm.FakeLlm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    running = begin(tmp_path_factory.mktemp("translating home"), llm)
    try:
        yield running
    finally:
        running.cli("down", timeout=60)


@pytest.fixture(scope="module")
def translating(host: Host) -> Host:
    host.ok("models", "translator", timeout=300)
    return host


def gpt_sdk(host: Host) -> openai.OpenAI:
    return openai.OpenAI(base_url=host.url + "/v1", api_key=host.key, max_retries=0, timeout=60)


def claude_sdk(host: Host) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=host.url, api_key=host.key, max_retries=0, timeout=60)


@pytest.mark.slow
def test_without_the_translator_the_error_says_how_to_get_it(host: Host) -> None:
    with gpt_sdk(host) as gpt, pytest.raises(openai.InternalServerError) as caught:
        gpt.chat.completions.create(model="claude/x", messages=HELLO)
    assert caught.value.code == "translator.not_installed"
    assert "nexus models translator" in str(caught.value)


@pytest.mark.slow
def test_openais_sdk_on_an_anthropic_model(translating: Host, llm: fake_llm.FakeLlm) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    with gpt_sdk(translating) as gpt:
        whole = gpt.chat.completions.create(model="claude/x", messages=[{"role": "system", "content": "Be brief."}, *HELLO])
        assert whole.choices[0].message.content == "hello to you"
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 3
        asked = llm.requests[-1]
        assert (asked.path, asked.headers["x-api-key"], asked.body["model"]) == ("/v1/messages", "sk-claude", "x")
        assert asked.body["messages"][0]["role"] == "user"
        chunks = list(gpt.chat.completions.create(model="claude/x", messages=HELLO, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello to you"
        llm.replies.extend([OSLO, OSLO])
        made = gpt.chat.completions.create(model="claude/x", messages=HELLO, tools=tools).choices[0]
        assert (made.finish_reason, made.message.tool_calls[0].function.arguments) == ("tool_calls", '{"city": "Oslo"}')
        with gpt.chat.completions.stream(model="claude/x", messages=HELLO, tools=tools) as stream:
            assert stream.get_final_completion().choices[0].message.tool_calls[0].function.name == "weather"
        call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
        turn: Any = [
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ]
        gpt.chat.completions.create(model="claude/x", messages=turn, tools=tools)
        assert "tool_result" in str(llm.requests[-1].body["messages"])


@pytest.mark.slow
def test_anthropics_sdk_on_an_openai_model(translating: Host, llm: fake_llm.FakeLlm) -> None:
    tools: Any = [{"name": "weather", "input_schema": WEATHER}]
    with claude_sdk(translating) as claude:
        whole = claude.messages.create(model="gpt/y", max_tokens=50, system="Be brief.", messages=HELLO)
        assert (whole.content[0].text, whole.usage.output_tokens) == ("hello to you", 3)
        asked = llm.requests[-1]
        assert (asked.path, asked.headers["authorization"], asked.body["model"]) == ("/v1/chat/completions", "Bearer sk-gpt", "y")
        assert asked.body["messages"][0] == {"role": "system", "content": "Be brief."}
        with claude.messages.stream(model="gpt/y", max_tokens=50, messages=HELLO) as stream:
            assert "".join(stream.text_stream) == "hello to you"
            assert stream.get_final_message().usage.output_tokens == 3
        llm.replies.extend([OSLO, OSLO])
        used = claude.messages.create(model="gpt/y", max_tokens=50, messages=HELLO, tools=tools)
        assert (used.stop_reason, used.content[0].input) == ("tool_use", {"city": "Oslo"})
        with claude.messages.stream(model="gpt/y", max_tokens=50, messages=HELLO, tools=tools) as stream:
            assert stream.get_final_message().content[0].input == {"city": "Oslo"}


@pytest.mark.slow
def test_a_translated_call_is_counted_and_audited(translating: Host, llm: fake_llm.FakeLlm) -> None:
    with claude_sdk(translating) as claude:
        claude.messages.create(model="gpt/audited", max_tokens=50, messages=HELLO)

    def recorded() -> Any:
        found = translating.ok("audit", "list", "--limit", "500", "--json").json
        return [one["record"] for one in found if one["record"].get("upstream_model") == "audited"]

    (record,) = until(recorded, what="the call's record")
    assert (record["dialect"], record["provider"], record["output_tokens"]) == ("anthropic", "gpt", 3)


@pytest.mark.slow
def test_errors_come_in_the_dialect_that_was_asked(translating: Host, llm: fake_llm.FakeLlm) -> None:
    with gpt_sdk(translating) as gpt, claude_sdk(translating) as claude:
        llm.turn(fail=429, fail_times=2, retry_after_s=7)
        with pytest.raises(openai.RateLimitError) as first:
            gpt.chat.completions.create(model="claude/x", messages=HELLO)
        with pytest.raises(anthropic.RateLimitError) as second:
            claude.messages.create(model="gpt/y", max_tokens=9, messages=HELLO)
        assert first.value.response.headers["retry-after"] == second.value.response.headers["retry-after"] == "7"
        with pytest.raises(openai.BadRequestError, match="weird"):
            gpt.chat.completions.create(model="claude/x", messages=HELLO, extra_body={"weird": 1})
        with pytest.raises(anthropic.BadRequestError, match="does not speak"):
            claude.messages.create(model="deaf/y", max_tokens=9, messages=HELLO)


@pytest.mark.slow
def test_a_reader_that_leaves_ends_the_providers_work(translating: Host, llm: fake_llm.FakeLlm) -> None:
    llm.turn(reply=None, tokens=2000, piece_s=0.01)
    before = llm.cancelled
    with gpt_sdk(translating) as gpt:
        stream = gpt.chat.completions.create(model="claude/x", messages=HELLO, stream=True)
        next(iter(stream))
        stream.close()
    until(lambda: llm.cancelled > before, timeout=5, what="the provider's answer to be cancelled")
    llm.turn(reply="hello to you", piece_s=0.0)


@pytest.mark.slow
def test_no_client_can_say_whom_the_translator_asks(translating: Host, llm: fake_llm.FakeLlm) -> None:
    with gpt_sdk(translating) as gpt:
        forged = {"nexus-upstream": "eyJkaWFsZWN0IjogIm9wZW5haSJ9"}
        made = gpt.chat.completions.create(model="claude/x", messages=HELLO, extra_headers=forged)
    assert made.choices[0].message.content == "hello to you"
    assert llm.requests[-1].headers["x-api-key"] == "sk-claude"
