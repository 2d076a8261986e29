"""The worker's HTTP face: a plain ASGI app with `POST /run`, `GET /health` and `GET /status`.

`/agents/{name}/run` and `/agents/{name}/stream` are accepted too, so that a worker can be talked to without a gateway.
"""

import asyncio
import itertools
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from nexus.core import errors, ids, names
from nexus.kit import guard
from nexus.wire import problem
from nexus.wire import runs as wire
from nexus.worker import bodies, execution, settings, sockets, vitals
from nexus.worker import runs as one_run

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_LOG = logging.getLogger("nexus.worker")
_JSON = [(b"content-type", b"application/json")]
_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
_WATCH_AFTER_S = 0.02
_HEARTBEAT_S = 15.0
_MOST_SHOWN = 16


class ClientGone(Exception):
    """The client closed while its body was being read."""


class App:
    """Answers one request at a time for each connection; any number of connections."""

    def __init__(self, config: settings.Settings, executor: execution.Executor) -> None:
        self._config, self._executor = config, executor
        self._vitals = vitals.Vitals()
        self._watchers: set[asyncio.Task[None]] = set()
        self._sockets = sockets.Sockets(config, executor)
        self.phase = "ready"

    @property
    def takes_sockets(self) -> bool:
        return self._sockets.wanted

    async def close(self) -> None:
        """After the last run: what an app has to end by itself."""
        await self._sockets.close()

    def rebind(self, config: settings.Settings) -> None:
        """Other settings from now on; nothing was served under the old ones."""
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            await self._route(scope, receive, send)
        except errors.NexusError as error:
            await _send_problem(send, error)
        except ClientGone:
            return

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path == "/run" or (path.startswith("/agents/") and path.endswith(("/run", "/stream"))):
            _only(method, "POST", path)
            await self._run(scope, receive, send)
        elif path in ("/health", self._config.health_path):
            _only(method, "GET", path)
            report = self._vitals.read(runs=self._executor.finished)
            await _send(send, 200, _JSON, json.dumps(report | await self._active()).encode())
        elif path == "/status":
            _only(method, "GET", path)
            await _send(send, 200, _JSON, json.dumps(self._status() | await self._active()).encode())
        else:
            raise errors.NotFound(
                f"an agent has no {path[:200]}", code="route.not_found", next_step="POST /run, GET /health or GET /status"
            )

    def _status(self) -> dict[str, Any]:
        return {
            "phase": self.phase,
            "agent": self._config.agent,
            "version": self._config.version,
            "runs": [
                {"run_id": run.run_id, "session_id": run.session_id}
                for run in itertools.islice(self._executor.active.values(), _MOST_SHOWN)
            ],
            "last_activity": self._executor.last_activity,
            "adapter": self._executor.adapter.name,
        }

    async def _active(self) -> dict[str, Any]:
        """`background`: an app says that it works without a run. That counts as one, so that it is not taken for idle."""
        is_busy = await self._sockets.is_busy()
        return {"active_runs": len(self._executor.active) + is_busy, "background": is_busy}

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            ids_ = {"run_id": _run_id(headers), "session_id": _session_id(headers)}
            if self.phase != "ready":
                raise errors.Unavailable("this instance is stopping", code="instance.stopping")
            await self._sockets.serve(scope, receive, send, **ids_)
        except errors.NexusError as error:
            await send({"type": "websocket.close", "code": 1008, "reason": error.code})

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.phase != "ready":
            raise errors.Unavailable(
                "this instance is stopping", code="instance.stopping", next_step="send the run again", retry_after_s=1.0
            )
        headers = dict(scope["headers"])
        body = await self._read(headers, receive)
        call = bodies.parse_call(body)
        streaming = b"text/event-stream" in headers.get(b"accept", b"") or scope["path"].endswith("/stream")
        run = self._executor.begin(
            call,
            run_id=_run_id(headers),
            session_id=self._own(_session_id(headers)),
            streaming=streaming,
            timeout_s=self._timeout(headers),
            traceparent=headers.get(b"traceparent", b"").decode("latin-1"),
            attempt=_attempt(headers),
        )
        run.user_id = _user_id(headers)
        loop = asyncio.get_running_loop()
        watchers: list[asyncio.Task[None]] = []
        timers = [
            loop.call_later(_WATCH_AFTER_S, lambda: watchers.append(self._watch(receive, run))),
            loop.call_at(loop.time() + run.timeout_s, run.stop, "timeout"),
        ]
        try:
            await (self._stream(run, send) if streaming else self._answer(run, send))
        finally:
            for timer in timers:
                timer.cancel()
            for watcher in watchers:
                watcher.cancel()
            run.stop("client")

    def _own(self, session_id: str) -> str:
        """The id itself; where each session has a worker of its own, no other one's."""
        if self._config.session_id not in (None, session_id):
            raise errors.Conflict(
                "this worker serves another session",
                code="session.wrong_worker",
                next_step="ask the supervisor where the session lives (POST /sessions)",
            )
        return session_id

    def _watch(self, receive: Receive, run: one_run.Run) -> asyncio.Task[None]:
        return guard.spawn(_watch(receive, run), name=f"watch {run.run_id}", owner=self._watchers)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        limit = self._config.max_body
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > limit:
            raise _too_large(limit)
        message = await receive()
        if not message.get("more_body") and message["type"] == "http.request":
            body = message.get("body", b"")
            if len(body) > limit:
                raise _too_large(limit)
            return bytes(body)
        whole = bytearray()
        while message["type"] == "http.request":
            whole += message.get("body", b"")
            if len(whole) > limit:
                raise _too_large(limit)
            if not message.get("more_body"):
                return bytes(whole)
            message = await receive()
        raise ClientGone

    def _timeout(self, headers: dict[bytes, bytes]) -> float:
        longest = self._config.run_timeout_s
        deadline = headers.get(b"nexus-deadline", b"")
        if deadline.isdigit() and len(deadline) < 16:
            return max(0.0, min(longest, int(deadline) / 1000 - time.time()))
        return longest

    async def _answer(self, run: one_run.Run, send: Send) -> None:
        outcome = await run.done
        if outcome.asks:
            raise errors.Conflict("the run waits for a person", code="ask.waiting", next_step="follow the task's events")
        if outcome.error is not None:
            await _send_problem(send, outcome.error, run_id=run.run_id, more=_used(run))
            return
        await _send(send, 200, [*_JSON, *_used(run)], _result(outcome, run).encode())

    async def _stream(self, run: one_run.Run, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
        started = {"run_id": run.run_id, "session_id": run.session_id, "version": self._config.version}
        number = 1
        await _send_piece(send, _event(number, wire.RUN_STARTED, json.dumps(started)))
        assert run.wake is not None
        while True:
            if not run.done.done():
                await _wait(run.wake)
            run.wake.clear()
            ended = run.done.done()
            pieces = []
            for name, data in run.take_events():
                number += 1
                pieces.append(_event(number, name, data))
            if ended:
                break
            await _send_piece(send, "".join(pieces) or ": still here\n\n")
        for name, data in _last(run, run.done.result()):
            number += 1
            pieces.append(_event(number, name, data))
        await send({"type": "http.response.body", "body": "".join(pieces).encode(), "more_body": False})


async def _wait(event: asyncio.Event) -> None:
    """Until the event is set, or it is time for a sign of life."""
    if event.is_set():
        return
    try:
        async with asyncio.timeout(_HEARTBEAT_S):
            await event.wait()
    except TimeoutError:
        return


async def _watch(receive: Receive, run: one_run.Run) -> None:
    """Stop the run when its client leaves. Begun only for runs that last a moment."""
    while (await receive())["type"] != "http.disconnect":
        pass
    run.stop("client")


def _event(number: int, name: str, data: str) -> str:
    return f"id: {number}\nevent: {name}\ndata: {data}\n\n"


def _last(run: one_run.Run, outcome: one_run.Outcome) -> list[tuple[str, str]]:
    """The closing events: usage where there is any, then exactly one terminal event."""
    if outcome.asks:
        return [(wire.RUN_WAITING, json.dumps({"asks": [dict(ask) for ask in outcome.asks]}))]
    if outcome.error is not None:
        name = wire.RUN_CANCELLED if outcome.cancelled else wire.RUN_FAILED
        return [(name, json.dumps(problem.render(outcome.error, run_id=run.run_id)))]
    metadata = outcome.metadata or {}
    events = []
    if metadata.get("tokens_used"):
        usage = {name: metadata[name] for name in ("input_tokens", "output_tokens")}
        events.append((wire.USAGE, json.dumps(usage)))
    return [*events, (wire.RUN_COMPLETED, _result(outcome, run))]


def _result(outcome: one_run.Outcome, run: one_run.Run) -> str:
    metadata = outcome.metadata if run.cpu_s is None else {**(outcome.metadata or {}), "cpu_s": round(run.cpu_s, 6)}
    return f'{{"output":{outcome.output},"metadata":{json.dumps(metadata)}}}'


def _used(run: one_run.Run) -> list[tuple[bytes, bytes]]:
    return [] if run.cpu_s is None else [(b"nexus-usage", f"cpu_s={run.cpu_s:.6f}".encode())]


def _attempt(headers: dict[bytes, bytes]) -> int:
    given = headers.get(b"nexus-attempt", b"")
    return int(given) if given.isdigit() and len(given) < 8 else 1


def _user_id(headers: dict[bytes, bytes]) -> str:
    """Whom the run is for: the user its caller named, else the caller."""
    return (headers.get(b"nexus-user-id") or headers.get(b"nexus-principal") or b"").decode("latin-1")


def _run_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"nexus-run-id", b"").decode("latin-1")
    return given if given and names.is_session_id(given) else ids.new_id(ids.RUN)


