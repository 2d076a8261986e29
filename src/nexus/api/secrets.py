"""`/v1/agents/{name}/secrets`: set, list and delete. No route answers a value."""

from fastapi import APIRouter

from nexus.api import render
from nexus.api.access import Caller, Rooms
from nexus.core.principals import Action
from nexus.wire import params, views

router = APIRouter(prefix="/v1/agents/{name}/secrets", tags=["secrets"])


@router.get("", summary="List the secrets of an agent")
async def list_secrets(name: str, caller: Caller, rooms: Rooms) -> views.Page:
    """Names, fingerprints and who changed them when; never a value."""
    caller.require(Action.READ, agent=name)
    return views.Page(items=[render.render_secret(row) for row in await rooms.secrets.list(caller.tenant, name)])


@router.put("/{key}", summary="Set a secret")
async def set_secret(name: str, key: str, caller: Caller, rooms: Rooms, body: params.SecretParams) -> views.SecretView:
    """Running instances get a changed value by a rolling restart. The agent need not exist yet."""
    caller.require(Action.DEPLOY, agent=name)
    return render.render_secret(await rooms.secrets.set(caller.tenant, name, key, body.value, by=caller.id))


@router.delete("/{key}", summary="Delete a secret", status_code=204)
async def delete_secret(name: str, key: str, caller: Caller, rooms: Rooms) -> None:
    """Running instances lose it by a rolling restart."""
    caller.require(Action.DEPLOY, agent=name)
    await rooms.secrets.delete(caller.tenant, name, key)
