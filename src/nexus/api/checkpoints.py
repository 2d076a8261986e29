"""`/door/threads`: LangGraph's checkpoints. Instances only."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from nexus.api.access import DoorCaller, Rooms
from nexus.core import errors
from nexus.tasks import checkpoints

router = APIRouter(prefix="/door", include_in_schema=False)
Name = Annotated[str | None, Query(max_length=1000)]


@router.put("/threads/{thread}/checkpoints")
async def put(thread: str, request: Request, owner: DoorCaller, rooms: Rooms) -> Response:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > checkpoints.MAX_BODY_BYTES:
            raise checkpoints.too_large()
    await rooms.checkpoints.put(owner, thread, bytes(body))
    return Response(status_code=204)


@router.get("/threads/{thread}/checkpoints")
async def page(
    thread: str,
    owner: DoorCaller,
    rooms: Rooms,
    ns: Name = None,
    id: Name = None,
    before: Name = None,
    limit: Annotated[int, Query(ge=1, le=checkpoints.MOST_ASKED)] = 1,
) -> dict[str, Any]:
    found: dict[str, Any] = await rooms.checkpoints.page(owner, thread, ns=ns, checkpoint_id=id, before=before, limit=limit)
    return found


@router.delete("/threads/{thread}")
async def delete(thread: str, owner: DoorCaller, rooms: Rooms) -> Response:
    await rooms.checkpoints.delete(owner, thread)
    return Response(status_code=204)


@router.post("/threads:forget")
async def forget(request: Request, owner: DoorCaller, rooms: Rooms) -> Response:
    """`{"run_ids": […]}`: what these runs left is deleted."""
    value = await request.json()
    run_ids = value.get("run_ids") if isinstance(value, dict) else None
    if not isinstance(run_ids, list) or not all(isinstance(entry, str) for entry in run_ids):
        raise errors.Invalid("name the runs", code="checkpoint.invalid")
    await rooms.checkpoints.delete_runs(owner, run_ids)
    return Response(status_code=204)
