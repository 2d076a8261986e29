"""A small host on a real socket that speaks the contract from memory: what the client and the CLI are tried against.

It keeps the wire honest (status codes, problems, SSE, JSON lines) and runs nothing. Every request is recorded.
"""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import uvicorn

from nexus.core import errors
from nexus.kit import sse
from nexus.wire import archive, problem, project_file

KEY = "nxk_test"
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class SpeakingHost:
    """State and scripts. `break_after` cuts event streams after that many events, once for each count in it."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    agents: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    break_after: list[int] = field(default_factory=list)
    rollout_problem: errors.NexusError | None = None
    stream_left: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        """Forget everything but the address."""
        for mutable in (self.requests, self.agents, self.versions, self.packages, self.tasks, self.secrets, self.break_after):
            mutable.clear()  # type: ignore[attr-defined]
        self.rollout_problem = None
        self.stream_left.clear()

    def last(self, path: str) -> Request:
        return next(request for request in reversed(self.requests) if request.path == path)


def _deployment(host: SpeakingHost, name: str, environment: str) -> dict[str, Any]:
    return next(entry for entry in host.agents[name]["deployments"] if entry["environment"] == environment)


def _new_deployment(host: SpeakingHost, params: dict[str, Any], version: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"dep_{params['agent']}_{params['environment']}", "agent": params["agent"], "environment": params["environment"],
        "phase": "rolling", "revision": 1, "version": version["version"], "version_id": version["id"],
        "replicas": params.get("replicas") or 1, "ready": 0, "cpu": params.get("cpu"), "memory": params.get("memory"),
        "autoscale": {"enabled": False, "min_replicas": 1, "max_replicas": 1}, "url": f"{host.url}/agents/{params['agent']}/run",
        "instances": [{"id": "ins_1", "phase": "ready", "version": version["version"], "memory_bytes": 50_000_000, "pid": 42}],
        "problem": None, "updated_at": 1.0,
    }  # fmt: skip


class App:
    def __init__(self, host: SpeakingHost) -> None:
        self.host = host
        self.routes: list[tuple[str, str, Callable[..., Any]]] = [
            ("POST", r"/agents/([^/]+)/run", self.run),
            ("POST", r"/agents/([^/]+)/stream", self.stream),
            ("POST", r"/agents/([^/]+)/tasks", self.submit),
            ("GET", r"/tasks", self.list_tasks),
            ("GET", r"/tasks/([^/]+)", self.task),
            ("GET", r"/tasks/([^/]+)/events", self.task_events),
            ("POST", r"/tasks/([^/]+)/cancel", self.cancel),
            ("POST", r"/v1/agents/([^/]+)/versions", self.upload),
            ("GET", r"/v1/agents/([^/]+)/versions", self.list_versions),
            ("POST", r"/v1/deployments", self.deploy),
            ("GET", r"/v1/deployments/([^/]+)", self.deployment),
            ("GET", r"/v1/deployments/([^/]+)/events", self.rollout),
            ("GET", r"/v1/agents", lambda request: list(self.host.agents.values())),
            ("GET", r"/v1/agents/([^/]+)", self.show),
            ("DELETE", r"/v1/agents/([^/]+)", self.delete),
            ("GET", r"/v1/agents/([^/]+)/history", self.history),
            ("POST", r"/v1/agents/([^/]+)/rollback", self.change),
            ("POST", r"/v1/agents/([^/]+)/scale", self.change),
            ("GET", r"/v1/agents/([^/]+)/logs", self.logs),
            ("GET", r"/v1/agents/([^/]+)/secrets", self.list_secrets),
            ("PUT", r"/v1/agents/([^/]+)/secrets/([^/]+)", self.set_secret),
            ("DELETE", r"/v1/agents/([^/]+)/secrets/([^/]+)", self.delete_secret),
            ("POST", r"/v1/keys", self.create_key),
            ("GET", r"/v1/keys", lambda request: [{"id": "key_1", "name": "one", "tenant": "default", "roles": ["admin"]}]),
            ("DELETE", r"/v1/keys/([^/]+)", lambda request, key: None),
            ("POST", r"/v1/tenants", lambda request: {"name": request.json["name"]}),
            ("GET", r"/v1/tenants", lambda request: [{"name": "default"}]),
            ("GET", r"/v1/whoami", lambda request: {"id": "key_1", "tenant": "default", "roles": ["admin"]}),
            ("GET", r"/metrics", self.metrics),
            ("GET", r"/html", lambda request: (502, b"<h1>Bad Gateway</h1>", "text/html")),
        ]

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        request = Request(
            scope["method"],
            scope["raw_path"].decode(),
            {name: values[-1] for name, values in parse_qs(scope["query_string"].decode()).items()},
            {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]},
            body,
        )
        self.host.requests.append(request)
        try:
            answering = asyncio.create_task(self._answer(request, send))
            leaving = asyncio.create_task(receive())
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                self.host.stream_left.set()
                answering.cancel()
            leaving.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            if not answering.cancelled():
                answering.result()
        except errors.NexusError as error:
            await self._send(send, problem.status_of(error), problem.encode(error), problem.CONTENT_TYPE)

    async def _answer(self, request: Request, send: Send) -> None:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            raise errors.Unauthenticated("no such key", next_step="nexus login")
        for method, pattern, route in self.routes:
            if method == request.method and (match := re.fullmatch(pattern, request.path)):
                answer = route(request, *match.groups())
                break
        else:
            raise errors.NotFound(f"no route {request.path}", code="route.not_found", next_step="look at the docs")
        if isinstance(answer, AsyncIterator):
            await self._stream(answer, send)
        elif isinstance(answer, tuple):
            await self._send(send, *answer)
        elif answer is None:
            await self._send(send, 204, b"", "text/plain")
        else:
            await self._send(send, 200, json.dumps(answer).encode(), "application/json")

    async def _stream(self, events: AsyncIterator[bytes], send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        most, sent = self.host.break_after.pop(0) if self.host.break_after else None, 0
        async for event in events:
            if sent == most:
                raise ConnectionResetError("cut on purpose")
            await send({"type": "http.response.body", "body": event, "more_body": True})
            sent += 1
        await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Send, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        listed = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        listed += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        await send({"type": "http.response.start", "status": status, "headers": listed})
        await send({"type": "http.response.body", "body": body})

    def _known(self, name: str) -> dict[str, Any]:
        if name not in self.host.agents:
            raise errors.NotFound(f"there is no agent {name!r}", code="agent.not_found", next_step="nexus ai agent list")
        return self.host.agents[name]

    def run(self, request: Request, name: str) -> Any:
        self._known(name)
        given = request.json
        if given["input"] == "fail":
            raise errors.AgentFailed(
                "the agent raised",
                cause="ValueError: no",
                phase="run",
                next_step="nexus ai agent logs",
                log_tail=["a", "\x1b[31mb"],
            )
        if given["input"] == "busy":
            raise errors.Exhausted("too many runs", code="limit.rate", retry_after_s=3.0, next_step="wait")
        if given["input"] == "proxy":
            return 502, b"<h1>Bad Gateway</h1>", "text/html"
        answer = {"output": f"echo {given['input']}", "metadata": {"tokens_used": 12, "context": given["context"]}}
        session = request.headers.get("nexus-session-id", "ses_minted")
        told = {"Nexus-Run-Id": "run_1", "Nexus-Session-Id": session, "Nexus-Version": "1.0.0"}
        return 200, json.dumps(answer).encode(), "application/json", told

    async def stream(self, request: Request, name: str) -> AsyncIterator[bytes]:
        given = request.json["input"]
        yield _event(1, "run.started", {"run_id": "run_1"})
        if given == "fail":
            yield _event(2, "run.failed", problem.render(errors.AgentFailed("the agent raised", cause="ValueError: no")))
            return
        for number, word in enumerate([] if given == "at once" else str(given).split(), start=2):
            yield _event(number, "message.delta", {"text": word + " "})
        if given == "endless":
            await asyncio.sleep(3600)
        if given == "cut":
            return
        yield _event(99, "run.completed", {"output": str(given) + " ", "metadata": {"tokens_used": 7}})

    def submit(self, request: Request, name: str) -> Any:
        self._known(name)
        task = {
            "task_id": "task_abc123", "status": "pending", "agent": name, "environment": "production", "progress": None,
            "attempt": 0, "created_at": 1.0, "webhook": None, "input": request.json["input"], "seen": 0,
        }  # fmt: skip
        self.host.tasks["task_abc123"] = task
        return 202, json.dumps(task).encode(), "application/json"

    def task(self, request: Request, task_id: str) -> Any:
        task = self._task(task_id)
        task["seen"] += 1
        if task["status"] == "cancelled":
            return task
        if task["seen"] == 1:
            return task | {"status": "running", "progress": 45.0}
        if task["input"] == "fail":
            failure = problem.render(errors.AgentFailed("it broke", cause="ValueError: no", next_step="read the logs"))
            return task | {"status": "failed", "error": failure}
        return task | {"status": "completed", "progress": 100.0, "output": "report", "metadata": {"tokens_used": 3}}

    def _task(self, task_id: str) -> dict[str, Any]:
        if task_id not in self.host.tasks:
            raise errors.NotFound(f"there is no task {task_id}", code="task.not_found", next_step="nexus ai agent task list")
        return self.host.tasks[task_id]

    def list_tasks(self, request: Request) -> Any:
        return {"items": list(self.host.tasks.values()), "next": None}

    async def task_events(self, request: Request, task_id: str) -> AsyncIterator[bytes]:
        after = int(request.headers.get("last-event-id", "0"))
        told = [("run.started", {}), ("progress", {"percent": 50, "message": "half"}), ("message.delta", {"text": "rep"})]
        for number, (name, data) in enumerate([*told, ("run.completed", {"output": "report"})], start=1):
            if number > after:
                yield _event(number, name, data)

    def cancel(self, request: Request, task_id: str) -> Any:
        self._task(task_id)["status"] = "cancelled"
        return self._task(task_id)

    def upload(self, request: Request, name: str) -> Any:
        text = archive.read_file(request.body, "config.yaml")
        assert text is not None
        version = project_file.parse_project(text.decode()).version or "0.0.1"
        digest = archive.digest_of(request.body)
        for known in self.host.versions.values():
            if (known["agent"], known["version"]) == (name, version) and known["digest"] != digest:
                raise errors.Conflict(
                    f"version {version} of {name} has other content",
                    code="version.content_differs",
                    next_step="raise version in config.yaml",
                )
        view = {
            "id": f"ver_{digest[:6]}", "agent": name, "version": version, "digest": digest, "entrypoint": "agent:agent",
            "size_bytes": len(request.body), "created_at": 1.0, "created": True,
        }  # fmt: skip
        self.host.versions[view["id"]] = view
        self.host.packages[view["id"]] = request.body
        agent = self.host.agents.setdefault(name, {"name": name, "tenant": "default", "created_at": 1.0, "deployments": []})
        agent["latest_version"] = version
        return 201, json.dumps(view).encode(), "application/json"

    def list_versions(self, request: Request, name: str) -> Any:
        self._known(name)
        found = [one for one in reversed(self.host.versions.values()) if one["agent"] == name]
        return {"items": found, "next": None}

    def deploy(self, request: Request) -> Any:
        params = request.json
        if params["environment"] not in ("development", "staging", "production"):
            raise errors.NotFound(
                f"there is no environment {params['environment']!r}", code="environment.unknown", next_step="pass another --env"
            )
        version = self.host.versions[params["version_id"]]
        view = _new_deployment(self.host, params, version)
        agent = self.host.agents[params["agent"]]
        agent["deployments"] = [entry for entry in agent["deployments"] if entry["id"] != view["id"]] + [view]
        return 202, json.dumps(view).encode(), "application/json"

    def deployment(self, request: Request, deployment_id: str) -> Any:
        return next(one for agent in self.host.agents.values() for one in agent["deployments"] if one["id"] == deployment_id)

    async def rollout(self, request: Request, deployment_id: str) -> AsyncIterator[bytes]:
        view = self.deployment(request, deployment_id)
        steps: list[dict[str, Any]] = [
            {"phase": "building", "message": "building the environment", "step": "installing", "detail": "12 packages"},
            {"phase": "starting", "message": "starting", "instance_id": "ins_1"},
        ]
        if self.host.rollout_problem is not None:
            view["phase"] = "failed"
            steps.append(
                {"phase": "failed", "message": "failed", "done": True, "problem": problem.render(self.host.rollout_problem)}
            )
        else:
            view |= {"phase": "active", "ready": view["replicas"]}
            steps.append({"phase": "active", "message": "serving", "done": True, "deployment": view})
        after = int(request.headers.get("last-event-id", "0"))
        for number, step in enumerate(steps, start=1):
            if number > after:
                yield _event(number, "rollout", {"at": float(number), "revision": 1, **step})

    def show(self, request: Request, name: str) -> Any:
        return self._known(name)

    def delete(self, request: Request, name: str) -> None:
        self._known(name)
        del self.host.agents[name]

    def history(self, request: Request, name: str) -> Any:
        self._known(name)
        return [
            {
                "number": 2, "version": "1.2.3", "version_id": "ver_2", "phase": "active", "reason": "deploy", "replicas": 2,
                "created_at": 1700000000.0, "created_by": "key_1", "environment": "production",
            },
            {
                "number": 1, "version": "1.0.0", "version_id": "ver_1", "phase": "superseded", "reason": "deploy", "replicas": 2,
                "created_at": 1690000000.0, "created_by": "key_1", "environment": "production",
            },
        ]  # fmt: skip

    def change(self, request: Request, name: str) -> Any:
        agent = self._known(name)
        if not agent["deployments"]:
            raise errors.Conflict(f"{name} has no history", code="rollback.no_history", next_step="deploy it first")
        view = agent["deployments"][0]
        if "replicas" in request.json:
            view["replicas"] = view["ready"] = request.json["replicas"]
        if "autoscale" in request.json:
            view["autoscale"]["enabled"] = request.json["autoscale"]
        return view

    async def logs(self, request: Request, name: str) -> AsyncIterator[bytes]:
        for level, message in (("info", "hello"), ("error", "\x1b]0;evil\x07bad [bold]news[/bold]")):
            if request.query.get("level") in (None, level):
                line = {"at": 1700000000.0, "level": level, "message": message, "run_id": "run_1", "session_id": "s1"}
                yield json.dumps(line).encode() + b"\n"

    def list_secrets(self, request: Request, name: str) -> Any:
        return [
            {"name": key, "fingerprint": "ab12", "version": 1, "updated_at": 1.0, "updated_by": "key_1"}
            for key in self.host.secrets.get(name, {})
        ]

    def set_secret(self, request: Request, name: str, key: str) -> Any:
        self.host.secrets.setdefault(name, {})[key] = request.json["value"]
        return {"name": key, "fingerprint": "ab12", "version": 1, "updated_at": 1.0, "updated_by": "key_1"}

    def delete_secret(self, request: Request, name: str, key: str) -> None:
        if key not in self.host.secrets.get(name, {}):
            raise errors.NotFound(f"{name} has no secret {key}", code="secret.not_found", next_step="list them")
        del self.host.secrets[name][key]

    def create_key(self, request: Request) -> Any:
        return {"id": "key_2", "tenant": "default", "created_at": 1.0, "key": "nxk_fresh", **request.json}

    def metrics(self, request: Request) -> Any:
        text = (
            "# HELP agent_requests_total Requests\n# TYPE agent_requests_total counter\n"
            'agent_requests_total{agent="my-agent",environment="production",status="200"} 3.0\n'
            'agent_requests_total{agent="other",environment="production",status="200"} 9.0\n'
            'agent_latency_seconds_sum{agent="my-agent"} 1.5\nagent_latency_seconds_count{agent="my-agent"} 3\n'
            'agent_tokens_total{agent="my-agent",type="input"} 40\n'
        )
        return 200, text.encode(), "text/plain; version=0.0.4"


def _event(number: int, name: str, data: dict[str, Any]) -> bytes:
    return sse.encode(sse.Event(data=json.dumps(data), name=name, id=str(number)))


@contextmanager
def speaking_host() -> Iterator[SpeakingHost]:
    """A host that answers on a free loopback port until the context ends."""
    host = SpeakingHost()
    config = uvicorn.Config(App(host), host="127.0.0.1", port=0, log_level="critical", lifespan="on", timeout_graceful_shutdown=1)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    ready = threading.Event()
    started = server.startup

    async def startup(*arguments: Any, **named: Any) -> None:
        await started(*arguments, **named)
        host.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        ready.set()

    server.startup = startup  # type: ignore[method-assign]
    thread.start()
    try:
        assert ready.wait(20), "the host did not start"
        yield host
    finally:
        server.should_exit = True
        thread.join(20)
