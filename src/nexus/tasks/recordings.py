"""Recorded calls of tasks: what an attempt asked of the outside, so that the next attempt need not ask again.

Asked by workers through their door. An instance sees only tasks of its own agent, and only while their attempt runs.
"""

import base64
import binascii
import json
import re
from typing import Any, Literal

from nexus.core import deployments, errors, ids
from nexus.ports import step_store, task_store

MAX_BODY_BYTES = 12 * 1024 * 1024
MOST_STEPS = 20_000
_KEY = re.compile(r"(?:model|step)/[\x21-\x7e]{1,200}/\d{1,6}")


class Recordings:
    def __init__(self, *, store: step_store.StepStore) -> None:
        self._store = store

    async def open(
        self,
        owner: deployments.InstanceOwner,
        task_id: str,
        *,
        key: str,
        attempt: int,
        live: bool,
        repeat: bool = False,
        request: bytes = b"",
    ) -> dict[str, Any]:
        """`{"status": "done", "head", "body"}` with the body in base64, `{"status": "new"|"unknown"}`, or
        `{"status": "ask", "attempt"}` where a person has to decide. `Conflict` (`replay.diverged`) in a replay."""
        place = _place(owner, task_id, key=key, attempt=attempt)
        opened = await self._store.open(place, live=live, most=MOST_STEPS, repeat=repeat, request=request or None)
        if opened.status == "absent":
            raise diverged("step" if place.kind == "step" else "model call")
        if opened.answer is None:
            return {"status": opened.status} | ({"attempt": opened.attempt} if opened.status == "ask" else {})
        body = base64.b64encode(opened.answer.body).decode()
        return {"status": opened.status, "head": json.loads(opened.answer.head), "body": body}

    async def close(self, owner: deployments.InstanceOwner, task_id: str, *, key: str, attempt: int, body: bytes) -> None:
        """`body` as `open` gives it, or empty for a call that failed in a known way. `Conflict` (`task.fenced`) when late."""
        place = _place(owner, task_id, key=key, attempt=attempt)
        if not await self._store.close(place, _parse(body) if body else None):
            raise errors.Conflict("this call was not open any more", code="task.fenced")


def _place(owner: deployments.InstanceOwner, task_id: str, *, key: str, attempt: int) -> step_store.Place:
    if not ids.is_id(task_id, ids.TASK) or not _KEY.fullmatch(key):
        raise errors.Invalid("this is not the place of a recorded call", code="step.invalid_place")
    kind: Literal["model", "step"] = "model" if key.startswith("model/") else "step"
    lane = task_store.Lane(tenant=owner.tenant, agent=owner.agent, environment=owner.environment)
    session_id = owner.session_id
    return step_store.Place(lane=lane, task_id=task_id, attempt=attempt, kind=kind, key=key, session_id=session_id)


def _parse(body: bytes) -> step_store.Answer:
    try:
        value = json.loads(body)
        return step_store.Answer(
            head=json.dumps(value["head"]).replace("\\u0000", ""), body=base64.b64decode(value["body"], validate=True)
        )
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise errors.Invalid("this is not a recorded answer", code="step.invalid_answer", cause=type(error).__name__) from None


def diverged(what: str) -> errors.Conflict:
    return errors.Conflict(
        f"the recording holds no such {what}",
        code="replay.diverged",
        phase="run",
        next_step="see what the replay reports: it shows what was recorded and what was asked now",
    )


def too_large() -> errors.NexusError:
    return errors.Exhausted(f"a recorded answer may have {MAX_BODY_BYTES} bytes", code="step.too_large")
