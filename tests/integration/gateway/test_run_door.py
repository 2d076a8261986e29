"""A run through the gateway: who may, where it goes, what the worker and the client see of each other."""

import json
import re
import time

import pytest

from nexus.core import ids
from nexus.kit import keys


def entry(node, **fields):
    """A key of its own for this test."""
    key = keys.new_key()
    base = dict(next(value for name, value in node.control.entries.items() if value.get("id") == "key_1"))
    base.update({"id": "key_" + key[4:12], **fields})
    node.control.change({f"key/{keys.hash_key(key)}": base})
    node.settled()
    return key


def drained(worker):
    while not worker.seen.empty():
        worker.seen.get_nowait()
    return worker


def test_a_run_reaches_the_worker_with_our_headers_and_the_body_untouched(node):
    worker = drained(node.workers[0])
    body = b'{"input": "h\\u00e9",   "context": {}}'
    answer = node.ask("POST", "/agents/hello/run", body, headers={"Content-Type": "application/json"})
    assert (answer.status, answer.json["output"]) == (200, body.decode())
    assert answer.header("Nexus-Version") == "1.0.0"
    seen = worker.seen.get(timeout=5)
    assert seen.line == "POST /run HTTP/1.1"
    assert seen.body == body
    assert seen.header("nexus-run-id") == answer.header("Nexus-Run-Id")
    assert ids.is_id(seen.header("nexus-run-id"), "run")
    assert seen.header("nexus-session-id") == answer.header("Nexus-Session-Id")
    assert ids.is_id(seen.header("nexus-session-id"), "ses")
    assert (seen.header("nexus-tenant"), seen.header("nexus-principal"), seen.header("nexus-attempt")) == ("acme", "key_1", "1")
    assert 25_000 < int(seen.header("nexus-deadline")) - time.time() * 1000 <= 30_000
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", seen.header("traceparent"))
    assert seen.header("authorization") is None


def test_a_run_is_recorded_within_a_second(node):
    answer = node.ask(
        "POST",
        "/agents/hello/run",
        {"input": 1},
        headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "Nexus-Session-Id": "s-1"},
    )
    record = node.control.next_record(id=answer.header("Nexus-Run-Id"))
    assert {
        "kind": "run", "tenant": "acme", "agent": "hello", "environment": "production", "deployment_id": "dep_1",
        "version": "1.0.0", "instance_id": "ins_a", "session_id": "s-1", "principal": "key_1", "mode": "sync",
        "outcome": "completed", "status": 200,
        "trace_id": "a" * 32, "bytes_in": 12, "bytes_out": len(answer.body),
    }.items() <= record.items()  # fmt: skip


def test_identity_and_hop_headers_that_a_client_forged_are_dropped(node):
    worker = drained(node.workers[0])
    forged = {
        "Nexus-Tenant": "victim", "Nexus-Principal": "root", "Nexus-Run-Id": "run_x", "Nexus-Deadline": "1", "Nexus-Attempt": "9",
        "Nexus-Anything": "1", "X-Forwarded-For": "1.2.3.4", "X-Original-Url": "/admin", "Forwarded": "for=x", "Cookie": "a=b",
        "Connection": "x-secret-hop", "X-Secret-Hop": "1", "TE": "trailers", "traceparent": "junk", "X-Kept": "yes",
    }  # fmt: skip
    assert node.ask("POST", "/agents/hello/run", {"input": 1}, headers=forged).status == 200
    seen = worker.seen.get(timeout=5)
    assert seen.all("nexus-tenant") == ["acme"]
    assert seen.all("nexus-principal") == ["key_1"]
    assert seen.all("nexus-run-id") != ["run_x"]
    assert seen.all("nexus-attempt") == ["1"]
    assert seen.all("traceparent") != ["junk"]
    assert seen.header("x-kept") == "yes"
    names = {name.lower() for name, _ in seen.headers}
    assert not names & {"x-forwarded-for", "x-original-url", "forwarded", "cookie", "x-secret-hop", "te", "nexus-anything"}


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "auth.required"),
        ({"Authorization": "Basic dXNlcjpwdw=="}, "auth.required"),
        ({"Authorization": "Bearer nxk_nope"}, "auth.unknown_key"),
        ({"Authorization": "Bearer ' OR 1=1--"}, "auth.unknown_key"),
        ({"X-Api-Key": "x" * 30000}, "auth.unknown_key"),
    ],
)
def test_without_a_good_credential_the_answer_is_401(node, headers, code):
    worker = drained(node.workers[0])
    answer = node.ask("POST", "/agents/hello/run", {"input": 1}, key=None, headers=headers)
    assert (answer.status, answer.json["code"]) == (401, code)
    assert answer.header("WWW-Authenticate") == 'Bearer realm="nexus"'
    assert answer.header("Content-Type") == "application/problem+json"
    assert worker.seen.empty()


