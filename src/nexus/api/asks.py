"""Questions of tasks: asked through the door, listed and answered with a key (`/v1/asks`, `/tasks/{id}/answer`) or by link."""

import json
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request, Response

from nexus.api import ask_page
from nexus.api.access import Caller, DoorCaller, Rooms
from nexus.core import errors
from nexus.tasks import asks
from nexus.wire import params, problem, views

router = APIRouter(tags=["tasks"])
_MOST_FORM = asks.MAX_ANSWER_BYTES * 4


@router.get("/v1/asks", summary="List what tasks ask people")
async def list_asks(
    caller: Caller, rooms: Rooms, agent: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> views.Page:
    """Open questions of tasks that are not over, oldest first."""
    return views.Page(items=await rooms.asks.list(caller, agent=agent, limit=limit))


@router.get("/tasks/{task_id}/asks", summary="What a task asked people")
async def of_task(task_id: str, caller: Caller, rooms: Rooms) -> views.Page:
    await rooms.tasks.show(caller, task_id)
    return views.Page(items=await rooms.asks.list(caller, task_id=task_id))


@router.post("/tasks/{task_id}/answer", summary="Answer a task's question")
async def answer(task_id: str, body: params.AnswerParams, caller: Caller, rooms: Rooms) -> views.AskView:
    """The task goes on. The same answer by the same caller again is harmless, another one is a 409 (`ask.settled`)."""
    await rooms.tasks.show(caller, task_id)
    view: views.AskView = await rooms.asks.answer(caller, task_id, body.answer, ask_id=body.ask_id)
    return view


@router.post("/door/runs/{task_id}/asks", include_in_schema=False)
async def open_ask(
    task_id: str,
    request: Request,
    owner: DoorCaller,
    rooms: Rooms,
    key: Annotated[str, Query(max_length=300)],
    attempt: Annotated[int, Query(ge=1, le=1_000_000)],
) -> dict[str, Any]:
    body = await _read(request, asks.MAX_QUESTION_BYTES, "a question")
    opened: dict[str, Any] = await rooms.asks.open(owner, task_id, key=key, attempt=attempt, body=body)
    return opened


@router.get("/asks/{token}", include_in_schema=False)
async def show_page(token: str, rooms: Rooms) -> Response:
    """The page of a signed link. Looking at it answers nothing: previews of links look too."""
    try:
        return ask_page.form(await rooms.asks.look_by_link(token))
    except errors.NexusError as error:
        return ask_page.refusal(error, status=problem.status_of(error))


@router.post("/asks/{token}", include_in_schema=False)
async def answer_page(token: str, request: Request, rooms: Rooms) -> Response:
    """The answer, from the page's form or as JSON (`{"answer": …}`), which gets JSON back."""
    body = await _read(request, _MOST_FORM, "an answer")
    if request.headers.get("content-type", "").partition(";")[0].strip() == "application/json":
        view: views.AskView = await rooms.asks.answer_by_link(token, _json(body))
        return Response(view.model_dump_json(exclude={"url"}), media_type="application/json", headers=ask_page.HEADERS)
    try:
        shown = await rooms.asks.look_by_link(token)
        return ask_page.thanks(await rooms.asks.answer_by_link(token, ask_page.read_form(shown, _form(body))))
    except errors.NexusError as error:
        return ask_page.refusal(error, status=problem.status_of(error))


async def _read(request: Request, most: int, what: str) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise errors.Invalid(f"{what} may have {most} bytes", code="body.too_large")
    return bytes(body)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)["answer"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise errors.Invalid('send the answer as {"answer": …}', code="body.invalid_json") from None


def _form(body: bytes) -> dict[str, str]:
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=10)
    except ValueError:
        return {}
    return {name: values[0] for name, values in fields.items()}
