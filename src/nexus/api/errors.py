"""Every error of the API as `application/problem+json`, whoever raised it: a room, FastAPI's validation, the router, a defect."""

import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from nexus.core import errors
from nexus.wire import problem

_LOG = logging.getLogger(__name__)
_MOST_SHOWN = 20


def install(app: FastAPI) -> None:
    app.add_exception_handler(errors.NexusError, _ours)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(UnicodeEncodeError, _surrogate)
    app.add_exception_handler(Exception, _defect)


def answer(error: errors.NexusError) -> Response:
    """The error as a response, with the headers its status asks for."""
    headers: dict[str, str] = {"Nexus-Error-Code": error.code}
    status = problem.status_of(error)
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="nexus"'
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    return Response(problem.encode(error), status_code=status, media_type=problem.CONTENT_TYPE, headers=headers)


def answer_any(error: errors.NexusError | UnicodeEncodeError, where: str) -> Response:
    """The same for what a room raises; a defect of ours is logged. `where`: method and path."""
    if isinstance(error, UnicodeEncodeError):
        return answer(_not_unicode())
    if isinstance(error, errors.Internal):
        _LOG.error("%s: %s", where, error.message, exc_info=error)
    return answer(error)


async def _ours(request: Request, error: Exception) -> Response:
    if not isinstance(error, errors.NexusError):
        return await _defect(request, error)
    return answer_any(error, f"{request.method} {request.url.path}")


async def _validation(_: Request, error: Exception) -> Response:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    mistakes = [{"path": _path(one.get("loc", ())), "message": str(one.get("msg", ""))[:200]} for one in found[:_MOST_SHOWN]]
    first = mistakes[0] if mistakes else {"path": "", "message": "the request is not valid"}
    return answer(
        errors.Invalid(
            f"{first['path']}: {first['message']}" if first["path"] else str(first["message"]),
            code="request.invalid",
            cause=f"{len(found)} part{'s' if len(found) != 1 else ''} of the request cannot be used",
            next_step="compare the request with /openapi.json",
            extra={"errors": mistakes},
        )
    )


async def _http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    where = f"{request.method} {request.url.path[:200]}"
    if status == 404:
        return answer(
            errors.NotFound(
                f"there is nothing at {where}", code="route.not_found", next_step="see /openapi.json for what there is"
            )
        )
    if status == 405:
        response = answer(
            errors.Invalid(f"{where} is not a thing to do", code="method.not_allowed", next_step="see /openapi.json")
        )
        response.headers.update(getattr(error, "headers", None) or {})
        return response
    if status == 413:
        return answer(errors.Invalid("the body is too large", code="body.too_large", next_step="send less in one request"))
    if status < 500:
        return answer(
            errors.Invalid("the request could not be read", code="request.invalid", cause=str(getattr(error, "detail", "")))
        )
    return await _defect(request, error)


async def _surrogate(_: Request, __: Exception) -> Response:
    return answer(_not_unicode())


def _not_unicode() -> errors.Invalid:
    return errors.Invalid(
        "the request holds text that is not Unicode",
        code="request.invalid",
        cause="a lone surrogate (\\ud800 to \\udfff) stands in a string",
        next_step="escape characters beyond U+FFFF as pairs",
    )


async def _defect(request: Request, error: Exception) -> Response:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return answer(
        errors.Internal(
            "this is a defect of the host",
            cause=type(error).__name__,
            next_step="look at the log of control: nexus status shows where",
        )
    )


def _path(location: Any) -> str:
    """`body.replicas` → `replicas`; `query.limit` stays, so that it is clear where to look."""
    parts = [str(part)[:64] for part in location]
    return ".".join(parts[1:] if parts[:1] == ["body"] else parts)