def test_a_bad_bearer_gets_no_second_chance_with_another_header(node):
    assert node.ask("POST", "/agents/hello/run", {}, key="nxk_bad", headers={"X-Api-Key": node.key}).status == 401
    assert node.ask("POST", "/agents/hello/run", {}, key=None, headers={"X-Api-Key": node.key}).status == 200


def test_a_revoked_and_an_expired_key_are_refused_at_once(node):
    key = entry(node)
    assert node.ask("POST", "/agents/hello/run", {}, key=key).status == 200
    node.control.change({}, (f"key/{keys.hash_key(key)}",))
    node.settled()
    assert node.ask("POST", "/agents/hello/run", {}, key=key).status == 401
    assert node.ask("POST", "/agents/hello/run", {}, key=entry(node, expires_at=time.time() - 1)).json["code"] == "auth.expired"


def test_keys_are_narrowed_by_role_agent_and_environment(node):
    assert node.ask("POST", "/agents/hello/run", {}, key=entry(node, roles=["viewer"])).status == 403
    assert node.ask("POST", "/agents/hello/run", {}, key=entry(node, agents=["other"])).status == 403
    assert node.ask("POST", "/agents/hello/run", {}, key=entry(node, agents=["hello"])).status == 200
    staging = entry(node, environment="staging")
    assert node.ask("POST", "/agents/hello/run", {}, key=staging).json["code"] == "environment.not_deployed"
    asked = node.ask("POST", "/agents/hello/run", {}, key=staging, headers={"Nexus-Environment": "production"})
    assert asked.status == 403


def test_another_tenants_agent_looks_exactly_like_an_absent_one(node):
    stranger = entry(node, tenant="other")
    theirs = node.ask("POST", "/agents/hello/run", {}, key=stranger)
    absent = node.ask("POST", "/agents/olleh/run", {}, key=stranger)
    assert theirs.status == absent.status == 404
    assert theirs.body.replace(b"hello", b"olleh") == absent.body


def test_a_minute_limit_ends_in_429_with_retry_after(node):
    key = entry(node, requests_per_minute=3)
    statuses = [node.ask("POST", "/agents/hello/run", {}, key=key).status for _ in range(3)]
    refused = node.ask("POST", "/agents/hello/run", {}, key=key)
    assert statuses == [200, 200, 200]
    assert (refused.status, refused.json["code"]) == (429, "limit.requests")
    assert 1 <= int(refused.header("Retry-After")) <= 21


def test_the_environment_is_asked_for_only_when_it_is_open(node):
    worker = node.workers[0]
    one = node.control.entries["deployment/acme/hello/production"]
    node.control.change(
        {"deployment/acme/two/staging": one, "deployment/acme/two/development": one, "deployment/acme/one/staging": one}
    )
    node.settled()
    assert node.ask("POST", "/agents/one/run", {}).status == 200
    open_ = node.ask("POST", "/agents/two/run", {})
    assert (open_.status, open_.json["code"], open_.json["cause"]) == (
        400, "environment.required", "it is deployed in development, staging",
    )  # fmt: skip
    assert node.ask("POST", "/agents/two/run", {}, headers={"Nexus-Environment": "staging"}).status == 200
    assert node.ask("POST", "/agents/two/run", {}, headers={"Nexus-Environment": "production"}).status == 404
    assert node.ask("POST", "/agents/two/run", {}, headers={"Nexus-Environment": "a/b"}).json["code"] == "name.invalid"
    drained(worker)


