"""`self.llm` against providers that misbehave: every answer is a reply or a typed error."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from nexus.ai.agents import Llm
from nexus.core import errors


@contextlib.asynccontextmanager
async def provider(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Answers every connection with these bytes and closes."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        yield


OK = b"HTTP/1.1 200 X\r\n"


def http(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


REFUSALS = {
    "rate": (http(429, b'{"error": {"message": "slow", "code": "rate"}}'), errors.Exhausted, "model.refused", "slow"),
    "ours": (http(404, b'{"code": "model.unknown", "detail": "no such"}'), errors.NotFound, "model.unknown", "no such"),
    "key": (http(401, b"{}"), errors.Unauthenticated, "model.refused", "{}"),
    "html": (http(502, b"<html>bad gateway</html>"), errors.Unavailable, "model.refused", "bad gateway"),
    "garbage": (http(200, b"[]"), errors.Unavailable, "model.bad_response", "[]"),
    "no choices": (http(200, b'{"choices": []}'), errors.Unavailable, "model.bad_response", "choices"),
    "closed": (b"", errors.Unavailable, "model.unreachable", "closed without an answer"),
    "cut": (OK + b"content-length: 500\r\n\r\n{", errors.Unavailable, "model.unreachable", "inside a body"),
    "not http": (b"hello\r\n\r\n", errors.Unavailable, "model.unreachable", "start line"),
    "bad length": (OK + b"content-length: -5\r\n\r\n", errors.Unavailable, "model.unreachable", "content-length"),
    "bad chunk": (OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n", errors.Unavailable, "model.unreachable", "chunk size"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
async def test_generate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, kind, code, cause = REFUSALS[name]
    async with provider(answer, monkeypatch):
        with pytest.raises(kind) as caught:
            await Llm().generate("x")
    assert caught.value.code == code
    assert cause in (caught.value.cause or "")


async def test_a_stream_that_is_cut_is_an_error_after_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b'HTTP/1.1 200 X\r\n\r\ndata: {"choices": [{"delta": {"content": "par"}}]}\n\n'
    async with provider(body, monkeypatch):
        texts = Llm().stream("x")
        assert await anext(texts) == "par"
        with pytest.raises(errors.Unavailable) as caught:
            await anext(texts)
    assert caught.value.code == "model.cut_off"


async def test_an_error_in_the_middle_of_a_stream_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    async with provider(b'HTTP/1.1 200 X\r\n\r\ndata: {"error": {"message": "overloaded"}}\n\n', monkeypatch):
        with pytest.raises(errors.Unavailable, match="502") as caught:
            await anext(Llm().stream("x"))
    assert caught.value.cause == "overloaded"


async def test_a_wrong_base_url_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "ftp://x")
    with pytest.raises(errors.Invalid) as caught:
        await Llm().generate("x")
    assert caught.value.code == "model.bad_base_url"


async def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    with pytest.raises(errors.Unavailable) as caught:
        await Llm().generate("x")
    assert caught.value.code == "model.unreachable"
