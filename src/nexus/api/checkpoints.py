"""`/door/threads`: LangGraph's checkpoints. Instances only; answered on the short way (`door_fast`), as runs wait for them."""

import json
import re
from collections.abc import Mapping

from nexus.api import door_fast
from nexus.core import errors
from nexus.tasks import checkpoints

_LONGEST = 1000
_PACKED = (b"content-type", b"application/octet-stream")


async def put(knock: door_fast.Knock) -> door_fast.Answer:
    body = await knock.body(checkpoints.MAX_BODY_BYTES, checkpoints.too_large())
    await knock.services.checkpoints.put(knock.owner, knock.parts[0], body)
    return door_fast.Answer()


async def page(knock: door_fast.Knock) -> door_fast.Answer:
    """Of the query `ns`, `id`, `before` and `limit` (1 to 100; 1). `as=blobs` asks for the packed form."""
    asked = {name: _name(knock.query, name) for name in ("ns", "id", "before")}
    limit = knock.query.get("limit", "1")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= checkpoints.MOST_ASKED):
        raise errors.Invalid(
            "limit is not a number that can be asked for",
            code="request.invalid",
            next_step=f"ask for 1 to {checkpoints.MOST_ASKED}",
        )
    packed = knock.query.get("as") == "blobs"
    found: bytes = await knock.services.checkpoints.page(
        knock.owner,
        knock.parts[0],
        ns=asked["ns"],
        checkpoint_id=asked["id"],
        before=asked["before"],
        limit=int(limit),
        packed=packed,
    )
    return (
        door_fast.Answer(200, found, ((b"content-type", b"application/octet-stream"),))
        if packed
        else door_fast.json_answer(found)
    )


async def delete(knock: door_fast.Knock) -> door_fast.Answer:
    await knock.services.checkpoints.delete(knock.owner, knock.parts[0])
    return door_fast.Answer()


async def forget(knock: door_fast.Knock) -> door_fast.Answer:
    """`{"run_ids": […]}`: what these runs left is deleted."""
    try:
        value = json.loads(await knock.body(checkpoints.MAX_BODY_BYTES, checkpoints.too_large()))
    except (ValueError, RecursionError):
        value = None
    run_ids = value.get("run_ids") if isinstance(value, dict) else None
    if not isinstance(run_ids, list) or not all(isinstance(entry, str) for entry in run_ids):
        raise errors.Invalid("name the runs", code="checkpoint.invalid", next_step='send {"run_ids": ["…"]}')
    await knock.services.checkpoints.delete_runs(knock.owner, run_ids)
    return door_fast.Answer()


def _name(query: Mapping[str, str], name: str) -> str | None:
    found = query.get(name)
    if found is not None and (len(found) > _LONGEST or "\0" in found):
        raise errors.Invalid(f"{name} is text of at most {_LONGEST} characters without NUL", code="request.invalid")
    return found


_CHECKPOINTS = re.compile(r"/door/threads/([^/]+)/checkpoints")
ROUTES: tuple[door_fast.Route, ...] = (
    ("PUT", _CHECKPOINTS, put),
    ("GET", _CHECKPOINTS, page),
    ("DELETE", re.compile(r"/door/threads/([^/]+)"), delete),
    ("POST", re.compile(r"/door/threads:forget"), forget),
)
