"""Prompt trimming by declared policy: the oldest messages of a chat are left out until it fits the alias's `trim_to`.

System and developer messages stay, and the newest message always does. A tool's answer never stays without the call it answers.
"""

from typing import Any

from nexus.gateway import model_estimate
from nexus.gateway.model_call import ModelCall
from nexus.gateway.world import World

_KEPT_ROLES = frozenset({"system", "developer"})
_MEMBER = {b"/v1/chat/completions": "messages", b"/v1/messages": "messages", b"/v1/responses": "input"}


def trim(call: ModelCall, world: World) -> None:
    """Before the chain is planned, so that what does not fit a model may fit after it."""
    most = _limit(call, world)
    member = _MEMBER.get(call.path)
    if most is None or member is None or not isinstance(call.body.get(member), list):
        return
    whole = model_estimate.prompt_tokens(call.body)
    if whole <= most:
        return
    messages = call.body[member]
    kept = keep_newest(messages, most - (whole - _size(messages)))
    if len(kept) < len(messages):
        call.body[member] = kept
        call.trimmed = len(messages) - len(kept)
        call.changed = True


def _limit(call: ModelCall, world: World) -> int | None:
    name = call.requested if call.requested in world.table.model_routes else world.table.default_model or ""
    alias = world.table.model_routes.get(name)
    return alias.get("trim_to") if alias is not None else None


def keep_newest(messages: list[Any], most: int) -> list[Any]:
    """Those to keep, in their order: what must stay, then as many of the newest as `most` tokens hold."""
    fixed = {place for place, message in enumerate(messages) if _role(message) in _KEPT_ROLES}
    left = most - sum(_size(messages[place]) for place in fixed)
    start = len(messages)
    for place in range(len(messages) - 1, -1, -1):
        if place in fixed:
            continue
        left -= _size(messages[place])
        if left < 0 and start < len(messages):
            break
        start = place
    while start < len(messages) - 1 and (start in fixed or _is_answer(messages[start])):
        start += 1
    return [message for place, message in enumerate(messages) if place >= start or place in fixed]


def _size(value: Any) -> int:
    return model_estimate.prompt_tokens({"messages": value})


def _role(message: Any) -> str:
    return str(message.get("role", "")) if isinstance(message, dict) else ""


def _is_answer(message: Any) -> bool:
    """Whether a message answers a tool call that stands before it (each dialect says so in its own way)."""
    if not isinstance(message, dict):
        return False
    if message.get("role") == "tool" or str(message.get("type", "")).endswith("_call_output"):
        return True
    content = message.get("content")
    return isinstance(content, list) and any(isinstance(part, dict) and part.get("type") == "tool_result" for part in content)
