"""Two gateway processes of one node agree on an `Idempotency-Key`, whichever of them a request comes to."""

import concurrent.futures
import gzip
import http.client
import json

import pytest

PATH = "/agents/hello/run"


@pytest.fixture
def pair(bare_node, small):
    node = bare_node
    worker = node.worker("a")
    node.control.entries["deployment/acme/hello/production"] = small.deployment_entry(worker)
    node.start(0, NEXUS_GATEWAYS="2")
    node.start(1, NEXUS_GATEWAYS="2")
    return node, worker


def ask(node, number, key, body=None, **headers):
    sent = {"Idempotency-Key": key, **headers}
    return node.door(number, "POST", PATH, {"input": 1} if body is None else body, key=node.key, headers=sent)


def drain(worker):
    seen = []
    while not worker.seen.empty():
        seen.append(worker.seen.get())
    return seen


def test_the_same_key_at_both_runs_once(pair):
    node, worker = pair
    for n in range(8):
        first, again = ask(node, n % 2, f"k-{n}"), ask(node, 1 - n % 2, f"k-{n}")
        assert (first.status, again.status, first.body) == (200, 200, again.body)
        assert (first.header("idempotency-replayed"), again.header("idempotency-replayed")) == (None, "true")
        assert first.header("nexus-run-id") == again.header("nexus-run-id")
    assert len(drain(worker)) == 8


def test_many_at_once_run_once_and_the_others_are_told_to_wait(pair):
    node, worker = pair
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        going = [pool.submit(ask, node, n % 2, "k", **{"x-do": "gated"}) for n in range(8)]
        node.wait_for(lambda: sum(one.done() for one in going) == 7)
        node.open_gate(worker, "gate")
        statuses = sorted(one.result().status for one in going)
    assert statuses == [200] + [409] * 7
    assert len(drain(worker)) == 1
    assert {ask(node, number, "k", {"input": 2}).status for number in (0, 1)} == {422}


def test_what_passes_through_another_gateway_stays_what_it_is(pair, small):
    node, worker = pair
    limited = node.control.entries["deployment/acme/hello/production"] | {"options": {"requests_per_minute": 1000}}
    node.control.change({"deployment/acme/hello/production": limited})
    node.wait_for(lambda: ask(node, 0, "warm-up").header("ratelimit") is not None)
    drain(worker)
    remaining = []
    for n in range(6):
        packed = gzip.compress(json.dumps({"input": n}).encode())
        answer = ask(node, 0, f"z-{n}", packed, **{"Content-Encoding": "gzip", "Nexus-Session-Id": f"s-{n}"})
        assert answer.header("nexus-session-id") == f"s-{n}"
        assert [name.lower() for name, _ in answer.headers].count("ratelimit") == 1
        remaining.append(int(answer.header("ratelimit").split("r=")[1].split(";")[0]))
    assert remaining == list(range(remaining[0], remaining[0] - 6, -1)), "each request is counted once"
    assert [json.loads(one.body)["input"] for one in drain(worker)] == list(range(6))


def test_a_stream_passes_at_once(pair, small):
    node, worker = pair
    for n in range(4):
        with node.connect() as client:
            client.sendall(
                b"POST /agents/hello/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %b\r\nx-do: events\r\n"
                b"x-gate: g-%d\r\nIdempotency-Key: s-%d\r\nContent-Length: 2\r\n\r\n{}" % (node.key.encode(), n, n)
            )
            assert b"run.completed" not in small.read_until(client, b"run.started")
            node.open_gate(worker, f"g-{n}")
            small.read_until(client, b"run.completed")


def test_while_the_owner_is_away_nothing_is_run_behind_its_back(pair):
    node, worker = pair
    key = next(f"o-{n}" for n in range(99) if runs_at(node, 1, f"o-{n}"))
    drain(worker)
    node.processes[1].kill()
    node.processes[1].wait()
    refused = ask(node, 0, key)
    assert (refused.status, refused.json["code"]) == (503, "idempotency.unavailable")
    assert drain(worker) == []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, node, 0, key)
        node.start(1, NEXUS_GATEWAYS="2")
        assert waiting.result(10).status == 200


def runs_at(node, number, key):
    """Whether a run under this key is made by that gateway, though it came to the other."""
    before = node.door(number, "GET", "/health").json["runs"]
    assert ask(node, 1 - number, key).status == 200
    return node.door(number, "GET", "/health").json["runs"] > before


def test_a_successor_knows_what_its_predecessor_did(bare_node, small):
    node = bare_node
    worker = node.worker("a")
    node.control.entries["deployment/acme/hello/production"] = small.deployment_entry(worker)
    older = node.start()
    done = ask(node, 0, "done", {"input": "\u00e4" * 100_000})
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        going = pool.submit(ask, node, 0, "going", **{"x-do": "gated"})
        node.wait_for(lambda: worker.seen.qsize() == 2)
        newer = node.start(wait=False)
        node.wait_for(lambda: node.door(0, "GET", "/health").json["pid"] == newer.pid)
        again = ask(node, 0, "done", {"input": "\u00e4" * 100_000})
        assert (again.status, again.body, again.header("idempotency-replayed")) == (200, done.body, "true")
        assert ask(node, 0, "done").status == 422
        busy = ask(node, 0, "going")
        assert (busy.status, busy.json["code"]) == (409, "idempotency.in_flight")
        assert ask(node, 0, "fresh").status == 200
        node.open_gate(worker, "gate")
        assert going.result(10).status == 200
    node.wait_for(lambda: ask(node, 0, "going").header("idempotency-replayed") == "true")
    assert older.wait(20) == 0
    assert ask(node, 0, "going").header("idempotency-replayed") == "true"
    assert len(drain(worker)) == 3


def test_keys_of_a_predecessor_that_was_killed_are_free(bare_node, small):
    node = bare_node
    worker = node.worker("a")
    node.control.entries["deployment/acme/hello/production"] = small.deployment_entry(worker)
    older = node.start()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        going = pool.submit(ask, node, 0, "going", **{"x-do": "gated"})
        node.wait_for(lambda: worker.seen.qsize() == 1)
        newer = node.start(wait=False)
        node.wait_for(lambda: node.door(0, "GET", "/health").json["pid"] == newer.pid)
        assert ask(node, 0, "going").status == 409
        older.kill()
        older.wait()
        assert isinstance(going.exception(10), OSError | http.client.HTTPException)
    node.wait_for(lambda: ask(node, 0, "going").status == 200)
