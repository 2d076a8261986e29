"""The calls of `/door/` that a run waits for, answered beside FastAPI, which would cost more than all they do.

Plain ASGI, inside `bounds`. A route is a method, a pattern of the path and an async function of a `Knock` that returns an
`Answer` or raises; errors are rendered as everywhere. What no route takes goes on to the app.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from nexus.api import errors as api_errors
from nexus.api.bounds import App, Receive, Scope, Send
from nexus.api.services import Services
from nexus.core import deployments, errors


@dataclass(frozen=True, slots=True)
class Answer:
    status: int = 204
    body: bytes = b""
    headers: Sequence[tuple[bytes, bytes]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Knock:
    """One call: whose worker it is, the parts of the path, and what was sent."""

    owner: deployments.InstanceOwner
    services: Services
    parts: tuple[str, ...]
    query: Mapping[str, str]
    receive: Receive

    async def body(self, most: int, too_large: errors.NexusError) -> bytes:
        """The whole body, or `too_large` raised when it has more than `most` bytes."""
        whole, more = bytearray(), True
        while more and len(whole) <= most:
            message = await self.receive()
            whole += message.get("body", b"")
            more = message.get("more_body", False)
        if len(whole) > most:
            raise too_large
        return bytes(whole)


Handle = Callable[[Knock], Awaitable[Answer]]
Route = tuple[str, re.Pattern[str], Handle]


class Door:
    """Wraps the app. `routes` of one method and path: the first one counts."""

    def __init__(self, app: App, *, routes: Sequence[Route]) -> None:
        self._app, self._routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/door/"):
            for method, pattern, handle in self._routes:
                if method == scope["method"] and (match := pattern.fullmatch(scope["path"])) is not None:
                    await self._answer(scope, receive, send, handle, match.groups())
                    return
        await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, handle: Handle, parts: tuple[str, ...]) -> None:
        services: Services = scope["app"].state.services
        try:
            knock = Knock(
                owner=await services.identity.instance_of(_bearer(scope)),
                services=services,
                parts=parts,
                query=dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)),
                receive=receive,
            )
            answer = await handle(knock)
        except (errors.NexusError, UnicodeEncodeError) as error:
            await api_errors.answer_any(error, f"{scope['method']} {scope['path']}")(scope, receive, send)
            return
        headers = list(answer.headers)
        if answer.status != 204:
            headers.append((b"content-length", b"%d" % len(answer.body)))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})


def json_answer(body: bytes, *headers: tuple[bytes, bytes]) -> Answer:
    return Answer(200, body, ((b"content-type", b"application/json"), *headers))


def _bearer(scope: Scope) -> str:
    given: Mapping[bytes, bytes] = dict(scope["headers"])
    scheme, _, value = given.get(b"authorization", b"").partition(b" ")
    credential = value.strip() if scheme.lower() == b"bearer" else given.get(b"x-api-key", b"").strip()
    if not credential:
        raise errors.Unauthenticated("this call needs the token of an instance", next_step="send Authorization: Bearer nxi_…")
    return credential.decode("latin-1")
