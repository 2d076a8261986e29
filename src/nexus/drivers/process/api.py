"""The supervisor's HTTP protocol (`nexus.wire.node`) as a plain ASGI app over a `Node`. Served on a private unix socket."""

import asyncio
import contextlib
import dataclasses
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

from nexus.core import errors, names
from nexus.drivers.process import log_lines, session_api
from nexus.drivers.process import node as nodes
from nexus.wire import node as wire
from nexus.wire import problem

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_INSTANCE = re.compile(r"/instances/([^/]{1,100})(/log|/end|/network)?")
_MOST_BODY = 8 * 1024 * 1024
_HEARTBEAT_S = 2.0
_DEFAULT_GRACE_S = 10.0


class App:
    """Parse, call one verb of the node, render."""

    def __init__(self, node: nodes.Node) -> None:
        self._node = node
        self._sessions = session_api.SessionApi(node.sessions)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            await self._route(scope, receive, send)
        except errors.NexusError as error:
            await _answer(send, problem.status_of(error), problem.render(error), kind=problem.CONTENT_TYPE)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        match = _INSTANCE.fullmatch(path)
        if match and not match[2] and method == "PUT":
            await self._put(match[1], receive, send)
        elif match and not match[2] and method == "DELETE":
            self._node.stop(match[1], grace_s=_number(query, "grace_s", _DEFAULT_GRACE_S, 86_400))
            await _answer(send, 202, {})
        elif match and match[2] == "/end" and method == "GET":
            since, wait_s = _number(query, "since", 0.0, 1e12), _number(query, "wait_s", 0.0, 5.0)
            await _answer(send, 200, {"problem": await self._node.last_end(match[1], since=since, wait_s=wait_s)})
        elif match and match[2] == "/network" and method == "GET":
            await _answer(send, 200, self._node.network(match[1], [one for one in query.get("runs", "").split(",") if one]))
        elif match and match[2] and method == "GET":
            await _answer(send, 200, {"lines": self._node.log_tail(match[1], int(_number(query, "lines", 50, 1000)))})
        elif method == "GET" and (told := await self._look(path, query)) is not None:
            await _answer(send, 200, told)
        elif method == "GET" and path == "/events":
            await _stream(receive, send, self._events())
        elif method == "GET" and path == "/logs":
            await _stream(receive, send, self._logs(query))
        elif path.startswith("/sessions"):
            await self._about_sessions(scope, query, receive, send)
        else:
            raise errors.NotFound(f"the supervisor has no {method} {path[:80]}", code="route.not_found")

    async def _look(self, path: str, query: Mapping[str, str]) -> dict[str, Any] | None:
        """What is answered in one piece; None for any other path."""
        match path:
            case "/health":
                return {"status": "healthy", "instances": len(self._node.statuses())}
            case "/capabilities":
                return dataclasses.asdict(self._node.capabilities())
            case "/instances":
                return {"instances": [wire.status_to_json(status) for status in self._node.statuses()]}
            case "/usage":
                return await self._node.usage(query.get("after", ""))
        return None

    async def _put(self, instance_id: str, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        try:
            spec = wire.spec_from_json(json.loads(body))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise errors.Invalid("this is not an instance spec", code="instance.bad_spec", cause=type(error).__name__) from None
        if spec.id != instance_id:
            raise errors.Invalid("the spec has another id than the path", code="instance.bad_spec")
        self._node.start(spec)
        await _answer(send, 202, {})

    async def _about_sessions(self, scope: Scope, query: dict[str, str], receive: Receive, send: Send) -> None:
        path = scope.get("raw_path", b"").partition(b"?")[0].decode("latin-1") or scope["path"]
        answer = await self._sessions.answer(scope["method"], path, query, await _body(receive))
        if answer is None:
            raise errors.NotFound(f"the supervisor has no {scope['method']} {path[:80]}", code="route.not_found")
        if isinstance(answer, dict):
            await _answer(send, 200, answer)
        else:
            await _stream(receive, send, _lines(answer))

    async def _events(self) -> AsyncGenerator[bytes, None]:
        """Begins with what is, so that nothing can fall between a caller's last look and its first event."""
        async with contextlib.aclosing(self._node.changes(heartbeat_s=_HEARTBEAT_S)) as changes:
            async for status in changes:
                yield b"\n" if status is None else _line(wire.status_to_json(status))

    async def _logs(self, query: dict[str, str]) -> AsyncGenerator[bytes, None]:
        level = query.get("level")
        if level is not None and level not in log_lines.LEVELS:
            raise errors.Invalid(
                f"there is no level {level[:40]!r}", code="logs.bad_level", cause="levels are " + ", ".join(log_lines.LEVELS)
            )
        wanted = log_lines.Filter(
            level=level,
            since=_number(query, "since", 0.0, 1e12) or None,
            run_id=query.get("run"),
            session_id=query.get("session"),
            environment=query.get("environment"),
            instance_id=query.get("instance"),
        )
        lines = self._node.logs(
            tenant=names.parse_label(query.get("tenant", ""), "tenant"),
            agent=names.parse_label(query.get("agent", "")),
            wanted=wanted,
            limit=int(_number(query, "limit", 1000, 100_000)),
            follow=query.get("follow", "").lower() in ("1", "true", "yes"),
        )
        async with contextlib.aclosing(lines) as stream:
            async for line in stream:
                yield _line(line)


async def _lines(values: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    async with contextlib.aclosing(values) as stream:
        async for value in stream:
            yield _line(value)


def _number(query: dict[str, str], name: str, default: float, most: float) -> float:
    text = query.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise errors.Invalid(f"{name}={text[:40]!r} is not a number from 0 to {most:g}", code="request.bad_number")
    return value


def _line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"


async def _body(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise errors.Invalid("the request ended early", code="request.incomplete")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > _MOST_BODY:
            raise errors.Invalid(f"a spec has at most {_MOST_BODY} bytes", code="body.too_large")
        chunks.append(chunk)
        if not message.get("more_body"):
            return b"".join(chunks)


async def _answer(send: Send, status: int, value: object, *, kind: str = "application/json") -> None:
    body = json.dumps(value).encode()
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(receive: Receive, send: Send, lines: AsyncGenerator[bytes, None]) -> None:
    """Lines as they come until they end or the caller leaves. The first is awaited before the head, so errors are answers."""
    async with contextlib.aclosing(lines) as stream:
        gone = asyncio.ensure_future(_until_gone(receive))
        started = False
        try:
            while True:
                following = asyncio.ensure_future(anext(stream, None))
                if not started:
                    await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED, timeout=0.5)
                    if following.done():
                        following.result()
                    await send(
                        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]}
                    )
                    await send({"type": "http.response.body", "body": b"", "more_body": True})
                    started = True
                await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    await asyncio.wait({following})
                    return
                line = following.result()
                if line is None:
                    await send({"type": "http.response.body", "body": b""})
                    return
                await send({"type": "http.response.body", "body": line, "more_body": True})
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
