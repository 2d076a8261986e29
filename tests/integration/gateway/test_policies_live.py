"""Limits, circuits, idempotency, caching and splits of a real gateway process."""

import json

import pytest


@pytest.fixture
def hello(bare_node, small):
    """Agent `hello` on worker `a`; `place` changes what its entry says."""
    node = bare_node
    worker = node.worker("a")
    node.control.entries["deployment/acme/hello/production"] = small.deployment_entry(worker)
    node.start()
    return node, worker


def place(node, **fields):
    entry = {**node.control.entries["deployment/acme/hello/production"], **fields}
    node.control.change({"deployment/acme/hello/production": entry})
    node.settled()


def run(node, body=None, **headers):
    return node.ask("POST", "/agents/hello/run", {} if body is None else body, headers=headers)


def drain(worker):
    found = []
    while not worker.seen.empty():
        found.append(worker.seen.get())
    return found


async def fail(server, request, reader, writer):
    writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    await writer.drain()
    return True


async def fail_once(server, request, reader, writer):
    """500 to the first run, the echo to all others; both count in `closed`."""
    server.closed.put("asked")
    if server.closed.qsize() == 1:
        return await fail(server, request, reader, writer)
    body = b'{"output": "again"}'
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    await writer.drain()
    return True


async def vanish_once(server, request, reader, writer):
    """Read the first run and hang up; answer the next."""
    server.closed.put(request.header("nexus-attempt") or "")
    if server.closed.qsize() == 1:
        return False
    return await fail_once(server, request, reader, writer)


# limits


def test_every_answer_tells_what_the_tightest_limit_leaves(hello):
    node, _ = hello
    place(node, options={"requests_per_minute": 3})
    left = []
    for _ in range(3):
        answer = run(node)
        assert answer.status == 200
        assert answer.header("ratelimit-policy") == '"agent";q=3;w=60'
        left.append(answer.header("ratelimit").split(";")[1])
    assert left == ["r=2", "r=1", "r=0"]
    refused = run(node)
    assert (refused.status, refused.json["code"]) == (429, "limit.requests")
    assert 1 <= int(refused.header("retry-after")) <= 21
    assert refused.header("ratelimit").startswith('"agent";r=0;t=')


def test_a_tenants_keys_share_its_limit(hello, small):
    from nexus.kit import keys

    node, _ = hello
    other = keys.new_key()
    node.control.change({f"key/{keys.hash_key(other)}": small.key_entry(id="key_2"), "tenant/acme": {"requests_per_minute": 4}})
    node.settled()
    statuses = [node.ask("POST", "/agents/hello/run", {}, key=key).status for key in (node.key, other) * 3]
    assert statuses == [200, 200, 200, 200, 429, 429]
    node.control.change({}, delete=("tenant/acme",))
    node.settled()
    assert run(node).status == 200


# circuits


def test_a_failing_agent_is_left_alone_and_tried_again(hello):
    node, worker = hello
    worker.does["fail"] = fail
    place(node, options={"circuit_breaker": True, "failure_threshold": 3})
    assert [run(node, **{"x-do": "fail"}).status for _ in range(3)] == [500, 500, 500]
    drain(worker)
    refused = run(node)
    assert (refused.status, refused.json["code"]) == (503, "circuit.open")
    assert refused.header("retry-after") == "1"
    assert worker.seen.empty(), "the agent was not asked"
    node.wait_for(lambda: run(node).status == 200)
    assert [run(node).status for _ in range(5)] == [200] * 5


def test_one_failing_instance_is_avoided_and_the_agent_goes_on(hello, small):
    node, worker = hello
    bad = node.worker("b", echo=fail)
    entry = small.deployment_entry(worker, bad, balancer="round-robin")
    place(node, instances=entry["instances"], balancer="round-robin", options={"circuit_breaker": True, "failure_threshold": 2})
    statuses = [run(node).status for _ in range(20)]
    assert statuses.count(500) == 2
    assert statuses[-10:] == [200] * 10


def test_without_the_option_nothing_is_left_alone(hello):
    node, worker = hello
    worker.does["fail"] = fail
    assert [run(node, **{"x-do": "fail"}).status for _ in range(12)] == [500] * 12
    assert run(node).status == 200


# idempotency


