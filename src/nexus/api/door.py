"""`/door`: what instances ask of control through their gateway, known by their token. Session state (on the short way, see
`door_fast`) and traces."""

import re

from fastapi import APIRouter, Request, Response

from nexus.api import door_fast
from nexus.api.access import DoorCaller, Rooms
from nexus.core import errors
from nexus.tasks import sessions
from nexus.telemetry import otlp

router = APIRouter(prefix="/door", include_in_schema=False)
_VERSION = b"nexus-state-version"


async def read_state(knock: door_fast.Knock) -> door_fast.Answer:
    found = await knock.services.sessions.fetch(knock.owner, knock.parts[0])
    return door_fast.json_answer(found.state.encode(), (_VERSION, b"%d" % found.version))


async def write_state(knock: door_fast.Knock) -> door_fast.Answer:
    body = await knock.body(sessions.MAX_STATE_BYTES, sessions.too_large())
    after = knock.query.get("after", "")
    known = int(after) if after.isascii() and after.isdigit() and len(after) < 16 else None
    version = await knock.services.sessions.put(knock.owner, knock.parts[0], body, after=known)
    return door_fast.Answer(headers=((_VERSION, b"%d" % version),))


_STATE = re.compile(r"/door/sessions/([^/]+)/state")
ROUTES: tuple[door_fast.Route, ...] = (("GET", _STATE, read_state), ("PUT", _STATE, write_state))


@router.post("/traces")
async def take_traces(request: Request, owner: DoorCaller, rooms: Rooms) -> Response:
    """An OTLP/HTTP trace request; answered like a collector does, whether there is one behind or not."""
    too_large = errors.Invalid(f"trace requests may have {otlp.MAX_BYTES} bytes", code="body.too_large")
    body = await _body(request, otlp.MAX_BYTES, too_large)
    content_type = request.headers.get("content-type", otlp.PROTOBUF)
    rooms.traces.take(owner, body, content_type=content_type, content_encoding=request.headers.get("content-encoding", ""))
    is_json = content_type.startswith(otlp.JSON)
    return Response(b"{}" if is_json else b"", media_type=otlp.JSON if is_json else otlp.PROTOBUF)


async def _body(request: Request, most: int, too_large: errors.NexusError) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > most:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_large
    return bytes(body)
