"""How each model vendor's wire format says the same answer: pure renderers for the scripted provider (`fake_llm`).

An answer is a list of text pieces. Sources: OpenAI's API reference, Anthropic's Messages API.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

CREATED = 1_700_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool the model wants called. `arguments` is the object the tool takes."""

    name: str
    arguments: Mapping[str, Any]
    id: str = "call_fake1"

    @property
    def text(self) -> str:
        return json.dumps(self.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What to say, or which tools to call instead. `input_tokens`/`output_tokens` None leaves usage out, as some providers do."""

    id: str
    model: str
    pieces: tuple[str, ...]
    input_tokens: int | None
    output_tokens: int | None
    calls: tuple[ToolCall, ...] = ()

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def usage(self, first: str, second: str, total: str | None = None) -> dict[str, int] | None:
        if self.input_tokens is None or self.output_tokens is None:
            return None
        usage = {first: self.input_tokens, second: self.output_tokens}
        return usage if total is None else usage | {total: self.input_tokens + self.output_tokens}


def prompt_text(body: Mapping[str, Any]) -> str:
    """All the text a request carries, whichever dialect it is in."""
    return " ".join(_texts([body.get(key) for key in ("system", "instructions", "messages", "input", "prompt")]))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry)
    elif isinstance(value, dict):
        yield from _texts(value.get("content", value.get("text")))


def chat(answer: Answer, body: Mapping[str, Any]) -> dict[str, Any]:
    return _without_none(
        {
            "id": "chatcmpl-" + answer.id,
            "object": "chat.completion",
            "created": CREATED,
            "model": answer.model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": answer.text} if not answer.calls else _calling(answer),
                    "finish_reason": "tool_calls" if answer.calls else "stop",
                    "logprobs": None,
                }
            ],
            "usage": answer.usage("prompt_tokens", "completion_tokens", "total_tokens"),
        }
    )


def _calling(answer: Answer) -> dict[str, Any]:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.text}} for call in answer.calls
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def chat_stream(answer: Answer, body: Mapping[str, Any]) -> Iterator[bytes]:
    """Usage comes in a last chunk without choices, and only when `stream_options.include_usage` asks for it."""

    def chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
        head = {"id": "chatcmpl-" + answer.id, "object": "chat.completion.chunk", "created": CREATED, "model": answer.model}
        return _data(head | {"choices": choices} | more)

    def choice(delta: dict[str, Any], reason: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "finish_reason": reason}]

    yield chunk(choice({"role": "assistant", "content": ""}))
    for piece in answer.pieces:
        yield chunk(choice({"content": piece}))
    if answer.calls:
        for at, call in enumerate(_calling(answer)["tool_calls"]):
            yield chunk(choice({"tool_calls": [{"index": at, **call}]}))
    yield chunk(choice({}, "tool_calls" if answer.calls else "stop"))
    usage = answer.usage("prompt_tokens", "completion_tokens", "total_tokens")
    if usage and (body.get("stream_options") or {}).get("include_usage"):
        yield chunk([], usage=usage)
    yield b"data: [DONE]\n\n"


def completion(answer: Answer, body: Mapping[str, Any]) -> dict[str, Any]:
    return _without_none(
        {
            "id": "cmpl-" + answer.id,
            "object": "text_completion",
            "created": CREATED,
            "model": answer.model,
            "choices": [{"index": 0, "text": answer.text, "finish_reason": "stop", "logprobs": None}],
            "usage": answer.usage("prompt_tokens", "completion_tokens", "total_tokens"),
        }
    )


def completion_stream(answer: Answer, body: Mapping[str, Any]) -> Iterator[bytes]:
    head = {"id": "cmpl-" + answer.id, "object": "text_completion", "created": CREATED, "model": answer.model}
    for piece in answer.pieces:
        yield _data(head | {"choices": [{"index": 0, "text": piece, "finish_reason": None}]})
    yield _data(head | {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
    usage = answer.usage("prompt_tokens", "completion_tokens", "total_tokens")
    if usage and (body.get("stream_options") or {}).get("include_usage"):
        yield _data(head | {"choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def response(answer: Answer, body: Mapping[str, Any], *, status: str = "completed") -> dict[str, Any]:
    usage = answer.usage("input_tokens", "output_tokens", "total_tokens")
    details: dict[str, Any] = {
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    done = status == "completed"
    return {
        "id": "resp_" + answer.id,
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "model": answer.model,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "output": _output_items(answer) if done else [],
        "usage": usage | details if usage and done else None,
    }


def _message(answer: Answer, status: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": answer.text, "annotations": []}] if status == "completed" else []
    return {"id": "msg_" + answer.id, "type": "message", "role": "assistant", "status": status, "content": content}


def _output_items(answer: Answer, status: str = "completed") -> list[dict[str, Any]]:
    if not answer.calls:
        return [_message(answer, status)]
    kind = {"type": "function_call", "status": status}
    return [
        kind | {"id": f"fc_{call.id}", "call_id": call.id, "name": call.name, "arguments": call.text} for call in answer.calls
    ]


def _call_events(answer: Answer) -> Iterator[tuple[str, dict[str, Any]]]:
    for at, item in enumerate(_output_items(answer)):
        place = {"item_id": item["id"], "output_index": at}
        begun = item | {"status": "in_progress", "arguments": ""}
        yield "response.output_item.added", {"output_index": at, "item": begun}
        yield "response.function_call_arguments.delta", place | {"delta": item["arguments"]}
        yield "response.function_call_arguments.done", place | {"name": item["name"], "arguments": item["arguments"]}
        yield "response.output_item.done", {"output_index": at, "item": item}


def _text_events(answer: Answer) -> Iterator[tuple[str, dict[str, Any]]]:
    place = {"item_id": "msg_" + answer.id, "output_index": 0, "content_index": 0}
    empty = {"type": "output_text", "text": "", "annotations": []}
    full = empty | {"text": answer.text}
    yield "response.output_item.added", {"output_index": 0, "item": _message(answer, "in_progress")}
    yield "response.content_part.added", place | {"part": empty}
    for piece in answer.pieces:
        yield "response.output_text.delta", place | {"delta": piece, "logprobs": []}
    yield "response.output_text.done", place | {"text": answer.text, "logprobs": []}
    yield "response.content_part.done", place | {"part": full}
    yield "response.output_item.done", {"output_index": 0, "item": _message(answer, "completed")}


def response_stream(answer: Answer, body: Mapping[str, Any]) -> Iterator[bytes]:
    begun = {"response": response(answer, body, status="in_progress")}
    events: list[tuple[str, dict[str, Any]]] = [
        ("response.created", begun),
        ("response.in_progress", begun),
        *(_call_events(answer) if answer.calls else _text_events(answer)),
        ("response.completed", {"response": response(answer, body)}),
    ]
    for number, (name, fields) in enumerate(events):
        yield _event(name, {"type": name, "sequence_number": number} | fields)


def message(answer: Answer, body: Mapping[str, Any]) -> dict[str, Any]:
    return _without_none(
        {
            "id": "msg_" + answer.id,
            "type": "message",
            "role": "assistant",
            "model": answer.model,
            "content": _uses(answer) or [{"type": "text", "text": answer.text}],
            "stop_reason": "tool_use" if answer.calls else "end_turn",
            "usage": answer.usage("input_tokens", "output_tokens"),
        }
    ) | {"stop_sequence": None}


def _uses(answer: Answer) -> list[dict[str, Any]]:
    return [{"type": "tool_use", "id": call.id, "name": call.name, "input": dict(call.arguments)} for call in answer.calls]


def message_stream(answer: Answer, body: Mapping[str, Any]) -> Iterator[bytes]:
    """Anthropic gives the input's tokens at the start and the output's at the end."""
    whole = message(answer, body)
    begun = whole | {"content": [], "stop_reason": None}
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    ended: dict[str, Any] = {"type": "message_delta", "delta": delta}
    if answer.output_tokens is not None:
        begun |= {"usage": {"input_tokens": answer.input_tokens, "output_tokens": 1}}
        ended |= {"usage": {"output_tokens": answer.output_tokens}}
    yield _event("message_start", {"type": "message_start", "message": begun})
    yield _event("ping", {"type": "ping"})
    for at, block in enumerate(whole["content"]):
        hollow: dict[str, Any] = {"text": ""} if block["type"] == "text" else {"input": {}}
        yield _event("content_block_start", {"type": "content_block_start", "index": at, "content_block": block | hollow})
        for piece in _block_deltas(answer, block):
            yield _event("content_block_delta", {"type": "content_block_delta", "index": at, "delta": piece})
        yield _event("content_block_stop", {"type": "content_block_stop", "index": at})
    yield _event("message_delta", ended)
    yield _event("message_stop", {"type": "message_stop"})


def _block_deltas(answer: Answer, block: Mapping[str, Any]) -> list[dict[str, Any]]:
    if block["type"] == "text":
        return [{"type": "text_delta", "text": piece} for piece in answer.pieces]
    return [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]


def embeddings(answer: Answer, body: Mapping[str, Any], *, dimensions: int = 8) -> dict[str, Any]:
    """The same text has always the same vector."""
    given = body.get("input", "")
    texts = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    size = body.get("dimensions") or dimensions
    vectors = [{"object": "embedding", "index": at, "embedding": _vector(str(text), size)} for at, text in enumerate(texts)]
    usage = None if answer.input_tokens is None else {"prompt_tokens": answer.input_tokens, "total_tokens": answer.input_tokens}
    return _without_none({"object": "list", "model": answer.model, "data": vectors, "usage": usage})


def _vector(text: str, size: int) -> list[float]:
    bits = hashlib.shake_256(text.encode("utf-8", "replace")).digest(size)
    return [round(byte / 127.5 - 1, 4) for byte in bits]


def openai_error(status: int, text: str) -> dict[str, Any]:
    kind = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}.get(status, "server_error")
    return {"error": {"message": text, "type": kind, "param": None, "code": kind}}


def anthropic_error(status: int, text: str) -> dict[str, Any]:
    kinds = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    return {"type": "error", "error": {"type": kinds.get(status, "api_error"), "message": text}}


def _without_none(value: dict[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in value.items() if entry is not None}


def _data(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _event(name: str, value: object) -> bytes:
    return b"event: " + name.encode() + b"\n" + _data(value)


Whole = Callable[[Answer, Mapping[str, Any]], dict[str, Any]]
Stream = Callable[[Answer, Mapping[str, Any]], Iterator[bytes]]
PATHS: Mapping[str, tuple[Whole, Stream | None]] = {
    "/chat/completions": (chat, chat_stream),
    "/completions": (completion, completion_stream),
    "/responses": (response, response_stream),
    "/messages": (message, message_stream),
    "/embeddings": (embeddings, None),
}
