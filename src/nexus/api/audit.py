"""`/v1/audit`: the trail of model calls, for admins of their tenant."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from nexus.api.access import Caller, Rooms
from nexus.wire import views

router = APIRouter(prefix="/v1/audit", tags=["audit"])
_TYPES = {"jsonl": "application/x-ndjson", "csv": "text/csv; charset=utf-8"}
Since = Annotated[float | None, Query(description="From here on, in seconds since the epoch", allow_inf_nan=False)]
Until = Annotated[float | None, Query(description="Up to here, not included", allow_inf_nan=False)]
Name = Annotated[str | None, Query(max_length=100)]


@router.get("", summary="List audit records, oldest first")
async def list_records(
    caller: Caller,
    rooms: Rooms,
    after: Annotated[int, Query(ge=0, lt=2**63, description="Behind this number")] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    since: Since = None,
    until: Until = None,
    agent: Name = None,
    run: Name = None,
    content: bool = False,
) -> views.Page:
    """Each with its number, its hash and the hash before it. `content` adds what was kept of the call's text, redacted."""
    items: list[Any] = await rooms.audit.list(
        caller, after=after, limit=limit, since=since, until=until, agent=agent, run_id=run, content=content
    )
    return views.Page(items=items, next=str(items[-1]["seq"]) if len(items) == limit else None)


@router.get(
    "/export",
    summary="Export audit records",
    response_class=StreamingResponse,
    responses={200: {"content": {kind: {"schema": {"type": "string"}} for kind in ("application/x-ndjson", "text/csv")}}},
)
async def export(
    caller: Caller,
    rooms: Rooms,
    form: Annotated[Literal["jsonl", "csv"], Query(alias="format")] = "jsonl",
    since: Since = None,
    until: Until = None,
    agent: Name = None,
    content: bool = False,
) -> StreamingResponse:
    """JSON lines (`seq`, `tenant`, `previous`, `hash`, `record`) or CSV. One that broke off lacks its last chunk."""
    pages = await rooms.audit.export(caller, form=form, since=since, until=until, agent=agent, content=content)
    return StreamingResponse(pages, media_type=_TYPES[form], headers={"Cache-Control": "no-store"})


@router.get("/verify", summary="Verify the audit chain")
async def verify(caller: Caller, rooms: Rooms) -> dict[str, Any]:
    """Follows the whole chain. `fault` names the first record that was altered, removed or put in."""
    verdict: dict[str, Any] = await rooms.audit.verify(caller)
    return verdict
