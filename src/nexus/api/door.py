"""`/door`: what instances ask of control through their gateway, known by their token. Session state and traces."""

from fastapi import APIRouter, Request, Response

from nexus.api.access import DoorCaller, Rooms
from nexus.core import errors
from nexus.tasks import sessions
from nexus.telemetry import otlp

router = APIRouter(prefix="/door", include_in_schema=False)
_VERSION = "Nexus-State-Version"


@router.get("/sessions/{session_id}/state")
async def read_state(session_id: str, owner: DoorCaller, rooms: Rooms) -> Response:
    found = await rooms.sessions.fetch(owner, session_id)
    return Response(found.state, media_type="application/json", headers={_VERSION: str(found.version)})


@router.put("/sessions/{session_id}/state")
async def write_state(session_id: str, request: Request, owner: DoorCaller, rooms: Rooms) -> Response:
    body = await _body(request, sessions.MAX_STATE_BYTES, sessions.too_large())
    version = await rooms.sessions.put(owner, session_id, body)
    return Response(status_code=204, headers={_VERSION: str(version)})


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
