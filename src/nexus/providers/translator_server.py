"""The translator: chat completions asked of an Anthropic model, messages asked of an OpenAI one, streamed or whole.

A program of its own in an environment of its own (`nexus.models.translator` builds it): it imports nothing of ours, and only it
imports any-llm, which translates. It serves one unix socket; where a call goes, and with which credential, comes with each
request in `nexus-upstream` (base64 of `{"dialect", "base_url", "headers"}`), which only gateways can send. It ends with its
standard input.
"""

import argparse
import asyncio
import base64
import inspect
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from any_llm import AnyLLM  # type: ignore[import-not-found]

_MOST_BODY = 64 * 1024 * 1024
_MOST_CLIENTS = 64
_DROPPED = frozenset({"model", "stream", "stream_options", "user", "metadata", "store"})
_DEFAULT_MAX_TOKENS = 4096
_OPENAI_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_clients: "OrderedDict[str, Any]" = OrderedDict()


class Refused(Exception):
    """What cannot be translated; the text says what."""


class Call:
    """One request: what is asked in which dialect, and of whom."""

    def __init__(self, path: str, headers: dict[bytes, bytes], body: bytes) -> None:
        self.anthropic = path.endswith("/messages")
        if not self.anthropic and not path.endswith("/chat/completions"):
            raise Refused(f"{path} cannot be translated")
        try:
            self.upstream = json.loads(base64.b64decode(headers.get(b"nexus-upstream", b"")))
            self.body = json.loads(body)
        except ValueError:
            raise Refused("the request cannot be read") from None
        if not isinstance(self.body, dict):
            raise Refused("the body is not a JSON object")
        self.stream = self.body.get("stream") is True
        self.model = str(self.body.get("model", ""))
        self.asks_for_usage = (self.body.get("stream_options") or {}).get("include_usage") is True

    async def ask(self) -> Any:
        llm = client_of(self.upstream)
        verb = llm.amessages if self.anthropic else llm.acompletion
        known = inspect.signature(verb).parameters
        given = {name: value for name, value in self.body.items() if name not in _DROPPED and value is not None}
        strange = sorted(name for name in given if name not in known)
        if strange:
            raise Refused(f"{', '.join(strange)[:200]} cannot be translated for this model's provider")
        if self.anthropic:
            given.setdefault("max_tokens", _DEFAULT_MAX_TOKENS)
        elif self.upstream["dialect"] == "anthropic" and "max_completion_tokens" in given:
            given["max_tokens"] = given.pop("max_completion_tokens")
        if self.asks_for_usage and self.upstream["dialect"] == "openai":
            given["stream_options"] = {"include_usage": True}
        return await verb(model=self.model, stream=self.stream, **given)


def client_of(upstream: dict[str, Any]) -> Any:
    """A client of any-llm for this place and credential, kept so that connections are reused."""
    key = json.dumps(upstream, sort_keys=True)
    found = _clients.get(key)
    if found is None:
        headers = {name.lower(): value for name, value in upstream["headers"].items()}
        bearer = headers.pop("authorization", "")
        api_key = headers.pop("x-api-key", "") or bearer.removeprefix("Bearer ") or "none"
        headers.pop("anthropic-version", None)
        base_url = upstream["base_url"]
        if upstream["dialect"] == "anthropic":
            base_url = base_url.removesuffix("/v1")
        found = AnyLLM.create(
            upstream["dialect"],
            api_key=api_key,
            api_base=base_url,
            default_headers=headers,
            max_retries=0,
            timeout=3600.0,
            unified_exceptions=True,
        )
        _clients[key] = found
        if len(_clients) > _MOST_CLIENTS:
            _clients.popitem(last=False)
    else:
        _clients.move_to_end(key)
    return found


def render_whole(answer: Any) -> bytes:
    text = json.dumps(answer.model_dump(mode="json", exclude_none=True))
    return text.encode()


