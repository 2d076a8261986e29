"""`/v1/agents/{name}/sessions`: list, show, open, stop, kill, delete, look inside."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from nexus.api.access import Caller, Rooms
from nexus.wire import params, views

router = APIRouter(prefix="/v1", tags=["sessions"])
Environment = Annotated[str | None, Query(max_length=63, description="development, staging or production")]
Limit = Annotated[int, Query(ge=1, le=10_000)]


@router.get("/sessions", summary="List sessions of every agent")
async def list_every(caller: Caller, rooms: Rooms, environment: Environment = None, limit: Limit = 100) -> views.Page:
    """Those with a worker of their own first, then the others by when they ran last."""
    return views.Page(items=list(await rooms.live_sessions.list(caller, agent=None, environment=environment, limit=limit)))


@router.get("/agents/{name}/sessions", summary="List the sessions of an agent")
async def list_sessions(
    name: str, caller: Caller, rooms: Rooms, environment: Environment = None, limit: Limit = 100
) -> views.Page:
    """Those with a worker of their own first, then the others by when they ran last."""
    agent = await rooms.hosting.agent(caller, name)
    return views.Page(items=list(await rooms.live_sessions.list(caller, agent=agent.name, environment=environment, limit=limit)))


@router.post("/agents/{name}/sessions", summary="Open a session before its first run", status_code=201)
async def open_session(name: str, caller: Caller, rooms: Rooms, body: params.SessionParams) -> views.SessionView:
    """Gives it a worker of its own. Without `session_id` one is made."""
    agent = await rooms.hosting.agent(caller, name)
    environment = await rooms.hosting.environment_of(caller, agent.name, body.environment)
    view: views.SessionView = await rooms.live_sessions.open(caller, agent.name, body.session_id, environment)
    return view


@router.post("/agents/{name}/sessions:kill", summary="Kill every session of an agent")
async def kill_all(name: str, caller: Caller, rooms: Rooms, environment: Environment = None) -> dict[str, int]:
    """The emergency brake. `killed` says how many had a worker."""
    agent = await rooms.hosting.agent(caller, name)
    return {"killed": await rooms.live_sessions.kill_all(caller, agent.name, environment)}


@router.post("/agents/{name}/sessions:move", summary="Move the sessions of an old version to what serves")
async def move_sessions(name: str, caller: Caller, rooms: Rooms, body: params.MoveSessionsParams) -> dict[str, str]:
    """Runs in hand end first. What is kept of a session goes along: its state, and its work directory."""
    agent = await rooms.hosting.agent(caller, name)
    moved = await rooms.hosting.release_sessions(caller, agent.name, body)
    return {"agent": agent.name, "environment": moved.deployment.environment, "version": body.version}


@router.get("/agents/{name}/sessions/{session_id}", summary="Show a session")
async def show_session(
    name: str, session_id: str, caller: Caller, rooms: Rooms, environment: Environment = None
) -> views.SessionView:
    agent = await rooms.hosting.agent(caller, name)
    view: views.SessionView = await rooms.live_sessions.show(caller, agent.name, session_id, environment)
    return view


@router.post("/agents/{name}/sessions/{session_id}/stop", summary="Stop a session's worker and keep what is to be kept")
async def stop_session(
    name: str,
    session_id: str,
    caller: Caller,
    rooms: Rooms,
    environment: Environment = None,
    grace_s: Annotated[float, Query(ge=0, le=3600)] = 10.0,
) -> views.SessionView:
    """Runs in hand may end within `grace_s` seconds. The session's next run finds it as it was left."""
    agent = await rooms.hosting.agent(caller, name)
    view: views.SessionView = await rooms.live_sessions.stop(caller, agent.name, session_id, environment, grace_s=grace_s)
    return view


@router.post("/agents/{name}/sessions/{session_id}/kill", summary="Kill a session's worker")
async def kill_session(
    name: str, session_id: str, caller: Caller, rooms: Rooms, environment: Environment = None
) -> views.SessionView:
    """Its runs fail at once; what it did not save is lost."""
    agent = await rooms.hosting.agent(caller, name)
    view: views.SessionView = await rooms.live_sessions.kill(caller, agent.name, session_id, environment)
    return view


@router.delete("/agents/{name}/sessions/{session_id}", summary="Delete a session", status_code=204)
async def delete_session(name: str, session_id: str, caller: Caller, rooms: Rooms, environment: Environment = None) -> Response:
    """Ends its worker and forgets all that was kept of it: work directory, state, a graph's memory. The records of its runs
    stay as long as records do. The same id begins a new session."""
    agent = await rooms.hosting.agent(caller, name)
    wanted = await rooms.hosting.environment_of(caller, agent.name, environment)
    await rooms.live_sessions.delete(caller, agent.name, session_id, wanted)
    return Response(status_code=204)


@router.post(
    "/agents/{name}/sessions/{session_id}/exec",
    summary="Run a command in a session's box",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}},
)
async def exec_in_session(
    name: str,
    session_id: str,
    caller: Caller,
    rooms: Rooms,
    body: params.ExecParams,
    environment: Environment = None,
) -> StreamingResponse:
    """JSON lines: `{"stream", "data"}` as it comes, at last `{"exit": code}`. With the box's rights and limits, no more."""
    agent = await rooms.hosting.agent(caller, name)
    told = await rooms.live_sessions.exec(
        caller, agent.name, session_id, environment, body.command, stdin=body.stdin, timeout_s=body.timeout_s
    )
    first = await anext(told, None)
    return StreamingResponse(_lines(first, told), media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})


async def _lines(first: Mapping[str, Any] | None, told: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[bytes]:
    if first is not None:
        yield json.dumps(first).encode() + b"\n"
    async for line in told:
        yield json.dumps(line).encode() + b"\n"
