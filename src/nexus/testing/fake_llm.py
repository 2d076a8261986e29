"""A scripted model provider on a loopback port: chat completions, responses, Anthropic messages and embeddings, streaming too.

A fixture (`async with FakeLlm() as llm: … llm.base_url … llm.requests`) and a program (`nexus dev fake-llm`). It says what it is
told, costs what it is told and fails as it is told, so that everything before it can be tried without a model.
"""

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

from nexus.testing import dialects

_BODY_LIMIT = 64 * 1024 * 1024
_HEAD_TIMEOUT_S = 600.0
_MORE = ("/models", "/messages/count_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """How the provider behaves from now on.

    `reply` None answers `word1 word2 …` (`tokens` of them). `fail` is a status (429, 500 …) for the next `fail_times` requests
    (None: for all). `cut_after` breaks the connection after so many pieces of an answer. `key` refuses every other credential,
    `strict` every model that is not in `models`.
    """

    reply: str | None = None
    tokens: int = 16
    latency_s: float = 0.0
    piece_s: float = 0.0
    fail: int | None = None
    fail_times: int | None = None
    retry_after_s: float | None = None
    cut_after: int | None = None
    garbage: bool = False
    usage: bool = True
    key: str | None = field(default=None, repr=False)
    models: tuple[str, ...] = ("fake-model",)
    strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it came. `headers` have lower-case names; `body` is what its JSON held."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass(eq=False)
class FakeLlm:
    """The provider, serving inside its context. `knobs` may be replaced at any time and hold for requests that begin later.

    `replies` (texts, or tools to call) are used up first, in order. `cancelled` counts answers whose client left before the end.
    """

    knobs: Knobs = field(default_factory=Knobs)
    host: str = "127.0.0.1"
    port: int = 0
    replies: list[str | dialects.ToolCall] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    cancelled: int = 0
    _server: asyncio.Server | None = None
    _busy: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def origin(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def base_url(self) -> str:
        """What OpenAI's SDK takes; Anthropic's takes `origin`."""
        return self.origin + "/v1"

    def turn(self, **changes: Any) -> None:
        """Change some knobs: `llm.turn(fail=429, fail_times=1)`."""
        self.knobs = replace(self.knobs, **changes)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self.host, self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._busy:
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        try:
            while (request := await _read_request(reader)) is not None:
                self.requests.append(request)
                if not await self._answer(request, reader, writer):
                    return
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass
        except asyncio.CancelledError:
            pass  # closing; asyncio.streams would report it as an error
        finally:
            self._busy.discard(task)
            writer.close()

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """True when the connection may carry another request."""
        knobs, leaf = self.knobs, _leaf(request.path)
        if (refusal := self._refusal(knobs, request, leaf)) is not None:
            return await _send_json(writer, *refusal)
        if leaf == "/models":
            listed = [{"id": name, "object": "model", "created": dialects.CREATED, "owned_by": "nexus"} for name in knobs.models]
            return await _send_json(writer, 200, {"object": "list", "data": listed})
        answer = self._script(knobs, request)
        if leaf == "/messages/count_tokens":
            return await _send_json(writer, 200, {"input_tokens": len(dialects.prompt_text(request.body).split())})
        if not await _wait_for_client(reader, knobs.latency_s):
            self.cancelled += 1
            return False
        whole, stream = dialects.PATHS[leaf]
        if stream is not None and request.body.get("stream"):
            return await self._stream(stream(answer, request.body), knobs, reader, writer)
        if knobs.garbage:
            return await _send(writer, 200, b"<html>not what you asked for</html>", "text/html")
        if knobs.cut_after is not None:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n{")
            await writer.drain()
            return False
        return await _send_json(writer, 200, whole(answer, request.body))

    def _refusal(self, knobs: Knobs, request: Request, leaf: str) -> tuple[int, object, dict[str, str]] | None:
        error = dialects.anthropic_error if leaf.startswith("/messages") else dialects.openai_error
        given = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if knobs.key is not None and given != knobs.key:
            return 401, error(401, "the API key is not the right one"), {}
        if leaf == "/models" and request.method == "GET":
            return None
        if leaf not in dialects.PATHS and leaf != "/messages/count_tokens":
            return 404, error(404, f"nothing is served at {request.path}"), {}
        if request.method != "POST":
            return 405, error(405, "this takes POST"), {}
        if not isinstance(request.body, dict):
            return 400, error(400, "the body is not a JSON object"), {}
        if knobs.strict and request.body.get("model") not in knobs.models:
            return 404, error(404, f"there is no model {request.body.get('model')!r}"), {}
        if knobs.fail is not None and knobs.fail_times != 0:
            if knobs.fail_times is not None:
                self.turn(fail_times=knobs.fail_times - 1)
            pause = {} if knobs.retry_after_s is None else {"retry-after": f"{knobs.retry_after_s:g}"}
            return knobs.fail, error(knobs.fail, f"scripted failure {knobs.fail}"), pause
        return None

    def _script(self, knobs: Knobs, request: Request) -> dialects.Answer:
        text = self.replies.pop(0) if self.replies else knobs.reply
        calls: tuple[dialects.ToolCall, ...] = ()
        if isinstance(text, dialects.ToolCall):
            calls, words = (text,), []
        else:
            words = text.split(" ") if text is not None else [f"word{number}" for number in range(1, knobs.tokens + 1)]
        pieces = tuple(word if at == 0 else " " + word for at, word in enumerate(words))
        return dialects.Answer(
            id=f"fake{len(self.requests)}",
            model=str(request.body.get("model", knobs.models[0])),
            pieces=pieces,
            input_tokens=len(dialects.prompt_text(request.body).split()) if knobs.usage else None,
            output_tokens=max(1, len(pieces)) if knobs.usage else None,
            calls=calls,
        )

    async def _stream(
        self, events: Iterable[bytes], knobs: Knobs, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        try:
            for event in _cut(events, knobs):
                if not await _wait_for_client(reader, knobs.piece_s):
                    raise ConnectionResetError
                writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                await writer.drain()
        except ConnectionError:
            self.cancelled += 1
            return False
        if knobs.cut_after is not None:
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


def _leaf(path: str) -> str:
    """What is asked for, whichever prefix a provider has before it (`/openai/v1`, `/openai/deployments/name` …)."""
    bare = path.split("?")[0]
    return next((known for known in (*dialects.PATHS, *_MORE) if bare.endswith(known)), bare)


def _cut(events: Iterable[bytes], knobs: Knobs) -> Iterator[bytes]:
    if knobs.garbage:
        yield b"data: {not json\n\n"
        yield b"\xff\xfe\n\n"
        return
    for number, event in enumerate(events):
        if knobs.cut_after is not None and number >= knobs.cut_after:
            return
        yield event


async def _wait_for_client(reader: asyncio.StreamReader, pause_s: float) -> bool:
    """Let time pass; False when the client has left meanwhile, noticed within 10 ms."""
    while pause_s > 0 and not reader.at_eof():
        step = min(pause_s, 0.01)
        pause_s -= step
        await asyncio.sleep(step)
    return not reader.at_eof()


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    async with asyncio.timeout(_HEAD_TIMEOUT_S):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await _read_body(reader, headers)
    try:
        parsed = json.loads(body) if body else None
    except ValueError:
        parsed = None
    return Request(method=method, path=path, headers=headers, body=parsed)


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = bytearray()
        while size := int((await reader.readline()).split(b";")[0], 16):
            if len(body) + size > _BODY_LIMIT:
                raise ValueError("the body is too large")
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readline()
        return bytes(body)
    length = int(headers.get("content-length", "0"))
    if not 0 <= length <= _BODY_LIMIT:
        raise ValueError("the body is too large")
    return await reader.readexactly(length)


async def _send_json(writer: asyncio.StreamWriter, status: int, value: object, headers: Mapping[str, str] | None = None) -> bool:
    return await _send(writer, status, json.dumps(value).encode(), "application/json", headers)


async def _send(
    writer: asyncio.StreamWriter, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None = None
) -> bool:
    lines = {"content-type": content_type, "content-length": str(len(body)), "x-request-id": "req_fake", **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"HTTP/1.1 {status} Scripted\r\n{head}\r\n".encode() + body)
    await writer.drain()
    return True
