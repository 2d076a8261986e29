"""`/metrics` for Prometheus: a tenant's key sees the tenant's series, an admin's all. Scrape with a viewer's key."""

from fastapi import APIRouter, Response

from nexus.api.access import Caller, Rooms
from nexus.telemetry import metrics

router = APIRouter(tags=["metrics"])


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
async def show(caller: Caller, rooms: Rooms) -> Response:
    depths = await rooms.tasks.queue_depths()
    queue = {(lane.tenant, lane.agent, lane.environment): count for lane, count in depths.items()}
    text = rooms.metrics.render(caller, queue, dispatchers=await rooms.tasks.dispatchers())
    return Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})
