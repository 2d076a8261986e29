"""Any ASGI app (FastAPI, Starlette, `BedrockAgentCoreApp` …): a run is one POST to the route that takes runs, in the process.

The route is `/run`, `/invocations`, `/responses`, `/invoke`, `/chat` or `/`, the first the app has, else its only POST route.
Its WebSocket is `/ws` or `/invocations_ws`, else its only one. `GET /ping` says whether it works in the background, as in
AgentCore's contract.
Source: https://asgi.readthedocs.io/en/latest/specs/www.html.
"""

import asyncio
import gc
import inspect
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from nexus.core import errors
from nexus.worker import runs
from nexus.worker.adapters import asgi_answers, asgi_lifespan, prompts, versions

_APPS = ("starlette.applications.Starlette", "litestar.app.Litestar", "quart.app.Quart", "django.core.handlers.asgi.ASGIHandler")
_AGENTCORE = "bedrock_agentcore.runtime.app.BedrockAgentCoreApp"
_AGENTCORE_FORMAT = "RequestContextFormatter"  # writes lines that the host writes too, with run and session
_PARAMETERS = ["scope", "receive", "send"]
_PATHS = ("/run", "/invocations", "/responses", "/invoke", "/chat", "/")
_SOCKETS = ("/ws", "/invocations_ws")
_PING = "/ping"
_PING_S = 1.0
_SETTLE_S = 0.5  # what an app left open hangs on a generator that nobody closes: it closes when that is collected


def matches(target: object, names: tuple[str, ...]) -> bool:
    if isinstance(target, type) or not callable(target):
        return False
    return any(name in _APPS for name in names) or _takes_asgi(target)


def adapt(target: Any) -> "AsgiAdapter":
    if any(f"{entry.__module__}.{entry.__qualname__}" == _AGENTCORE for entry in type(target).__mro__):
        versions.check("bedrock-agentcore", tried="1.25")
        logger = target.logger
        logger.handlers[:] = [entry for entry in logger.handlers if type(entry.formatter).__name__ != _AGENTCORE_FORMAT]
        return AsgiAdapter(target, name="agentcore")
    return AsgiAdapter(target)


class AsgiAdapter:
    uses_state = False

    def __init__(self, app: Any, *, name: str = "asgi") -> None:
        self.name = name
        self._app = app
        has_routes = hasattr(app, "routes")
        self._path = _choose(sorted(set(_paths(app, "POST")))) if has_routes else "/"
        self._pings = has_routes and _PING in _paths(app, "GET")
        sockets = _socket_paths(app) if has_routes else []
        self._socket_path = next((path for path in _SOCKETS if path in sockets), sockets[0] if len(sockets) == 1 else None)
        self._lifespan = asgi_lifespan.Lifespan(app)

    @property
    def takes_sockets(self) -> bool:
        return self._socket_path is not None

    async def run(self, run: runs.Run) -> Any:
        return (await self._post(run, self._body(run))).output()

    async def socket(self, run: runs.Run, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Hand a WebSocket to the app, which accepts it, talks, and closes it."""
        await self._lifespan.start()
        assert self._socket_path is not None
        given = [(name, value) for name, value in scope["headers"] if not name.startswith(b"nexus-")]
        headers = [*given, *_encoded(self._headers(run))]
        path = {"path": self._socket_path, "raw_path": self._socket_path.encode(), "root_path": "", "headers": headers}
        await self._app({**scope, **path, "state": dict(self._lifespan.state)}, receive, send)

    async def busy(self) -> bool:
        """Whether the app says that it works without a run: `HealthyBusy` at `GET /ping`. An app that cannot be asked is not."""
        if not self._pings or not self._lifespan.started:
            return False
        answer = asgi_answers.Answer(_NOBODY, _PING)
        try:
            async with asyncio.timeout(_PING_S):
                await self._app(self._scope("GET", _PING, {"host": "agent"}), _receiver(b""), answer.take)
        except Exception:  # noqa: BLE001 - whatever an app raises, a time-out too
            return False
        said = answer.json()
        return isinstance(said, dict) and said.get("status") == "HealthyBusy"

    async def aclose(self) -> None:
        await self._lifespan.stop()

    async def _post(self, run: runs.Run, value: Any) -> asgi_answers.Answer:
        await self._lifespan.start()
        body = json.dumps(value).encode()
        answer = asgi_answers.Answer(run, self._path)
        accept = "text/event-stream, application/json" if run.streaming else "application/json, text/event-stream"
        headers = {
            "host": "agent",
            "content-type": "application/json",
            "content-length": str(len(body)),
            "accept": accept,
            **self._headers(run),
        }
        try:
            await self._app(self._scope("POST", self._path, headers, self._query(run)), _receiver(body), answer.take)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(_SETTLE_S, gc.collect)
            raise
        return answer

    def _body(self, run: runs.Run) -> Any:
        given = run.call.input
        if self._path == "/run":
            return {"input": given, "context": dict(run.context)}
        if isinstance(given, dict):
            return given
        if self._path == "/responses":
            return {"input": prompts.messages_of(given) or prompts.text_of(given), "stream": run.streaming}
        return {"prompt" if self._path in ("/invocations", "/invoke") else "input": given}

    def _query(self, run: runs.Run) -> str:
        return ""

    def _headers(self, run: runs.Run) -> dict[str, str]:
        headers = {
            "nexus-run-id": run.run_id,
            "nexus-session-id": run.session_id,
            "x-amzn-bedrock-agentcore-runtime-session-id": run.session_id,
            "x-amzn-bedrock-agentcore-runtime-request-id": run.run_id,
        }
        return headers | ({"traceparent": run.traceparent} if run.traceparent else {})

    def _scope(self, method: str, path: str, headers: Mapping[str, str], query: str = "") -> MutableMapping[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": _encoded(headers),
            "client": ("127.0.0.1", 0),
            "server": ("agent", 80),
            "state": dict(self._lifespan.state),
        }


class _Nobody:
    """Where an answer is read that belongs to no run."""

    streaming = False

    async def room(self) -> None:
        return


_NOBODY: Any = _Nobody()


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]


def _receiver(body: bytes) -> Callable[[], Awaitable[dict[str, Any]]]:
    first = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in first:
            return message
        await asyncio.Event().wait()  # the client leaves by cancelling the run
        return {"type": "http.disconnect"}

    return receive


def _takes_asgi(target: Any) -> bool:
    try:
        return list(inspect.signature(target).parameters) == _PARAMETERS
    except (TypeError, ValueError):
        return False


def _paths(app: Any, method: str) -> Iterable[str]:
    for route in app.routes:
        path = getattr(route, "path", None)
        if isinstance(path, str) and "{" not in path and method in (getattr(route, "methods", None) or ()):
            yield path


def _socket_paths(app: Any) -> list[str]:
    routes = (route for route in app.routes if type(route).__name__.endswith("WebSocketRoute"))
    return [route.path for route in routes if "{" not in route.path]


def _choose(paths: list[str]) -> str:
    found = next((path for path in _PATHS if path in paths), None)
    if found is None and len(paths) == 1:
        found = paths[0]
    if found is None:
        raise errors.AgentFailed(
            "the app has no route that takes runs",
            code="entrypoint.no_route",
            phase="import",
            cause=f"it takes POST at {', '.join(paths)}" if paths else "it takes POST nowhere",
            next_step=f"add one of POST {', '.join(_PATHS)}",
        )
    return found
