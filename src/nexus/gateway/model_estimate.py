"""How many tokens a request will take, before any provider has counted them: by the letters of its text. Pure."""

from typing import Any

LETTERS_PER_TOKEN = 4
PER_MESSAGE = 4
PER_PICTURE = 1200
DEFAULT_OUTPUT = 4096
"""Output reserved for a call that does not say how much it may give."""

CAPS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_PROMPT = ("messages", "input", "prompt", "system", "instructions", "tools", "functions", "response_format", "text")
_FREE = frozenset({"role", "content", "type", "text"})
_LONGEST_WORD = 4096


def prompt_tokens(body: dict[str, Any]) -> int:
    """What the prompt of a body (chat, completion, response, message, embedding) takes, roughly; media by the piece."""
    letters = pieces = 0
    stack: list[Any] = [body[name] for name in _PROMPT if name in body]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            if _is_media(value):
                pieces += PER_PICTURE
            else:
                letters += len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
        elif isinstance(value, list):
            if value and all(type(entry) is int for entry in value):
                pieces += len(value)  # an embedding of token ids
            else:
                stack.extend(value)
        elif isinstance(value, dict):
            pieces += PER_MESSAGE if "role" in value else 1
            stack.extend(value.values())
            letters += sum(
                len(name) for name in value if isinstance(name, str) and name not in ("role", "content", "type", "text")
            )
    return -(-letters // LETTERS_PER_TOKEN) + pieces


def _is_media(text: str) -> bool:
    """A data URL, or base64 without any space."""
    return text.startswith("data:") or (len(text) > _LONGEST_WORD and " " not in text[:_LONGEST_WORD] and "\n" not in text)


def output_cap(body: dict[str, Any]) -> tuple[str, int] | None:
    """Which member limits the output, and to how much; None when none does."""
    for name in CAPS:
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return name, value
    return None


def choices(body: dict[str, Any]) -> int:
    """How many answers are asked for."""
    for name in ("n", "best_of"):
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 1:
            return min(value, 1000)
    return 1
