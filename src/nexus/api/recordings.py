"""`/door/runs/{id}/steps`: calls that workers record. Instances only; on the short way (`door_fast`), as each model call of a
task waits for two of these."""

import json
import re
from collections.abc import Mapping
from typing import Any

from nexus.api import door_fast
from nexus.core import errors
from nexus.tasks import recordings

_LONGEST_KEY = 300
_MOST_ATTEMPTS = 1_000_000


async def open_step(knock: door_fast.Knock) -> door_fast.Answer:
    """The body is what the call asks, deflated, for a later replay; it may be left out. Of the query `key`, `attempt`, `live` and
    `repeat` (true or false)."""
    asked = _place(knock.query)
    found: dict[str, Any] = await knock.services.recordings.open(
        knock.owner,
        knock.parts[0],
        **asked,
        live=_flag(knock.query, "live"),
        repeat=_flag(knock.query, "repeat"),
        request=await _body(knock),
    )
    return door_fast.json_answer(json.dumps(found).encode())


async def close_step(knock: door_fast.Knock) -> door_fast.Answer:
    await knock.services.recordings.close(knock.owner, knock.parts[0], **_place(knock.query), body=await _body(knock))
    return door_fast.Answer()


async def _body(knock: door_fast.Knock) -> bytes:
    return await knock.body(recordings.MAX_BODY_BYTES, recordings.too_large())


def _place(query: Mapping[str, str]) -> dict[str, Any]:
    key, attempt = query.get("key"), query.get("attempt", "")
    if key is None or len(key) > _LONGEST_KEY:
        raise _invalid(f"key is text of at most {_LONGEST_KEY} characters")
    if not (attempt.isascii() and attempt.isdigit() and 1 <= int(attempt[:9]) <= _MOST_ATTEMPTS):
        raise _invalid("attempt is a number from 1 up")
    return {"key": key, "attempt": int(attempt)}


def _flag(query: Mapping[str, str], name: str) -> bool:
    value = query.get(name, "false")
    if value not in ("true", "false"):
        raise _invalid(f"{name} is true or false")
    return value == "true"


def _invalid(what: str) -> errors.Invalid:
    return errors.Invalid(what, code="request.invalid", next_step="see the contracts between the processes in the documentation")


_STEPS = re.compile(r"/door/runs/([^/]+)/steps")
ROUTES: tuple[door_fast.Route, ...] = (("POST", _STEPS, open_step), ("PUT", _STEPS, close_step))