@pytest.mark.parametrize(
    "path", ["/agents/a%2fb/run", "/agents/../v1/keys", "/agents//run", "/agents/hello/run;x", "/v1/%2e%2e/x"]
)
def test_paths_with_two_readings_are_refused(node, path):
    assert node.ask("POST", path, {}).json["code"] == "path.invalid"


def test_other_paths_and_methods(node):
    assert node.ask("GET", "/").status == 404
    assert node.ask("POST", "/agents/Hello World/run".replace(" ", "+"), {}).status == 404
    wrong = node.ask("GET", "/agents/hello/run")
    assert (wrong.status, wrong.header("Allow")) == (405, "POST")


@pytest.mark.parametrize("session", ["a b", "x" * 257, "é", "", ".."])
def test_a_bad_session_id_is_refused(node, session):
    answer = node.ask("POST", "/agents/hello/run", {}, headers={"Nexus-Session-Id": session})
    assert (answer.status, answer.json["code"]) == (400, "session.invalid")


def test_hosts_that_are_not_ours_are_refused_before_anything_else(node):
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil", "[::2]"):
        answer = node.raw(f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 421 "), host
    for host in ("agents.example", "localhost:1", "[::1]:80", "AGENTS.example"):
        answer = node.raw(f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200 "), host


def test_origins(node):
    same = f"http://127.0.0.1:{node.port}"
    assert node.ask("POST", "/agents/hello/run", {}, headers={"Origin": same}).status == 200
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{node.port}.evil"):
        assert node.ask("POST", "/agents/hello/run", {}, headers={"Origin": origin}).json["code"] == "origin.refused"
    allowed = node.ask("POST", "/agents/hello/run", {}, headers={"Origin": "https://app.example"})
    assert allowed.header("Access-Control-Allow-Origin") == "https://app.example"
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    preflight = node.ask("OPTIONS", "/agents/hello/run", key=None, headers=asked)
    assert (preflight.status, preflight.header("Access-Control-Allow-Origin")) == (204, "https://app.example")
    assert "Authorization" in preflight.header("Access-Control-Allow-Headers")


def test_control_gets_the_rest_streamed_and_without_forged_identity(node):
    api = drained(node.control.api)
    answer = node.ask(
        "PUT", "/v1/agents/hello/secrets/K?x=1", b"body", headers={"Nexus-Tenant": "victim", "X-Forwarded-For": "6.6.6.6"}
    )
    assert (answer.status, answer.json) == (200, {"output": "body", "by": "control"})
    seen = api.seen.get(timeout=5)
    assert seen.line == "PUT /v1/agents/hello/secrets/K?x=1 HTTP/1.1"
    assert seen.all("x-forwarded-for") == ["127.0.0.1"]
    assert seen.header("nexus-tenant") is None
    assert seen.header("authorization") == f"Bearer {node.key}"
    assert node.ask("GET", "/v1/agents", key=None).status == 401
    assert node.ask("GET", "/docs", key=None).status == 200
    head = node.ask("HEAD", "/console", key=None)
    assert (head.status, head.body) == (200, b"")


def test_the_dispatcher_alone_is_believed_about_tenant_run_and_attempt(node):
    worker = drained(node.workers[0])
    claims = {"Nexus-Tenant": "acme", "Nexus-Run-Id": "task_1", "Nexus-Attempt": "3"}
    answer = node.door(0, "POST", "/agents/hello/run", {"input": 1}, key=node.service, headers=claims)
    seen = worker.seen.get(timeout=5)
    assert answer.status == 200
    assert (seen.header("nexus-run-id"), seen.header("nexus-attempt"), seen.header("nexus-tenant")) == ("task_1", "3", "acme")
    assert node.control.next_record(id="task_1")["mode"] == "task"
    assert node.ask("POST", "/agents/hello/run", {}, key=node.service, headers=claims).status == 401
    assert node.ask("POST", "/agents/hello/run", {}, key=node.token).status == 401
    assert node.door(0, "POST", "/agents/hello/run", {}, key=node.token).status == 403


def test_health_tells_how_the_process_is(node):
    value = node.ask("GET", "/health", key=None).json
    assert (value["status"], value["connected"], value["in_flight"]) == ("ok", True, 0)
    assert json.dumps(value).find(node.key) == -1
