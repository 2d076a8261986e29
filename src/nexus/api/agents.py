"""`/v1/agents`: upload versions, list, show, history, rollback, scale, delete."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from nexus.api import render
from nexus.api.access import Caller, Rooms
from nexus.api.showing import show_deployment, show_deployments
from nexus.wire import params, views

router = APIRouter(prefix="/v1/agents", tags=["agents"])
Environment = Annotated[str | None, Query(description="development, staging or production")]

_PACKAGE = {
    "requestBody": {
        "required": True,
        "description": "The project folder as a gzipped tar of regular files.",
        "content": {"application/gzip": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post("/{name}/versions", summary="Upload a version", status_code=201, openapi_extra=_PACKAGE)
async def add_version(name: str, request: Request, response: Response, caller: Caller, rooms: Rooms) -> views.VersionView:
    """Store a package as a version. The same content again answers 200 and `created: false`."""
    version, created = await rooms.hosting.add_version(caller, name, request.stream())
    response.status_code = 201 if created else 200
    return render.render_version(version, created=created)


@router.get("/{name}/versions", summary="List the versions of an agent")
async def list_versions(name: str, caller: Caller, rooms: Rooms) -> views.Page:
    """Newest first."""
    agent = await rooms.hosting.agent(caller, name)
    found = await rooms.hosting.store.versions(caller.tenant, agent.name)
    return views.Page(items=[render.render_version(one) for one in found])


@router.get("", summary="List agents")
async def list_agents(caller: Caller, rooms: Rooms) -> views.Page:
    """Every agent this key may see, with its deployments."""
    shown = await show_deployments(rooms, caller.tenant)
    items = []
    for agent in await rooms.hosting.agents(caller):
        versions = await rooms.hosting.store.versions(caller.tenant, agent.name)
        mine = [one for one in shown if one.agent == agent.name]
        items.append(render.render_agent(agent, versions, mine))
    return views.Page(items=items)


@router.get("/{name}", summary="Show an agent")
async def show_agent(name: str, caller: Caller, rooms: Rooms) -> views.AgentView:
    agent = await rooms.hosting.agent(caller, name)
    versions = await rooms.hosting.store.versions(caller.tenant, agent.name)
    return render.render_agent(agent, versions, await show_deployments(rooms, caller.tenant, agent.name))


@router.delete("/{name}", summary="Delete an agent, or its deployment in one environment", status_code=202)
async def delete_agent(name: str, caller: Caller, rooms: Rooms, environment: Environment = None) -> dict[str, bool]:
    """Instances finish their runs and stop; `stopping` says whether there were any."""
    return {"stopping": await rooms.hosting.delete(caller, name, environment)}


@router.get("/{name}/history", summary="List the revisions of a deployment")
async def history(name: str, caller: Caller, rooms: Rooms, environment: Environment = None) -> views.Page:
    """Newest first."""
    found = await rooms.hosting.history(caller, name, environment)
    return views.Page(items=[render.render_revision(one) for one in found.revisions])


@router.post("/{name}/rollback", summary="Go back to an earlier version", status_code=202)
async def rollback(name: str, caller: Caller, rooms: Rooms, body: params.RollbackParams) -> views.DeploymentView:
    """To the version that was active before, or to the one named."""
    return await show_deployment(rooms, await rooms.hosting.rollback(caller, name, body))


@router.post("/{name}/scale", summary="Change replicas, autoscaling or sizes", status_code=202)
async def scale(name: str, caller: Caller, rooms: Rooms, body: params.ScaleParams) -> views.DeploymentView:
    """Replicas change at once; other sizes per instance come by a rolling restart."""
    return await show_deployment(rooms, await rooms.hosting.scale(caller, name, body))
