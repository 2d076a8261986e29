"""`/v1/keys`, `/v1/tenants`, `/v1/whoami`: who may call, and for whom."""

from typing import Any

from fastapi import APIRouter
from pydantic import Field

from nexus.api import render
from nexus.api.access import Caller, Rooms
from nexus.wire import params, views

router = APIRouter(prefix="/v1", tags=["access"])


class TenantParams(params.Params):
    name: str = Field(max_length=300)


@router.post("/keys", summary="Create an API key", status_code=201)
async def create_key(caller: Caller, rooms: Rooms, body: params.KeyParams) -> views.KeyView:
    """`key` is shown in this answer and never again."""
    row, key = await rooms.identity.create_key(caller, **body.model_dump())
    return render.render_key(row, key)


@router.get("/keys", summary="List API keys")
async def list_keys(caller: Caller, rooms: Rooms) -> views.Page:
    """Of the caller's tenant, revoked ones too."""
    return views.Page(items=[render.render_key(row) for row in await rooms.identity.list_keys(caller)])


@router.delete("/keys/{key_id}", summary="Revoke an API key")
async def revoke_key(key_id: str, caller: Caller, rooms: Rooms) -> views.KeyView:
    """At once; again is the same."""
    return render.render_key(await rooms.identity.revoke_key(caller, key_id))


@router.post("/tenants", summary="Create a tenant", status_code=201)
async def create_tenant(caller: Caller, rooms: Rooms, body: TenantParams) -> dict[str, Any]:
    return {"name": body.name, "created_at": await rooms.identity.create_tenant(caller, body.name)}


@router.get("/tenants", summary="List tenants")
async def list_tenants(caller: Caller, rooms: Rooms) -> views.Page:
    """All of them for an admin, one's own for everybody else."""
    found = await rooms.identity.list_tenants(caller)
    return views.Page(items=[{"name": name, "created_at": created_at} for name, created_at in found])


@router.get("/whoami", summary="Show whom the key stands for")
async def whoami(caller: Caller) -> dict[str, Any]:
    return {
        "id": caller.id,
        "tenant": caller.tenant,
        "roles": sorted(caller.roles),
        "environment": caller.environment,
        "agents": None if caller.agents is None else sorted(caller.agents),
    }