async def render_stream(call: Call, answer: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    async for item in answer:
        value = item.model_dump(mode="json", exclude_none=True)
        if call.anthropic:
            yield f"event: {value['type']}\ndata: {json.dumps(value)}\n\n".encode()
            continue
        usage = value.get("usage")
        if usage and value.get("choices") and not call.asks_for_usage:
            value.pop("usage")
        yield f"data: {json.dumps(value)}\n\n".encode()
    if not call.anthropic:
        yield b"data: [DONE]\n\n"


def render_error(error: Exception, *, anthropic: bool) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers in the caller's dialect."""
    original = getattr(error, "original_exception", None) or error
    status = getattr(error, "status_code", None) or getattr(original, "status_code", None)
    if isinstance(error, Refused | TypeError | NotImplementedError) or type(error).__name__.startswith("Unsupported"):
        status = 400
    if not isinstance(status, int) or not 400 <= status <= 599:
        status = 502
    text = str(getattr(error, "message", None) or error)[:2000]
    pause = getattr(getattr(original, "response", None), "headers", {}).get("retry-after")
    headers = {"retry-after": pause} if pause else {}
    if anthropic:
        shown: dict[str, Any] = {"type": "error", "error": {"type": _ANTHROPIC_KINDS.get(status, "api_error"), "message": text}}
    else:
        kind = _OPENAI_KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        shown = {"error": {"message": text, "type": kind, "param": None, "code": getattr(error, "code", None)}}
    return status, json.dumps(shown).encode(), headers


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body = await read_body(receive)
    answering = asyncio.ensure_future(answer(scope, body, send))
    leaving = asyncio.ensure_future(receive())
    await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    if not answering.done():
        answering.cancel()
    await asyncio.wait({answering})


async def read_body(receive: Any) -> bytes:
    body = b""
    while True:
        message: dict[str, Any] = await receive()
        body += bytes(message.get("body", b""))
        if not message.get("more_body") or len(body) > _MOST_BODY:
            return body


async def answer(scope: Any, body: bytes, send: Any) -> None:
    anthropic, begun = scope["path"].endswith("/messages"), False

    async def start(status: int, kind: bytes, more: dict[str, str]) -> None:
        headers = [(b"content-type", kind), *((name.encode(), value.encode("latin-1")) for name, value in more.items())]
        await send({"type": "http.response.start", "status": status, "headers": headers})

    try:
        call = Call(scope["path"], dict(scope["headers"]), body)
        made = await call.ask()
        if not call.stream:
            whole = render_whole(made)
            await start(200, b"application/json", {"content-length": str(len(whole))})
            await send({"type": "http.response.body", "body": whole})
            return
        async for event in render_stream(call, made):
            if not begun:
                begun = True
                await start(200, b"text/event-stream; charset=utf-8", {})
            await send({"type": "http.response.body", "body": event, "more_body": True})
        if not begun:
            await start(200, b"text/event-stream; charset=utf-8", {})
        await send({"type": "http.response.body", "body": b""})
    except Exception as error:  # noqa: BLE001 - whatever the library raises becomes the dialect's own error
        status, shown, more = render_error(error, anthropic=anthropic)
        if begun:
            head = b"event: error\n" if anthropic else b""
            await send({"type": "http.response.body", "body": head + b"data: " + shown + b"\n\n"})
            return
        await start(status, b"application/json", {"content-length": str(len(shown)), **more})
        await send({"type": "http.response.body", "body": shown})


class Server(uvicorn.Server):
    """Says when it is ready, and ends with its standard input."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        print(json.dumps({"ready": True}), flush=True)  # noqa: T201 - told to who started it
        threading.Thread(target=self._wait_for_the_end, daemon=True).start()

    def _wait_for_the_end(self) -> None:
        sys.stdin.buffer.read()
        self.should_exit = True


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--socket", required=True)
    given = options.parse_args()
    config = uvicorn.Config(
        app,
        uds=given.socket,
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    Server(config).run()


if __name__ == "__main__":
    main()