def _session_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"nexus-session-id", b"").decode("latin-1")
    if not given:
        return ids.new_id(ids.SESSION)
    if not names.is_session_id(given):
        raise errors.Invalid(
            "Nexus-Session-Id is not a session id",
            code="session.invalid_id",
            cause="it may have 1 to 256 of A-Z a-z 0-9 . _ : @ -",
            next_step="send another id, or none to begin a session",
        )
    return given


def _only(method: str, allowed: str, path: str) -> None:
    if method != allowed:
        raise errors.Invalid(f"{path} takes {allowed}, not {method}", code="method.not_allowed", next_step=f"use {allowed}")


def _too_large(limit: int) -> errors.Invalid:
    return errors.Invalid(
        f"the body is larger than {limit} bytes", code="body.too_large", next_step="send less, or a reference to the data"
    )


async def _send_problem(
    send: Send, error: errors.NexusError, *, run_id: str | None = None, more: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    headers = [
        *more,
        (b"content-type", problem.CONTENT_TYPE.encode()),
        (b"nexus-error-code", error.code.encode("ascii", "replace")),
    ]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
    if error.code in ("body.too_large", "instance.stopping"):
        headers.append((b"connection", b"close"))
    await _send(send, problem.status_of(error), headers, problem.encode(error, run_id=run_id))


async def _send(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def _send_piece(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
