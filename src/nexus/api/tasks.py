"""`/agents/{name}/tasks` and `/tasks`: submit, look, list, follow, cancel; `/v1/webhooks`: the signing secret, replay."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from nexus.api.access import Caller, Rooms
from nexus.core import errors
from nexus.kit import sse
from nexus.ports import task_store
from nexus.wire import headers, params, problem, views

router = APIRouter(tags=["tasks"])


@router.post("/agents/{name}/tasks", summary="Submit a task", status_code=202)
async def submit(
    name: str,
    body: params.SubmitParams,
    caller: Caller,
    rooms: Rooms,
    environment: Annotated[str | None, Header(alias=headers.ENVIRONMENT)] = None,
    session_id: Annotated[str | None, Header(alias=headers.SESSION_ID)] = None,
    idempotency_key: Annotated[str | None, Header(alias=headers.IDEMPOTENCY_KEY)] = None,
    traceparent: Annotated[str | None, Header()] = None,
) -> views.TaskView:
    """Answered once the task is committed: from then on it will be done. The same `Idempotency-Key` gives the same task."""
    if body.session_id is None and session_id is not None:
        body = body.model_copy(update={"session_id": session_id})
    view: views.TaskView = await rooms.tasks.submit(
        caller, name, body, environment=environment, idempotency_key=idempotency_key, traceparent=traceparent
    )
    return view


@router.post("/agents/{name}/tasks:batch", summary="Submit many tasks at once", status_code=202)
async def submit_batch(
    name: str,
    body: params.BatchParams,
    caller: Caller,
    rooms: Rooms,
    environment: Annotated[str | None, Header(alias=headers.ENVIRONMENT)] = None,
    idempotency_key: Annotated[str | None, Header(alias=headers.IDEMPOTENCY_KEY)] = None,
    traceparent: Annotated[str | None, Header()] = None,
) -> views.Page:
    """Up to 10,000, in one commit: all of them or none. A batch sent again under its `Idempotency-Key` makes nothing twice."""
    made = await rooms.tasks.submit_batch(
        caller, name, body, environment=environment, idempotency_key=idempotency_key, traceparent=traceparent
    )
    return views.Page(items=made)


@router.get("/tasks", summary="List tasks, newest first")
async def list_tasks(
    caller: Caller,
    rooms: Rooms,
    agent: str | None = None,
    environment: str | None = None,
    status: str | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    dead: bool = False,
) -> views.Page:
    """`dead`: those that failed for good and were not queued again since."""
    page: views.Page = await rooms.tasks.list(
        caller, agent=agent, environment=environment, status=status, cursor=cursor, limit=limit, dead=dead
    )
    return page


@router.post("/v1/dead-letters/requeue", summary="Queue dead letters again", status_code=202)
async def requeue(body: params.DeadLettersParams, caller: Caller, rooms: Rooms) -> views.DeadLettersView:
    """Each becomes a new task with the same input; doing it twice makes it once."""
    view: views.DeadLettersView = await rooms.tasks.requeue(caller, body)
    return view


@router.post("/v1/dead-letters/purge", summary="Delete dead letters")
async def purge(body: params.DeadLettersParams, caller: Caller, rooms: Rooms) -> views.DeadLettersView:
    """For the role developer."""
    view: views.DeadLettersView = await rooms.tasks.purge(caller, body)
    return view


@router.get("/tasks/{task_id}", summary="Show a task")
async def show(task_id: str, caller: Caller, rooms: Rooms, wait: Annotated[float, Query(ge=0, le=60)] = 0) -> views.TaskView:
    """With `wait` (seconds) the answer comes when the task is over, or after that time."""
    view: views.TaskView = (
        await rooms.tasks.wait(caller, task_id, seconds=wait) if wait else await rooms.tasks.show(caller, task_id)
    )
    return view


@router.patch("/tasks/{task_id}", summary="Change a task's priority")
async def change(task_id: str, body: params.TaskChangeParams, caller: Caller, rooms: Rooms) -> views.TaskView:
    view: views.TaskView = await rooms.tasks.change(caller, task_id, body)
    return view


@router.get("/tasks/{task_id}/result", summary="The result of a task")
async def result(task_id: str, caller: Caller, rooms: Rooms, wait: Annotated[float, Query(ge=0, le=60)] = 0) -> dict[str, Any]:
    """`output` and `metadata` of a completed task; the problem of a failed one; 409 `task.not_finished` before its end."""
    view: views.TaskView = await rooms.tasks.wait(caller, task_id, seconds=wait)
    if view.status == "completed":
        return {"output": view.output, "metadata": view.metadata}
    if view.error is not None:
        raise problem.parse(view.error)
    raise errors.Conflict(
        f"task {task_id} is {view.status}", code="task.not_finished", next_step="ask again, or wait with ?wait=30"
    )


@router.post("/tasks/{task_id}/pause", summary="Pause a task")
async def pause(task_id: str, caller: Caller, rooms: Rooms) -> views.TaskView:
    """A queued task waits until it is resumed; one that runs is interrupted and begins its next attempt then."""
    view: views.TaskView = await rooms.tasks.pause(caller, task_id)
    return view


@router.post("/tasks/{task_id}/resume", summary="Resume a paused task")
async def resume(task_id: str, caller: Caller, rooms: Rooms) -> views.TaskView:
    view: views.TaskView = await rooms.tasks.resume(caller, task_id)
    return view


@router.post("/tasks/{task_id}/cancel", summary="Cancel a task")
async def cancel(task_id: str, caller: Caller, rooms: Rooms) -> views.TaskView:
    """A waiting task is cancelled at once, a running one as soon as its agent was told. Again is harmless."""
    view: views.TaskView = await rooms.tasks.cancel(caller, task_id)
    return view


@router.get("/tasks/{task_id}/events", summary="Follow a task's events", response_class=StreamingResponse)
async def events(task_id: str, request: Request, caller: Caller, rooms: Rooms) -> StreamingResponse:
    """Server-sent events, numbered from 1; `Last-Event-ID` resumes behind that number. Ends after the terminal event."""
    after = parse_position(request.headers.get("last-event-id") or request.query_params.get("after"))
    followed = await rooms.tasks.follow(caller, task_id, after=after)
    return StreamingResponse(_render(followed), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@router.get("/v1/webhooks/secret", summary="The secret webhooks are signed with")
async def secret(caller: Caller, rooms: Rooms) -> dict[str, Any]:
    """`whsec_…` of the caller's tenant, as Standard Webhooks verifiers take it. For the role developer."""
    return {"secret": await rooms.webhooks.secret(caller)}


