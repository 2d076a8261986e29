"""`/v1/agents/{name}/logs`: what an agent printed, as JSON lines."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from nexus.api.access import Caller, Rooms
from nexus.core import errors
from nexus.core.principals import Action
from nexus.kit import quantity
from nexus.ports import logs
from nexus.wire import node

router = APIRouter(prefix="/v1/agents", tags=["logs"])
LEVELS = ("debug", "info", "warning", "error", "critical")


@router.get(
    "/{name}/logs",
    summary="Read or follow the log of an agent",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}},
)
async def read_logs(
    name: str,
    caller: Caller,
    rooms: Rooms,
    follow: bool = False,
    level: str | None = None,
    since: Annotated[str | None, Query(description="Seconds since the epoch, or how long ago: 1h, 10m")] = None,
    run: Annotated[str | None, Query(max_length=64)] = None,
    session: Annotated[str | None, Query(max_length=256)] = None,
    environment: Annotated[str | None, Query(max_length=63)] = None,
    instance: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100_000)] = 1000,
) -> StreamingResponse:
    """One `LogLine` a line, oldest first; with `follow` it goes on until the caller leaves."""
    agent = await rooms.hosting.agent(caller, name)
    caller.require(Action.READ, agent=name)
    if level is not None and level.lower() not in LEVELS:
        raise errors.Invalid(
            f"there is no level {level[:32]!r}",
            code="log.level_unknown",
            cause=f"the levels are {', '.join(LEVELS)}",
            next_step="pass --level with one of them",
        )
    query = logs.LogQuery(
        tenant=agent.tenant,
        agent=agent.name,
        environment=environment or caller.environment,
        instance_id=instance,
        level=level.lower() if level else None,
        since=_since(since, rooms.hosting.now()),
        run_id=run,
        session_id=session,
        limit=limit,
        follow=follow,
    )
    lines = rooms.driver.logs(query)
    first = await anext(lines, None) if not follow else None
    return StreamingResponse(_lines(first, lines), media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})


async def _lines(first: node.LogLine | None, lines: AsyncIterator[node.LogLine]) -> AsyncIterator[bytes]:
    if first is not None:
        yield _encode(first)
    try:
        async for line in lines:
            yield _encode(line)
    finally:
        with contextlib.suppress(AttributeError):
            await lines.aclose()  # type: ignore[attr-defined]


def _encode(line: node.LogLine) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _since(value: str | None, now: float) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        try:
            return now - quantity.parse_duration(value)
        except ValueError as error:
            raise errors.Invalid(
                str(error), code="log.since_invalid", next_step="pass --since 1h, or seconds since the epoch"
            ) from error
    return number