def test_a_repeated_key_gets_the_same_answer_without_a_second_run(hello):
    node, worker = hello
    first = run(node, {"input": "pay"}, **{"Idempotency-Key": "k-1"})
    again = run(node, {"input": "pay"}, **{"Idempotency-Key": "k-1"})
    assert (first.status, again.status) == (200, 200)
    assert first.body == again.body
    assert again.header("idempotency-replayed") == "true"
    assert first.header("idempotency-replayed") is None
    assert again.header("nexus-run-id") == first.header("nexus-run-id")
    assert again.header("nexus-session-id") == first.header("nexus-session-id")
    seen = drain(worker)
    assert len(seen) == 1
    assert seen[0].header("idempotency-key") is None
    assert json.loads(seen[0].body) == {"input": "pay"}


def test_a_key_is_refused_for_another_body_and_while_its_run_is_under_way(hello):
    node, worker = hello
    going = node.later("POST", "/agents/hello/run", {"input": 1}, headers={"Idempotency-Key": "k-2", "x-do": "gated"})
    node.wait_for(lambda: not worker.seen.empty())
    busy = run(node, {"input": 1}, **{"Idempotency-Key": "k-2"})
    assert (busy.status, busy.json["code"], busy.header("retry-after")) == (409, "idempotency.in_flight", "1")
    other = run(node, {"input": 2}, **{"Idempotency-Key": "k-2"})
    assert (other.status, other.json["code"]) == (422, "idempotency.mismatch")
    node.open_gate(worker, "gate")
    assert going.result(10).status == 200
    assert run(node, {"input": 1}, **{"Idempotency-Key": "k-2"}).header("idempotency-replayed") == "true"
    assert run(node, {"input": 1}, **{"Idempotency-Key": "\x01"}).status == 400


def test_a_key_of_a_failed_run_is_free(hello):
    node, worker = hello
    worker.does["fail-once"] = fail_once
    headers = {"Idempotency-Key": "k-3", "x-do": "fail-once"}
    assert run(node, {"input": 1}, **headers).status == 500
    assert run(node, {"input": 1}, **headers).json == {"output": "again"}


def test_a_lost_connection_is_tried_again_elsewhere_only_under_a_key(hello, small):
    node, worker = hello
    worker.does["vanish"] = vanish_once
    second = node.worker("b")
    place(node, instances=small.deployment_entry(worker, second)["instances"], balancer="sticky")
    session = next(name for name in (f"s{n}" for n in range(99)) if run(node, **{"Nexus-Session-Id": name}).json["by"] == "a")
    plain = run(node, **{"x-do": "vanish", "Nexus-Session-Id": session})
    assert (plain.status, plain.json["code"]) == (502, "agent.connection_lost")
    worker.closed.get()
    declared = run(node, {"input": 7}, **{"x-do": "vanish", "Nexus-Session-Id": session, "Idempotency-Key": "k-4"})
    assert declared.status == 200
    assert declared.json["by"] == "b"
    seen = [request for request in drain(second) if request.header("nexus-attempt") == "2"]
    assert [json.loads(request.body) for request in seen] == [{"input": 7}]


def test_a_stream_is_replayed_whole(hello):
    node, worker = hello
    node.open_gate(worker, "gate")
    headers = {"Idempotency-Key": "k-5", "x-do": "events"}
    first = node.ask("POST", "/agents/hello/stream", {"input": 1}, headers=headers)
    again = node.ask("POST", "/agents/hello/stream", {"input": 1}, headers=headers)
    assert first.body == again.body
    assert again.header("content-type") == "text/event-stream"
    assert again.header("idempotency-replayed") == "true"


# the cache


def test_equal_runs_are_answered_from_the_cache_until_they_differ(hello):
    node, worker = hello
    place(node, options={"cache_responses": True, "cache_ttl": "60s", "cache_size": "1MB", "cache_headers": ["x-lang"]})
    first, again = run(node, {"input": 1}), run(node, {"input": 1})
    assert first.header("cache-status") == "nexus; fwd=miss"
    assert again.header("cache-status").startswith("nexus; hit; ttl=")
    assert again.header("age") == "0"
    assert first.body == again.body
    assert again.header("nexus-run-id") != first.header("nexus-run-id")
    assert len(drain(worker)) == 1
    for body, headers in (({"input": 2}, {}), ({"input": 1}, {"x-lang": "fr"}), ({"input": 1}, {"Cache-Control": "no-cache"})):
        assert not (run(node, body, **headers).header("cache-status") or "").startswith("nexus; hit")
    assert len(drain(worker)) == 3
    assert node.control.next_record(id=again.header("nexus-run-id"))["outcome"] == "completed"


