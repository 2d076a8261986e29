"""`/v1/schedules`: tasks that are submitted by the clock."""

from fastapi import APIRouter, Response

from nexus.api.access import Caller, Rooms
from nexus.wire import params, views

router = APIRouter(prefix="/v1/schedules", tags=["schedules"])


@router.post("", summary="Create a schedule", status_code=201)
async def create(body: params.ScheduleParams, caller: Caller, rooms: Rooms) -> views.ScheduleView:
    """`cron` (five fields, in `timezone`) again and again, or `at` once. Each firing is one task, never two."""
    view: views.ScheduleView = await rooms.schedules.create(caller, body)
    return view


@router.get("", summary="List schedules by name")
async def list_schedules(caller: Caller, rooms: Rooms, agent: str | None = None) -> views.Page:
    return views.Page(items=await rooms.schedules.list(caller, agent=agent))


@router.get("/{name}", summary="Show a schedule and its next times")
async def show(name: str, caller: Caller, rooms: Rooms) -> views.ScheduleView:
    view: views.ScheduleView = await rooms.schedules.show(caller, name)
    return view


@router.post("/{name}/pause", summary="Pause a schedule")
async def pause(name: str, caller: Caller, rooms: Rooms) -> views.ScheduleView:
    view: views.ScheduleView = await rooms.schedules.pause(caller, name)
    return view


@router.post("/{name}/resume", summary="Resume a schedule")
async def resume(name: str, caller: Caller, rooms: Rooms) -> views.ScheduleView:
    """Goes on with the next time from now."""
    view: views.ScheduleView = await rooms.schedules.resume(caller, name)
    return view


@router.delete("/{name}", summary="Delete a schedule", status_code=204)
async def delete(name: str, caller: Caller, rooms: Rooms) -> Response:
    await rooms.schedules.delete(caller, name)
    return Response(status_code=204)
