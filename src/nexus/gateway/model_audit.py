"""The text of a call for the audit trail, where it was chosen: both sides, cut to a bound, left out when control is behind.

What is secret in it is taken out by control before it is stored (`nexus.audit.redaction`); until then it stays on this machine.
"""

import json
from typing import TYPE_CHECKING, Any

from nexus.gateway.model_call import COUNTING, ModelCall

if TYPE_CHECKING:
    from nexus.gateway.world import World

LONGEST_SIDE = 64 * 1024
_MOST_PENDING_BYTES = 64 * 1024 * 1024


def decide(call: ModelCall, world: "World") -> None:
    """The last stage before sending: whether this call's answer is to be copied."""
    mode = world.table.audit_content
    asked = call.policy.audit_content
    call.audits = mode != "never" and call.path != COUNTING and (asked if asked is not None else mode == "on")
    call.copies = call.copies or call.audits


def render_content(call: ModelCall, world: "World") -> dict[str, Any]:
    """Fields for the call's record; none when its text is not wanted."""
    if not call.audits:
        return {}
    if world.outbox.weight > _MOST_PENDING_BYTES:
        return {"content_cut": True}
    asked = json.dumps(call.body, separators=(",", ":"), ensure_ascii=False)
    got = bytes(call.copy)
    sides = {"request": asked[:LONGEST_SIDE], "response": got[:LONGEST_SIDE].decode("utf-8", "replace")}
    cut = len(asked) > LONGEST_SIDE or call.copied > LONGEST_SIDE
    return {"content": sides, "content_cut": True} if cut else {"content": sides}
