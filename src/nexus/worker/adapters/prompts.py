"""A run's input as frameworks want it: a text, or a list of messages. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from nexus.core import errors

_TEXT_KEYS = ("prompt", "message", "input", "text", "question", "query")


def text_of(value: Any) -> str:
    """The words a person said. An object may say them under `prompt`, `message` … or `messages`; any other is passed as JSON.

    Raises `Invalid` (code `input.empty`) when nothing was said.
    """
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, Mapping):
        for key in _TEXT_KEYS:
            if isinstance(text := value.get(key), str) and text.strip():
                return text
    if messages := messages_of(value):
        return _content(messages[-1])
    if (
        value is None
        or value == ""
        or (isinstance(value, str | list | dict) and not (value if not isinstance(value, str) else value.strip()))
    ):
        raise errors.Invalid(
            "the input is empty",
            code="input.empty",
            phase="run",
            next_step='send {"input": "what you want to say"}',
        )
    return json.dumps(value, ensure_ascii=False)


def messages_of(value: Any) -> list[dict[str, Any]] | None:
    """`[{"role", "content"}, …]`, given as a list or under `messages`; None when the input is nothing of the kind."""
    given = value.get("messages") if isinstance(value, Mapping) else value
    if not isinstance(given, list) or not given:
        return None
    if not all(isinstance(entry, Mapping) and isinstance(entry.get("role"), str) and "content" in entry for entry in given):
        return None
    return [dict(entry) for entry in given]


def _content(message: Mapping[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, list):
        parts = [entry if isinstance(entry, str) else entry.get("text") for entry in content if isinstance(entry, str | Mapping)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
