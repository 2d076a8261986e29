"""The routes of tasks, runs, metrics and doors over the composed rooms: real database, real dispatcher, real app."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import rig as rigs

from nexus.api import app as api_app
from nexus.api import services as api_services
from nexus.apps import control_tasks
from nexus.core import deployments, errors, principals
from nexus.kit import home
from nexus.stores.postgres import engine as engines

OWNER = deployments.InstanceOwner(
    instance_id="ins_1", tenant="default", agent="echo", environment="production", deployment_id="dep_1", version="1"
)
ROLES = {"dev": principals.Role.DEVELOPER, "runner": principals.Role.RUNNER, "viewer": principals.Role.VIEWER}


class Identity:
    """Keys of this test: `<tenant>.<role>`; the instance token is `instance`."""

    async def authenticate(self, key: str) -> principals.Principal:
        tenant, _, role = key.partition(".")
        if role not in ROLES:
            raise errors.Unauthenticated("no", code="auth.invalid_key")
        return principals.Principal(id=f"key_{tenant}_{role}", tenant=tenant, roles=frozenset({ROLES[role]}))

    async def instance_of(self, token: str) -> deployments.InstanceOwner:
        if token != "instance":
            raise errors.Unauthenticated("no", code="auth.invalid_token")
        return OWNER


async def resolve(caller: principals.Principal, agent: str, environment: str | None) -> str:
    if agent != "echo" or caller.tenant != "default":
        raise errors.NotFound("there is no such agent", code="agent.not_found")
    return environment or "production"


class Api:
    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    async def __call__(self, method: str, path: str, key: str = "default.dev", **more: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {key}", **more.pop("headers", {})}
        return await self._client.request(method, path, headers=headers, **more)

    async def finished(self, task_id: str) -> dict[str, Any]:
        async with asyncio.timeout(rigs.PATIENCE_S):
            while True:
                view: dict[str, Any] = (await self("GET", f"/tasks/{task_id}")).json()
                if view["status"] in ("completed", "failed", "cancelled"):
                    return view
                await asyncio.sleep(0.02)


@asynccontextmanager
async def opened(url: str, folder: Path, environ: dict[str, str]) -> AsyncIterator[Api]:
    environment = control_tasks.read_environment(
        environ,
        database_url=url,
        service_token="nxs_test",
        webhook_key=b"k" * 32,
        link_key=b"l" * 32,
        trigger_key=b"t" * 32,
        origin="http://host",
    )
    async with (
        engines.open_engine(url, pool_size=8) as engine,
        control_tasks.run_tasks(
            engine, environment=environment, door_sockets=lambda: [folder / "door-0.sock"], resolve_target=resolve
        ) as parts,
    ):
        names = (
            "tasks",
            "webhooks",
            "schedules",
            "recordings",
            "asks",
            "replays",
            "triggers",
            "telemetry",
            "metrics",
            "traces",
            "runs",
            "sessions",
        )
        services = api_services.Services(
            identity=Identity(),
            hosting=None,
            secrets=None,
            home=home.Home(folder),
            **{name: getattr(parts, name) for name in names},
        )
        transport = httpx2.ASGITransport(api_app.create_app(services))
        async with httpx2.AsyncClient(transport=transport, base_url="http://control") as client:
            yield Api(client)


@pytest.fixture
async def api(postgres_url: str, sockets: Path) -> AsyncIterator[Api]:
    async with opened(postgres_url, sockets, {}) as made:
        yield made


async def test_a_task_from_submission_to_its_events(api: Api, sockets: Path) -> None:
    async with rigs.gateway(sockets / "door-0.sock", rigs.completes):
        answer = await api("POST", "/agents/echo/tasks", json={"input": "hi", "context": {"user_id": "1"}})
        assert answer.status_code == 202
        task = answer.json()
        assert (task["status"], task["environment"], task["task_id"][:5]) == ("pending", "production", "task_")
        done = await api.finished(task["task_id"])
        assert (done["status"], done["output"], done["metadata"]) == ("completed", "hi", {"tokens_used": 3})
    events = await api("GET", f"/tasks/{task['task_id']}/events")
    assert events.headers["content-type"].startswith("text/event-stream")
    assert events.text.startswith("id: 1\nevent: run.started\n")
    assert events.text.endswith("\n\n")
    rest = await api("GET", f"/tasks/{task['task_id']}/events", headers={"Last-Event-ID": "1"})
    assert [line for line in rest.text.splitlines() if line.startswith("id:")] == ["id: 2"]
    listed = (await api("GET", "/tasks?status=completed&agent=echo")).json()
    assert [item["task_id"] for item in listed["items"]] == [task["task_id"]]
    assert (await api("POST", f"/tasks/{task['task_id']}/cancel")).status_code == 409


async def test_headers_of_a_submission_are_heard(api: Api) -> None:
    headers = {"Nexus-Environment": "staging", "Nexus-Session-Id": "s1", "Idempotency-Key": "k"}
    first = (await api("POST", "/agents/echo/tasks", json={"input": 1}, headers=headers)).json()
    again = (await api("POST", "/agents/echo/tasks", json={"input": 1}, headers=headers)).json()
    assert (first["environment"], first["session_id"], again["task_id"]) == ("staging", "s1", first["task_id"])
    cancelled = await api("POST", f"/tasks/{first['task_id']}/cancel")
    assert (cancelled.status_code, (await api.finished(first["task_id"]))["status"]) == (200, "cancelled")


@pytest.mark.parametrize(
    ("method", "path", "more", "status", "code"),
    [
        ("POST", "/agents/nobody/tasks", {"json": {}}, 404, "agent.not_found"),
        ("POST", "/agents/a%2Fb/tasks", {"json": {}}, 404, None),
        ("POST", "/agents/echo/tasks", {"json": {"inptu": 1}}, 400, "request.invalid"),
        ("POST", "/agents/echo/tasks", {"json": []}, 400, None),
        ("POST", "/agents/echo/tasks", {"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, None),
        ("POST", "/agents/echo/tasks", {"json": {"webhook": "http://127.0.0.1/"}}, 400, "webhook.url_refused"),
        ("POST", "/agents/echo/tasks", {"json": {"webhook": "file:///x"}}, 400, "webhook.url_refused"),
        ("POST", "/agents/echo/tasks", {"json": {"session_id": "a b"}}, 400, "session.invalid_id"),
        ("POST", "/agents/echo/tasks", {"json": {}, "key": "default.viewer"}, 403, "auth.forbidden"),
        ("POST", "/agents/echo/tasks", {"json": {}, "key": "nobody"}, 401, "auth.invalid_key"),
        ("GET", "/tasks/task_00000000000000000000000000", {}, 404, "task.not_found"),
        ("GET", "/tasks/x/events", {}, 404, "task.not_found"),
        ("GET", "/tasks/x/events", {"headers": {"Last-Event-ID": "-1"}}, 400, "events.unknown_position"),
        ("GET", "/tasks?status=done", {}, 400, "task.unknown_status"),
        ("GET", "/tasks?limit=0", {}, 400, "request.invalid"),
        ("POST", "/tasks/x/webhook/replay", {}, 404, "task.not_found"),
        ("GET", "/v1/webhooks/secret", {"key": "default.runner"}, 403, "auth.forbidden"),
        ("GET", "/v1/runs/x", {}, 404, "run.not_found"),
        ("GET", "/v1/runs?cursor=x", {}, 400, "request.invalid"),
        ("PUT", "/door/sessions/s/state", {"key": "default.dev", "content": b"{}"}, 401, "auth.invalid_token"),
        ("GET", "/door/sessions/s/state", {"key": "instance"}, 404, "state.not_found"),
        ("PUT", "/door/sessions/s/state", {"key": "instance", "content": b"{" * 1_100_000}, 413, "state.too_large"),
        ("PUT", "/door/sessions/s/state", {"key": "instance", "content": b"[1]"}, 400, "state.invalid"),
        ("POST", "/door/traces", {"key": "instance", "headers": {"Content-Encoding": "br"}}, 400, "traces.invalid"),
    ],
)  # fmt: skip
async def test_bad_requests_get_problems(
    api: Api, method: str, path: str, more: dict[str, Any], status: int, code: str | None
) -> None:
    answer = await api(method, path, **more)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    if code is not None:
        assert answer.json()["code"] == code


async def test_a_body_that_is_nested_too_deeply_is_no_defect(api: Api) -> None:
    body = b'{"input":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    answer = await api("POST", "/agents/echo/tasks", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


async def test_the_other_tenant_sees_nothing(api: Api) -> None:
    task_id = (await api("POST", "/agents/echo/tasks", json={})).json()["task_id"]
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/webhook/replay")):
        theirs = await api(method, f"/tasks/{task_id}{path}", key="other.dev")
        assert (theirs.status_code, theirs.json()["code"]) == (404, "task.not_found")
    assert (await api("GET", "/tasks", key="other.dev")).json()["items"] == []
    assert (await api("POST", "/agents/echo/tasks", key="other.dev", json={})).status_code == 404
    assert b"echo" not in (await api("GET", "/metrics", key="other.viewer")).content
    secrets = {(await api("GET", "/v1/webhooks/secret", key=key)).json()["secret"] for key in ("default.dev", "other.dev")}
    assert len(secrets) == 2


async def test_metrics_show_the_queue(api: Api) -> None:
    await api("POST", "/agents/echo/tasks", json={})
    answer = await api("GET", "/metrics", key="default.viewer")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'agent_queue_size{agent="echo",environment="production",tenant="default"}' in answer.text
    assert "\nnexus_dispatchers " not in answer.text, "that is for those who manage the host"
    assert (await api("GET", "/metrics", key="nobody")).status_code == 401


async def test_session_state_goes_in_and_comes_out(api: Api) -> None:
    state = {"count": 1, "text": "😀"}
    put = await api("PUT", "/door/sessions/s:1/state", key="instance", content=json.dumps(state))
    assert (put.status_code, put.headers["nexus-state-version"]) == (204, "1")
    got = await api("GET", "/door/sessions/s:1/state", key="instance")
    assert (got.json(), got.headers["nexus-state-version"]) == (state, "1")


async def test_traces_are_taken_politely_without_a_collector(api: Api) -> None:
    taken = await api("POST", "/door/traces", key="instance", content=b"", headers={"Content-Type": "application/x-protobuf"})
    assert (taken.status_code, taken.content) == (200, b"")


@pytest.mark.parametrize(
    "environ",
    [
        {"NEXUS_EGRESS_ALLOW": "localhost"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"},
        {"NEXUS_PUBLIC_URL": "agents.example.com"},
        {"NEXUS_PUBLIC_URL": "https://me@agents.example.com"},
    ],
)
def test_a_setting_that_cannot_be_used_is_named(environ: dict[str, str]) -> None:
    with pytest.raises(errors.Invalid) as caught:
        control_tasks.read_environment(
            environ,
            database_url="postgresql://",
            service_token="x",
            webhook_key=b"k",
            link_key=b"l",
            trigger_key=b"t",
            origin="http://host",
        )
    assert caught.value.code == "setting.invalid"
