"""Standard Webhooks: the tenant's secret, the signature and the body. Pure. Source: https://www.standardwebhooks.com (1.0)."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime

from nexus.ports import ask_store, task_store, webhook_store
from nexus.tasks import verdict, views

OVERLAP_S = 86400.0


def derive_secret(key: bytes, tenant: str, generation: int = 0) -> str:
    """The tenant's `whsec_…`: 256 bits that follow from the platform's key, so that none is stored."""
    named = b"webhook secret\0" + tenant.encode() + (b"\0%d" % generation if generation else b"")
    return "whsec_" + base64.b64encode(hmac.digest(key, named, "sha256")).decode()


def secrets_in_use(key: bytes, tenant: str, state: webhook_store.KeyState) -> list[str]:
    """The current secret, and for a day after a rotation the one before; receivers accept either signature."""
    generations = [state.generation]
    if state.generation and state.age_s is not None and state.age_s < OVERLAP_S:
        generations.append(state.generation - 1)
    return [derive_secret(key, tenant, generation) for generation in generations]


def sign(secret: str, *, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = b".".join([message_id.encode(), str(timestamp).encode(), body])
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def render_ask(ask: ask_store.Ask, *, url: str) -> bytes:
    """What tells that a task asks people: the same bytes for every attempt, whatever came of the question since."""
    changing = {"status", "answer", "answered_by", "answered_at"}
    opened = datetime.fromtimestamp(ask.opened_at, UTC)
    message = {
        "type": "ask.opened",
        "timestamp": opened.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": views.render_ask(ask, url=url).model_dump(exclude=changing),
    }
    return verdict.text_of(message).encode()


def render_body(task: task_store.Task) -> bytes:
    """The same bytes for every attempt: a finished task no longer changes, and how delivery went is left out."""
    left_out = {"webhook", "priority", "run_at", "end_by", "paused", "dead", "asking", "replay_of"}
    data = views.render_task(task).model_dump(exclude=left_out)
    finished = datetime.fromtimestamp(task.finished_at or 0.0, UTC)
    message = {
        "type": f"task.{task.phase}",
        "timestamp": finished.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": data,
    }
    return verdict.text_of(message).encode()