@router.post("/v1/webhooks/secret/rotate", summary="Change the secret webhooks are signed with")
async def rotate_secret(caller: Caller, rooms: Rooms) -> dict[str, Any]:
    """The new one. For a day deliveries carry the old one's signature too. For the role developer."""
    return {"secret": await rooms.webhooks.rotate_secret(caller)}


@router.post("/tasks/{task_id}/webhook/replay", summary="Send a dead webhook again", status_code=202)
async def replay(task_id: str, caller: Caller, rooms: Rooms) -> views.TaskView:
    await rooms.tasks.show(caller, task_id)
    await rooms.webhooks.replay(caller, task_id)
    view: views.TaskView = await rooms.tasks.show(caller, task_id)
    return view


def parse_position(value: str | None) -> int:
    """The number behind which to go on; 0 when none is named."""
    if not value:
        return 0
    if not (value.isascii() and value.isdigit() and len(value) <= 9):
        raise errors.Invalid("Last-Event-ID is the number of an event of this task", code="events.unknown_position")
    return int(value)


async def _render(followed: AsyncIterator[task_store.TaskEvent | None]) -> AsyncIterator[bytes]:
    async for event in followed:
        if event is None:
            yield b": waiting\n\n"
        else:
            yield sse.encode(sse.Event(data=event.data, name=event.name, id=str(event.seq)))
