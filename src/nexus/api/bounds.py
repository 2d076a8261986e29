"""What every request passes first: an id for its log lines, and a bound on its body. Plain ASGI, so streams stay streams."""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

from nexus.api import errors as api_errors
from nexus.core import errors, ids

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 64 * 1024 * 1024
_UPLOAD = re.compile(r"/v1/agents/[^/]+/versions")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Bounds:
    """Wraps an ASGI app. Uploads of packages have a bound of their own (`hosting.packages`)."""

    def __init__(self, app: App, *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._most = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"])
        request_id = _request_id(given.get(b"x-request-id", b""))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id)]
            await send(message)

        if _UPLOAD.fullmatch(scope["path"]):
            await self._app(scope, receive, send_with_id)
            return
        length = given.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._most:
            refused = errors.Invalid(
                f"the body is larger than {self._most // 1024**2} MiB",
                code="body.too_large",
                next_step="send less in one request",
            )
            await api_errors.answer(refused)(scope, receive, send_with_id)
            return
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._most:
                raise HTTPException(413)
            return message

        await self._app(scope, receive_bounded, send_with_id)


def _request_id(given: bytes) -> bytes:
    return given if _REQUEST_ID.fullmatch(given) else ids.new_id("req").encode()