def test_sessions_streams_errors_and_other_tenants_are_never_answered_from_the_cache(hello, small):
    from nexus.kit import keys

    node, worker = hello
    worker.does["fail"] = fail
    place(node, options={"cache_responses": True})
    other = keys.new_key()
    mine = node.control.entries["deployment/acme/hello/production"]
    node.control.change(
        {f"key/{keys.hash_key(other)}": small.key_entry(id="key_o", tenant="other"), "deployment/other/hello/production": mine}
    )
    node.settled()
    run(node, {"input": 1})
    drain(worker)
    assert node.ask("POST", "/agents/hello/run", {"input": 1}, key=other).status == 200
    assert run(node, {"input": 1}, **{"Nexus-Session-Id": "s"}).header("cache-status") is None
    assert run(node, {"input": 1}, **{"Nexus-Session-Id": "s"}).header("cache-status") is None
    for _ in range(2):
        assert run(node, {"input": 9}, **{"x-do": "fail"}).status == 500
    node.open_gate(worker, "gate")
    for _ in range(2):
        assert node.ask("POST", "/agents/hello/stream", {"input": 1}, headers={"x-do": "events"}).status == 200
    assert len(drain(worker)) == 7


def test_a_new_revision_begins_with_an_empty_cache(hello):
    node, _ = hello
    place(node, options={"cache_responses": True})
    run(node, {"input": 1})
    assert run(node, {"input": 1}).header("cache-status").startswith("nexus; hit")
    place(node, revision=2)
    assert run(node, {"input": 1}).header("cache-status") == "nexus; fwd=miss"


# splits


def test_sessions_are_split_by_weight_and_keep_their_version_through_every_process(hello, small):
    node, worker = hello
    node.start(1)
    second = node.worker("b")
    instances = [
        {"id": "ins_a", "address": worker.address, "version": "1.0.0"},
        {"id": "ins_b", "address": second.address, "version": "1.1.0"},
    ]
    split = [{"version": "1.0.0", "weight": 70}, {"version": "1.1.0", "weight": 30}]
    place(node, instances=instances, options={"split": split, "split_by": "session", "name": "canary"})
    began = {}
    for n in range(60):
        answers = {run(node, **{"Nexus-Session-Id": f"s{n}"}).header("nexus-version") for _ in range(2)}
        assert len(answers) == 1
        began[f"s{n}"] = answers.pop()
    assert 6 <= list(began.values()).count("1.1.0") <= 32
    split = [{"version": "1.0.0", "weight": 0}, {"version": "1.1.0", "weight": 100}]
    place(node, options={"split": split, "name": "canary"})
    assert run(node, **{"Nexus-Session-Id": "fresh"}).header("nexus-version") == "1.1.0"
    for session, version in list(began.items())[:20]:
        assert run(node, **{"Nexus-Session-Id": session}).header("nexus-version") == version
    assert node.control.next_record(session_id="fresh")["version"] == "1.1.0"
    place(node, instances=instances[1:])
    assert {run(node, **{"Nexus-Session-Id": session}).header("nexus-version") for session in began} == {"1.1.0"}


def test_a_user_has_one_version_in_all_sessions(hello):
    node, worker = hello
    second = node.worker("b")
    instances = [
        {"id": "ins_a", "address": worker.address, "version": "1.0.0"},
        {"id": "ins_b", "address": second.address, "version": "1.1.0"},
    ]
    split = [{"version": "1.0.0", "weight": 1}, {"version": "1.1.0", "weight": 1}]
    place(node, instances=instances, options={"split": split, "split_by": "user", "name": "ab"})
    by_user = {}
    for n in range(24):
        versions = {run(node, **{"Nexus-User-Id": f"u{n}"}).header("nexus-version") for _ in range(3)}
        assert len(versions) == 1
        by_user[n] = versions.pop()
    assert set(by_user.values()) == {"1.0.0", "1.1.0"}


def test_a_rolling_update_moves_no_session_before_its_instance_goes(hello):
    node, worker = hello
    second, third = node.worker("b"), node.worker("c")
    place(node, instances=[{"id": "ins_a", "address": worker.address, "version": "1"}])
    sessions = [f"s{n}" for n in range(10)]
    minted = run(node).header("nexus-session-id")
    for session in (*sessions, minted):
        assert run(node, **{"Nexus-Session-Id": session}).header("nexus-version") == "1"
    place(
        node,
        instances=[
            {"id": "ins_a", "address": worker.address, "version": "1"},
            {"id": "ins_b", "address": second.address, "version": "2"},
            {"id": "ins_c", "address": third.address, "version": "2"},
        ],
    )
    for session in (*sessions, minted):
        assert run(node, **{"Nexus-Session-Id": session}).header("nexus-version") == "1"
