"""Calls in a dialect that a model's provider does not speak go by the translator, a process of its own on a unix socket.

Only chat completions and messages are translated, and only where the provider was given `translate`. Whom the translator is to
ask, and with which credential, goes with the request in `nexus-upstream`, a name that no client's header can have here. Pure.
"""

import base64
import json
from dataclasses import replace

from nexus.gateway import http1
from nexus.gateway.model_call import ModelCall, Target

_PATHS = frozenset({b"/v1/chat/completions", b"/v1/messages"})
_OWN_WAYS = ("sigv4", "deployments", "api_version")


def find_speaker(target: Target, call: ModelCall) -> Target | None:
    """The target as it can take this call: itself, by the translator, or None."""
    if call.dialect in target.entry["dialects"]:
        return target
    auth = (target.entry.get("options") or {}).get("auth") or {}
    if not target.translator or call.path not in _PATHS or any(name in auth for name in _OWN_WAYS):
        return None
    return replace(target, address=target.translator, host="localhost", prefix="/v1", translated=True)


def render_upstream(target: Target) -> http1.Header:
    """Tells the translator whom to ask."""
    entry = target.entry
    told = {"dialect": entry["dialects"][0], "base_url": entry["base_url"], "headers": entry["headers"]}
    return b"nexus-upstream", base64.b64encode(json.dumps(told).encode())
