"""`/v1/status`, `/v1/host/rotate-key`, `/health`: the host itself."""

from typing import Any

from fastapi import APIRouter

from nexus.api.access import Caller, Rooms
from nexus.core import errors
from nexus.core.principals import Action

router = APIRouter(tags=["host"])


@router.get("/health", summary="Say that control is alive")
async def health() -> dict[str, str]:
    """Needs no key and says nothing more."""
    return {"status": "healthy"}


@router.get("/v1/status", summary="Show the state of the host")
async def status(caller: Caller, rooms: Rooms) -> dict[str, Any]:
    """Version, uptime, database, the node's capabilities, and the caller's deployments in numbers."""
    caller.require(Action.READ)
    if rooms.status is None:
        raise errors.Unavailable("this process does not know the host's state", code="status.unknown")
    return await rooms.status(caller)


@router.post("/v1/host/rotate-key", summary="Replace the master key")
async def rotate_key(caller: Caller, rooms: Rooms) -> dict[str, int]:
    """Every secret is wrapped anew; nothing restarts and no value changes."""
    caller.require(Action.MANAGE_HOST)
    return {"rewrapped": await rooms.secrets.rotate_master_key()}
