"""`/v1/runs`: the history of runs, newest first."""

from typing import Annotated

from fastapi import APIRouter, Query

from nexus.api.access import Caller, Rooms
from nexus.wire import views

router = APIRouter(prefix="/v1/runs", tags=["runs"])


@router.get("", summary="List finished runs, newest first")
async def list_runs(
    caller: Caller,
    rooms: Rooms,
    agent: str | None = None,
    environment: str | None = None,
    session: str | None = None,
    outcome: str | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> views.Page:
    """Recorded within a second after a run ended, with the tokens its model calls took."""
    page: views.Page = await rooms.runs.list(
        caller, agent=agent, environment=environment, session_id=session, outcome=outcome, cursor=cursor, limit=limit
    )
    return page


@router.get("/{run_id}", summary="Show a finished run")
async def show(run_id: str, caller: Caller, rooms: Rooms) -> views.RunView:
    view: views.RunView = await rooms.runs.show(caller, run_id)
    return view
