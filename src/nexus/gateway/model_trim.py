"""Prompt trimming by declared policy: the oldest messages of a chat are left out until it fits the alias's `trim_to`.

System and developer messages stay, and so does the first of a user, which says what it is about. The others go in groups, oldest
first: a tool's answers stay with their call or go with it. The newest group always stays.
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
    """Those to keep, in their order: what must stay, then as many of the newest groups as `most` tokens hold."""
    fixed = {place for place, message in enumerate(messages) if _role(message) in _KEPT_ROLES}
    first = next((place for place, message in enumerate(messages) if _role(message) == "user"), None)
    fixed |= {first} if first is not None else set()
    left = most - sum(_size(messages[place]) for place in fixed)
    kept = set(fixed)
    for number, group in enumerate(reversed(_groups(messages, fixed))):
        left -= sum(_size(messages[place]) for place in group)
        if left < 0 and number:
            break
        kept |= set(group)
    return [message for place, message in enumerate(messages) if place in kept]


def _groups(messages: list[Any], fixed: set[int]) -> list[list[int]]:
    """Places of messages that belong together, in order."""
    groups: list[list[int]] = []
    before = ""
    for place, message in enumerate(messages):
        kind = str(message.get("type", "")) if isinstance(message, dict) else ""
        joined = _is_answer(message) or (kind.endswith("_call") and before in ("reasoning", kind))
        before = kind
        if place in fixed:
            continue
        if joined and groups:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


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
