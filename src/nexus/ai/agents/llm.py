"""`self.llm`: chat completions over `OPENAI_BASE_URL`, which in the box is the platform's models door.

Standard library only. Works in any event loop and in threads (`asyncio.run(self.llm.generate(…))`).
"""

import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from nexus.core import errors
from nexus.kit import http_client, sse
from nexus.ports import run as runs

_IDLE_S = 600.0
Prompt = str | Sequence[Mapping[str, Any]]


class Reply(str):
    """The model's text, with what it cost: `model`, `input_tokens`, `output_tokens`, and the provider's answer as `raw`."""

    model: str
    input_tokens: int
    output_tokens: int
    raw: Mapping[str, Any]

    __slots__ = ("input_tokens", "model", "output_tokens", "raw")


class Llm:
    """A model by name; `NEXUS_MODEL` or `default` when no name is given."""

    __slots__ = ("model",)

    def __init__(self, model: str | None = None) -> None:
        self.model = model

    async def generate(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        **more: Any,
    ) -> Reply:
        """The whole answer as text. `prompt` is text or a list of `{"role", "content"}`; `more` goes to the provider as it is.

        Raises `errors.Exhausted` (quota), `errors.Invalid` (refused), `errors.NotFound` (no such model) or `errors.Unavailable`.
        """
        body = self._body(prompt, model, system, max_tokens, temperature, more)
        target, headers = _door()
        with _translated(target):
            answer = await http_client.request(
                "POST", target, "/chat/completions", headers=headers, body=_dump(body), timeout_s=_IDLE_S
            )
        if answer.status != 200:
            raise _refusal(answer.status, answer.body)
        return _reply(answer.body)

    async def stream(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        **more: Any,
    ) -> AsyncIterator[str]:
        """The answer's text piece by piece, as it is generated."""
        body = self._body(prompt, model, system, max_tokens, temperature, more)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        target, headers = _door()
        with _translated(target):
            async with http_client.open_answer(
                "POST", target, "/chat/completions", headers=headers, body=_dump(body), timeout_s=_IDLE_S
            ) as (head, pieces):
                if head.status != 200:
                    raise _refusal(head.status, b"".join([piece async for piece in pieces]))
                async for text in _texts(pieces):
                    yield text

    def _body(
        self,
        prompt: Prompt,
        model: str | None,
        system: str | None,
        max_tokens: int | None,
        temperature: float | None,
        more: Mapping[str, Any],
    ) -> dict[str, Any]:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(entry) for entry in prompt]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        chosen = model or self.model or os.environ.get("NEXUS_MODEL") or "default"
        body: dict[str, Any] = {"model": chosen, "messages": messages, **more}
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        if temperature is not None:
            body["temperature"] = temperature
        return body


def _door() -> tuple[http_client.Target, dict[str, str]]:
    url = os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    try:
        target = http_client.parse_target(url)
    except ValueError as error:
        raise errors.Invalid(
            "OPENAI_BASE_URL is not usable", code="model.bad_base_url", cause=str(error), next_step="set it to http(s)://host/v1"
        ) from None
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    if (run := runs.CURRENT.get()) is not None:
        headers |= run.outgoing_headers(target.host, target.port)
    return target, headers


@contextlib.contextmanager
def _translated(target: http_client.Target) -> Any:
    try:
        yield
    except (OSError, TimeoutError, http_client.ProtocolError) as error:
        raise errors.Unavailable(
            f"the model at {target.authority} did not answer",
            code="model.unreachable",
            cause=f"{type(error).__name__}: {error}".rstrip(": "),
            next_step="check that the host runs (nexus status), or set OPENAI_BASE_URL and OPENAI_API_KEY to a provider",
        ) from error


def _dump(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()


def _refusal(status: int, body: bytes) -> errors.NexusError:
    """What a provider's or the door's error answer means, in our kinds. Never repeats request headers."""
    try:
        told = json.loads(body)
    except ValueError:
        told = {}
    problem = told if isinstance(told, dict) else {}
    inner = problem.get("error")
    if isinstance(inner, dict):
        problem = {**problem, **inner}
    cause = problem.get("message") or problem.get("detail") or body[:300].decode("utf-8", "replace") or f"HTTP {status}"
    kind: type[errors.NexusError] = {
        401: errors.Unauthenticated,
        402: errors.Exhausted,
        403: errors.Forbidden,
        404: errors.NotFound,
        429: errors.Exhausted,
    }.get(status, errors.Unavailable if status >= 500 else errors.Invalid)
    code = problem.get("code")
    return kind(
        f"the model call was refused with status {status}",
        code=code if isinstance(code, str) and "." in code else "model.refused",
        cause=str(cause)[:1000],
        next_step=str(problem.get("next_step") or "nexus models list shows the models that can be used"),
    )


def _reply(body: bytes) -> Reply:
    try:
        answer = json.loads(body)
        text = answer["choices"][0]["message"].get("content") or ""
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _garbled(body) from error
    if not isinstance(text, str):
        raise _garbled(body)
    reply = Reply(text)
    reply.raw, reply.model = answer, str(answer.get("model") or "")
    reply.input_tokens, reply.output_tokens = _count(answer.get("usage"))
    return reply


async def _texts(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    decoder = sse.Decoder()
    finished = False
    async for piece in pieces:
        for event in decoder.feed(piece):
            if event.data == "[DONE]":
                return
            try:
                chunk = json.loads(event.data)
                choices = chunk.get("choices") or []
                text = (choices[0].get("delta") or {}).get("content") if choices else None
                finished = finished or bool(choices and choices[0].get("finish_reason"))
            except (ValueError, LookupError, AttributeError, TypeError) as error:
                raise _garbled(event.data.encode()) from error
            if chunk.get("error"):
                raise _refusal(502, event.data.encode())
            _count(chunk.get("usage"))
            if text:
                yield text
    if not finished:
        raise errors.Unavailable("the model's stream ended early", code="model.cut_off", next_step="run it again")


def _count(usage: object) -> tuple[int, int]:
    if not isinstance(usage, dict):
        return 0, 0
    tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    if (run := runs.CURRENT.get()) is not None:
        run.add_usage(input_tokens=tokens[0], output_tokens=tokens[1])
    return tokens


def _garbled(body: bytes) -> errors.Unavailable:
    return errors.Unavailable(
        "the model's answer is not a chat completion",
        code="model.bad_response",
        cause=body[:200].decode("utf-8", "replace"),
        next_step="check OPENAI_BASE_URL: it must end in /v1 of a server that speaks chat completions",
    )
