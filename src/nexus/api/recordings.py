"""`/door/runs/{id}/steps`: a worker's recorded calls. Instances only."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from nexus.api.access import DoorCaller, Rooms
from nexus.tasks import recordings

router = APIRouter(prefix="/door", include_in_schema=False)
Key = Annotated[str, Query(max_length=300)]
Attempt = Annotated[int, Query(ge=1, le=1_000_000)]


@router.post("/runs/{task_id}/steps")
async def open_step(
    task_id: str,
    request: Request,
    owner: DoorCaller,
    rooms: Rooms,
    key: Key,
    attempt: Attempt,
    live: bool = False,
    repeat: bool = False,
) -> dict[str, Any]:
    """The body is what the call asks, deflated, for a later replay; it may be left out."""
    asked = await _read(request)
    found: dict[str, Any] = await rooms.recordings.open(
        owner, task_id, key=key, attempt=attempt, live=live, repeat=repeat, request=asked
    )
    return found


@router.put("/runs/{task_id}/steps")
async def close_step(task_id: str, request: Request, owner: DoorCaller, rooms: Rooms, key: Key, attempt: Attempt) -> Response:
    await rooms.recordings.close(owner, task_id, key=key, attempt=attempt, body=await _read(request))
    return Response(status_code=204)


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > recordings.MAX_BODY_BYTES:
            raise recordings.too_large()
    return bytes(body)
