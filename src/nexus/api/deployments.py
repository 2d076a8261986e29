"""`/v1/deployments`: make a version the target of an environment, and follow it on its way."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from nexus.api import render
from nexus.api.access import Caller, Rooms
from nexus.api.services import Services
from nexus.api.showing import show_deployment
from nexus.core import errors
from nexus.core.principals import Principal
from nexus.kit import sse
from nexus.wire import params, views

router = APIRouter(prefix="/v1/deployments", tags=["deployments"])
LOOK_EVERY_S = 0.1
COMMENT_EVERY_S = 10.0
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", max_length=255)]


@router.post("", summary="Deploy a version", status_code=202)
async def deploy(
    caller: Caller, rooms: Rooms, body: params.DeployParams, idempotency_key: IdempotencyKey = None
) -> views.DeploymentView:
    """Answers at once; `GET /v1/deployments/{id}/events` tells how it goes. The same again changes nothing."""
    if idempotency_key is None:
        return await show_deployment(rooms, await rooms.hosting.deploy(caller, body))
    request = hashlib.sha256(body.model_dump_json().encode()).hexdigest()
    if (known := await _recall(rooms, caller, idempotency_key, request)) is not None:
        return known
    view = await show_deployment(rooms, await rooms.hosting.deploy(caller, body))
    await rooms.hosting.store.remember(
        caller.tenant, f"{caller.id}/{idempotency_key}", request, view.model_dump(mode="json"), at=view.updated_at
    )
    return view


async def _recall(rooms: Services, caller: Principal, key: str, request: str) -> views.DeploymentView | None:
    found = await rooms.hosting.store.recall(caller.tenant, f"{caller.id}/{key}")
    if found is None:
        return None
    if found[0] != request:
        raise errors.Conflict(
            "this Idempotency-Key was used for another request",
            code="idempotency.key_reused",
            next_step="make a new key for each new request",
        )
    return views.DeploymentView.model_validate(found[1])


@router.get("/{deployment_id}", summary="Show a deployment")
async def show(deployment_id: str, caller: Caller, rooms: Rooms) -> views.DeploymentView:
    return await show_deployment(rooms, await rooms.hosting.get(caller, deployment_id))


@router.get(
    "/{deployment_id}/events",
    summary="Follow a rollout",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def events(
    deployment_id: str,
    request: Request,
    caller: Caller,
    rooms: Rooms,
    revision: Annotated[int | None, Query(ge=1, description="Default: the newest")] = None,
) -> StreamingResponse:
    """`RolloutEvent`s of one revision as server-sent events, from its first to the one that is `done`; resumable."""
    found = await rooms.hosting.get(caller, deployment_id)
    newest = found.revisions[0].number if found.revisions else 0
    number, after = _position(request.headers.get("last-event-id", ""), revision or newest)
    return StreamingResponse(
        _follow(rooms, caller, deployment_id, number, after),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


def _position(last_event_id: str, revision: int) -> tuple[int, int]:
    """An event id is `<revision>-<sequence>`: a reader who comes back stays with the revision it followed."""
    left, _, right = last_event_id.partition("-")
    if left.isdecimal() and right.isdecimal() and len(last_event_id) < 40:
        return int(left), int(right)
    return revision, 0


async def _follow(rooms: Services, caller: Principal, deployment_id: str, number: int, after: int) -> AsyncIterator[bytes]:
    quiet_s = 0.0
    while True:
        found = await rooms.hosting.store.events(caller.tenant, deployment_id, revision=number, after=after)
        for stored in found:
            after, quiet_s = stored.seq, 0.0
            event = render.render_event(stored)
            if event["done"]:
                deployed = await rooms.hosting.get(caller, deployment_id)
                event["deployment"] = (await show_deployment(rooms, deployed)).model_dump(mode="json")
            yield _encode(event, number, stored.seq)
            if event["done"]:
                return
        if not found and await rooms.hosting.store.deployment(caller.tenant, deployment_id) is None:
            yield _encode(_deleted(number, rooms.hosting.now()), number, after)
            return
        await asyncio.sleep(LOOK_EVERY_S)
        quiet_s += LOOK_EVERY_S
        if quiet_s >= COMMENT_EVERY_S:
            quiet_s = 0.0
            yield b": still on its way\n\n"


def _encode(event: dict[str, Any], number: int, seq: int) -> bytes:
    return sse.encode(sse.Event(data=json.dumps(event), name="rollout", id=f"{number}-{seq}"))


def _deleted(number: int, at: float) -> dict[str, Any]:
    problem = {
        "code": "deployment.deleted",
        "kind": "conflict",
        "status": 409,
        "detail": "the deployment was deleted while it was on its way",
    }
    return {"at": at, "phase": "stopped", "message": "deleted", "revision": number, "done": True, "problem": problem}
