"""Any ASGI app (FastAPI, Starlette, `BedrockAgentCoreApp` …): a run is one POST to the route that takes runs, in the process.

The route is `/run`, `/invocations`, `/responses`, `/invoke`, `/chat` or `/`, the first the app has, else its only POST route.
Sources: https://asgi.readthedocs.io/en/latest/specs/www.html; AgentCore's contract (`POST /invocations`, session in a header).
"""

import asyncio
import inspect
import json
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from nexus.core import errors
from nexus.kit import guard, sse
from nexus.worker import runs
from nexus.worker.adapters import contract, prompts, tell

_APPS = ("starlette.applications.Starlette", "litestar.app.Litestar", "quart.app.Quart", "django.core.handlers.asgi.ASGIHandler")
_PARAMETERS = ["scope", "receive", "send"]
_PATHS = ("/run", "/invocations", "/responses", "/invoke", "/chat", "/")
_START_S = 60.0
_LONGEST = 64 * 1024 * 1024


def matches(target: object, names: tuple[str, ...]) -> bool:
    if isinstance(target, type) or not callable(target):
        return False
    return any(name in _APPS for name in names) or _takes_asgi(target)


def adapt(target: Any) -> "AsgiAdapter":
    return AsgiAdapter(target)


class AsgiAdapter:
    name = "asgi"
    uses_state = False

    def __init__(self, app: Any) -> None:
        self._app = app
        self._path = _choose(sorted(set(_post_paths(app)))) if hasattr(app, "routes") else "/"
        self._lifespan: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = asyncio.Event()
        self._refusal: str | None = None

    async def run(self, run: runs.Run) -> Any:
        await self._start()
        body = json.dumps(self._body(run)).encode()
        answer = _Answer(run, self._path)
        await self._app(self._scope(run, body), _receiver(body), answer.take)
        return answer.output()

    async def _start(self) -> None:
        """The app's own start-up, once, before its first run. Raises `AgentFailed` when the app says that it failed."""
        if self._lifespan is None:
            self._lifespan = guard.spawn(self._live(), name="lifespan", owner=self._tasks)
        async with asyncio.timeout(_START_S):
            await self._started.wait()
        if self._refusal is not None:
            raise errors.AgentFailed("the app did not start", code="agent.failed", phase="run", cause=self._refusal)

    async def _live(self) -> None:
        asked = asyncio.Event()
        messages = iter([{"type": "lifespan.startup"}])

        async def receive() -> dict[str, Any]:
            for message in messages:
                return message
            await asked.wait()
            return {"type": "lifespan.shutdown"}

        async def send(message: Mapping[str, Any]) -> None:
            if message["type"] == "lifespan.startup.failed":
                self._refusal = str(message.get("message") or "its start-up failed")
            self._started.set()

        try:
            await self._app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
        except Exception:  # noqa: BLE001 - an app that knows no lifespan may raise anything; the protocol says to go on
            self._started.set()
        finally:
            self._started.set()

    def _body(self, run: runs.Run) -> Any:
        given = run.call.input
        if self._path == "/run":
            return {"input": given, "context": dict(run.context)}
        if isinstance(given, dict):
            return given
        if self._path == "/responses":
            return {"input": prompts.messages_of(given) or prompts.text_of(given), "stream": run.streaming}
        return {"prompt" if self._path in ("/invocations", "/invoke") else "input": given}

    def _scope(self, run: runs.Run, body: bytes) -> MutableMapping[str, Any]:
        accept = "text/event-stream, application/json" if run.streaming else "application/json, text/event-stream"
        headers = {
            "host": "agent",
            "content-type": "application/json",
            "content-length": str(len(body)),
            "accept": accept,
            "nexus-run-id": run.run_id,
            "nexus-session-id": run.session_id,
            "x-amzn-bedrock-agentcore-runtime-session-id": run.session_id,
            "x-amzn-bedrock-agentcore-runtime-request-id": run.run_id,
        }
        if run.traceparent:
            headers["traceparent"] = run.traceparent
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
            "client": ("127.0.0.1", 0),
            "server": ("agent", 80),
            "state": {},
        }


class _Answer:
    """The app's response, read as it comes: events and plain text stream, JSON is the output."""

    def __init__(self, run: runs.Run, path: str) -> None:
        self._run, self._path = run, path
        self._status, self._kind = 0, ""
        self._whole = bytearray()
        self._events = sse.Decoder()
        self._collected = contract.Collector(run)
        self._final: Any = None

    async def take(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = {bytes(name).lower(): bytes(value) for name, value in message.get("headers", ())}
            self._kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip()
        elif message["type"] == "http.response.body":
            piece = message.get("body", b"")
            if self._kind == "text/event-stream" and self._status < 400:
                for event in self._events.feed(piece):
                    self._event(event.data)
            else:
                self._whole += piece
                if len(self._whole) > _LONGEST:
                    raise errors.AgentFailed("the app's answer is too large", code="agent.bad_response", phase="run")
            await self._run.room()

    def output(self) -> Any:
        text = self._whole.decode("utf-8", "replace")
        if not 200 <= self._status < 300:
            raise errors.AgentFailed(
                "the agent failed",
                code="agent.failed",
                phase="run",
                cause=f"POST {self._path} answered {self._status}: {text[:1000]}",
                next_step="look at the agent's log",
            )
        if self._kind == "text/event-stream":
            return self._collected.output(self._final)
        if self._kind != "application/json" and not self._kind.endswith("+json"):
            tell.delta(self._run, text)
            return text
        value = json.loads(text) if text else None
        return value["output"] if self._path == "/run" and isinstance(value, dict) and "output" in value else value

    def _event(self, data: str) -> None:
        if data == "[DONE]":
            return
        try:
            value = json.loads(data)
        except ValueError:
            value = data
        if isinstance(value, dict) and "error" in value and "error_type" in value:
            raise errors.AgentFailed(
                "the agent failed", code="agent.failed", phase="run", cause=f"{value['error_type']}: {value['error']}"
            )
        if isinstance(value, dict) and str(value.get("type", "")).startswith("response."):
            if value["type"] == "response.output_text.delta":
                self._collected.take(value.get("delta"))
            return
        self._collected.take(value)


def _receiver(body: bytes) -> Any:
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


def _post_paths(app: Any) -> Iterator[str]:
    for route in app.routes:
        path = getattr(route, "path", None)
        if isinstance(path, str) and "{" not in path and "POST" in (getattr(route, "methods", None) or ()):
            yield path


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
