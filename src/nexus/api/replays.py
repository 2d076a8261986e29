"""`/tasks/{id}/replay`: run a finished task again against its recording, and see where it differs."""

from typing import Any

from fastapi import APIRouter

from nexus.api.access import Caller, Rooms
from nexus.wire import params, views

router = APIRouter(tags=["tasks"])


@router.post("/tasks/{task_id}/replay", summary="Replay a task", status_code=202)
async def start(task_id: str, body: params.ReplayParams, caller: Caller, rooms: Rooms) -> views.TaskView:
    """A new task with the same input; every model call, step and question gets its recorded answer, and what was not recorded
    is refused (409 `replay.diverged`)."""
    view: views.TaskView = await rooms.replays.start(caller, task_id, environment=body.environment)
    return view


@router.get("/tasks/{task_id}/replay", summary="How a replay compares with its original")
async def report(task_id: str, caller: Caller, rooms: Rooms) -> views.ReplayView:
    """`task_id` is the replay's; 409 `task.not_finished` before its end."""
    view: views.ReplayView = await rooms.replays.report(caller, task_id)
    return view


@router.get("/tasks/{task_id}/version", summary="The version that ran a task")
async def version(task_id: str, caller: Caller, rooms: Rooms) -> dict[str, Any]:
    return {"version": await rooms.replays.version(caller, task_id)}
