"""`/v1/agents/{name}/sessions`: workers and past together, for their own tenant, to those who may."""

import dataclasses
import json

import pytest

from nexus.apps import control_sessions
from nexus.core import usage
from nexus.sessions import accounting
from nexus.sessions import service as session_service
from nexus.stores.postgres import session_history, session_usage
from nexus.testing import sessions as fake


@pytest.fixture
async def node(control):
    """Agent `chat` deployed and ready, and the node of its sessions."""
    await control.deploy("chat", environment="production")
    await control.settle()
    instance = (await control.api.get("/v1/agents/chat")).json()["deployments"][0]["instances"][0]["id"]
    node = fake.FakeSessionNode({instance: ("default", "chat", "production"), "ins_x": ("other", "chat", "production")})
    app = control.api._transport.app
    used = accounting.Accounting(node=node, store=session_usage.PostgresUsageStore(control.runs._engine))
    built = control_sessions.build_sessions(control.runs._engine, control.hosting, None, used)
    built._node = node
    app.state.services = dataclasses.replace(app.state.services, live_sessions=built)
    assert isinstance(built, session_service.SessionService)
    assert isinstance(built._history, session_history.PostgresSessionHistory)
    return node


def record(session, **more):
    return {
        "id": f"run_{session}_{more.get('started_at', 1.0)}", "tenant": "default", "agent": "chat", "environment": "production",
        "deployment_id": "dep", "version": "0.9.0", "instance_id": "ins", "session_id": session, "principal": "key_1",
        "mode": "sync", "outcome": "completed", "status": 200, "started_at": 1.0, "duration_s": 2.0, "bytes_in": 10,
        "bytes_out": 20, "trace_id": "", **more,
    }  # fmt: skip


async def test_a_session_is_opened_listed_shown_and_stopped(control, node):
    opened = (await control.api.post("/v1/agents/chat/sessions", json={"session_id": "anna:1"})).json()
    assert (opened["session_id"], opened["phase"], opened["isolation"]) == ("anna:1", "live", "session")
    await control.runs.add([record("anna:1"), record("old", started_at=5.0), record("old", started_at=9.0, outcome="failed")], [])
    listed = (await control.api.get("/v1/agents/chat/sessions")).json()["items"]
    assert [(one["session_id"], one["phase"], one["runs"], one["failed"]) for one in listed] == [
        ("anna:1", "live", 1, 0),
        ("old", "past", 2, 1),
    ]
    old = (await control.api.get("/v1/agents/chat/sessions/old")).json()
    assert (old["busy_s"], old["bytes_in"], old["bytes_out"], old["created_at"]) == (4.0, 20, 40, 5.0)
    assert (await control.api.get("/v1/sessions")).json()["items"] == listed
    spent = {"instance_id": "ins", "session_id": "old", "began_at": 0.0, "version": "1.0.0", "agent": "chat"}
    for tenant, environment, part, numbers in (
        ("default", "production", "worker", {"cpu_s": 1.5, "memory_byte_seconds": 9.0}),
        ("default", "production", "network", {"bytes_in": 7, "bytes_out": 3}),
        ("default", "staging", "network", {"bytes_in": 1000}),
        ("other", "production", "network", {"bytes_in": 1000}),
    ):
        mine = {**spent, "instance_id": f"{tenant}/{environment}", **numbers}
        node.used.append(usage.UsageRow(tenant=tenant, environment=environment, part=usage.Part(part), **mine))
    old = (await control.api.get("/v1/agents/chat/sessions/old")).json()
    assert (old["cpu_s"], old["memory_byte_seconds"]) == (1.5, 9.0)
    assert (old["network_in"], old["network_out"], old["bytes_in"], old["bytes_out"]) == (7, 3, 27, 43)
    stopped = await control.api.post("/v1/agents/chat/sessions/anna:1/stop")
    assert stopped.json()["phase"] == "saved"
    assert (await control.api.get("/v1/agents/chat/sessions/anna:1")).json()["phase"] == "past"


async def test_an_unknown_session_is_told_so(control, node):
    for method, path in (("GET", ""), ("POST", "/kill"), ("POST", "/stop")):
        answer = await control.api.request(method, f"/v1/agents/chat/sessions/nobody{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "session.not_found")
    answer = await control.api.get("/v1/agents/chat/sessions/%C3%A4")
    assert (answer.status_code, answer.json()["code"]) == (400, "session.invalid")
    assert (await control.api.get("/v1/agents/nobody/sessions")).status_code == 404


async def test_kill_all_ends_the_sessions_of_one_agent_of_one_tenant(control, node):
    for name in "abc":
        await control.api.post("/v1/agents/chat/sessions", json={"session_id": name})
    await node.place(["ins_x"], "theirs")
    assert (await control.api.post("/v1/agents/chat/sessions:kill")).json() == {"killed": 3}
    assert [key[1] for key in node.alive] == ["theirs"]


async def test_another_tenant_sees_none_of_them(control, node):
    await control.api.post("/v1/tenants", json={"name": "other"})
    stranger = await control.key_of("other", "admin")
    await control.api.post("/v1/agents/chat/sessions", json={"session_id": "mine"})
    assert (await stranger.get("/v1/sessions")).json()["items"] == []
    for path in ("/sessions", "/sessions/mine"):
        assert (await stranger.get(f"/v1/agents/chat{path}")).status_code == 404
    assert (await stranger.post("/v1/agents/chat/sessions/mine/kill")).status_code == 404


async def test_a_key_does_what_its_role_and_environment_allow(control, node):
    await control.api.post("/v1/agents/chat/sessions", json={"session_id": "s"})
    viewer, runner = await control.key_of("default", "viewer"), await control.key_of("default", "runner")
    elsewhere = await control.key_of("default", "developer", environment="development")
    assert (await viewer.get("/v1/agents/chat/sessions/s")).status_code == 200
    assert (await viewer.post("/v1/agents/chat/sessions", json={})).status_code == 403
    assert (await runner.post("/v1/agents/chat/sessions", json={})).status_code == 201
    assert (await runner.post("/v1/agents/chat/sessions/s/kill")).status_code == 403
    assert (await runner.post("/v1/agents/chat/sessions/s/exec", json={"command": ["id"]})).status_code == 403
    assert (await runner.post("/v1/agents/chat/sessions:kill")).status_code == 403
    assert (await elsewhere.get("/v1/agents/chat/sessions")).json()["items"] == []
    assert (await elsewhere.post("/v1/agents/chat/sessions/s/kill")).status_code == 404
    assert (await elsewhere.post("/v1/agents/chat/sessions/s/kill?environment=production")).status_code == 403


async def test_a_command_runs_in_a_session(control, node):
    await control.api.post("/v1/agents/chat/sessions", json={"session_id": "s"})
    answer = await control.api.post("/v1/agents/chat/sessions/s/exec", json={"command": ["ls", "-l"], "stdin": "in "})
    assert [json.loads(line) for line in answer.text.splitlines()] == [{"stream": "stdout", "data": "in ls -l"}, {"exit": 0}]
    refused = await control.api.post("/v1/agents/chat/sessions/s/exec", json={"command": ["a\0b"]})
    assert (refused.status_code, refused.json()["code"]) == (400, "session.command_invalid")
    assert (await control.api.post("/v1/agents/chat/sessions/s/exec", json={"command": []})).status_code == 400
