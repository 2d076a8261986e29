"""`/v1/triggers`: tasks that are submitted by webhooks and queue messages. `POST /hooks/{id}`: such a webhook, known by its
signature."""

from fastapi import APIRouter, Request, Response

from nexus.api.access import Caller, Rooms
from nexus.core import errors
from nexus.tasks import triggers as room
from nexus.wire import triggers, views

router = APIRouter(tags=["triggers"])


@router.post("/v1/triggers", summary="Create a trigger", status_code=201)
async def create(body: triggers.TriggerParams, caller: Caller, rooms: Rooms) -> triggers.TriggerView:
    """A signed webhook (`hook`) or a broker's queue (`queue`). The secret is in this answer only. For the role developer."""
    view: triggers.TriggerView = await rooms.triggers.create(caller, body)
    return view


@router.get("/v1/triggers", summary="List triggers by name")
async def list_triggers(caller: Caller, rooms: Rooms, agent: str | None = None) -> views.Page:
    return views.Page(items=await rooms.triggers.list(caller, agent=agent))


@router.get("/v1/triggers/{name}", summary="Show a trigger")
async def show(name: str, caller: Caller, rooms: Rooms) -> triggers.TriggerView:
    view: triggers.TriggerView = await rooms.triggers.show(caller, name)
    return view


@router.post("/v1/triggers/{name}/pause", summary="Pause a trigger")
async def pause(name: str, caller: Caller, rooms: Rooms) -> triggers.TriggerView:
    """A paused webhook is answered with 404; messages of a queue wait in their broker."""
    view: triggers.TriggerView = await rooms.triggers.set_active(caller, name, active=False)
    return view


@router.post("/v1/triggers/{name}/resume", summary="Resume a trigger")
async def resume(name: str, caller: Caller, rooms: Rooms) -> triggers.TriggerView:
    view: triggers.TriggerView = await rooms.triggers.set_active(caller, name, active=True)
    return view


@router.delete("/v1/triggers/{name}", summary="Delete a trigger", status_code=204)
async def delete(name: str, caller: Caller, rooms: Rooms) -> Response:
    await rooms.triggers.delete(caller, name)
    return Response(status_code=204)


@router.post("/hooks/{trigger_id}", summary="Send a webhook to a trigger", status_code=202)
async def take(trigger_id: str, request: Request, rooms: Rooms) -> dict[str, str]:
    """Answered once the task is committed. The same message again gives the same task. 401 `hook.bad_signature` otherwise."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > room.MAX_MESSAGE_BYTES:
            raise errors.Invalid(f"a webhook may have {room.MAX_MESSAGE_BYTES} bytes", code="body.too_large")
    task = await rooms.triggers.take_hook(trigger_id, dict(request.headers), bytes(body))
    return {"task_id": task.id}
