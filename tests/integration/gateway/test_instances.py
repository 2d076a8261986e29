"""Which instance serves: balancing, sessions across processes, waiting for one, and those that cannot be reached."""

import collections

import pytest


@pytest.fixture
def three(bare_node, small):
    """Agent `hello` on workers a, b and c."""
    node = bare_node
    workers = [node.worker(name) for name in "abc"]
    node.control.change({"deployment/acme/hello/production": small.deployment_entry(*workers)})
    return node, workers


def place(node, **fields):
    entry = {**node.control.entries["deployment/acme/hello/production"], **fields}
    node.control.change({"deployment/acme/hello/production": entry})
    node.settled()


def by(answer):
    assert answer.status == 200, answer.body
    return answer.json["by"]


def test_round_robin_gives_each_its_turn(three):
    node, _ = three
    node.start()
    place(node, balancer="round-robin")
    counted = collections.Counter(by(node.ask("POST", "/agents/hello/run", {})) for _ in range(9))
    assert counted == {"a": 3, "b": 3, "c": 3}


def test_least_connections_avoids_the_busy_ones(three):
    node, workers = three
    node.start()
    going = [node.later("POST", "/agents/hello/run", {}, headers={"x-do": "gated"}) for _ in range(2)]
    node.wait_for(lambda: sum(worker.seen.qsize() for worker in workers) == 2)
    free = next(worker for worker in workers if worker.seen.empty())
    assert {by(node.ask("POST", "/agents/hello/run", {})) for _ in range(6)} == {free.name}
    for worker in workers:
        node.open_gate(worker, "gate")
    assert {future.result(10).status for future in going} == {200}


@pytest.mark.parametrize("balancer", ["round-robin", "least-connections", "sticky", "health-based"])
def test_a_session_finds_its_instance_through_every_process(three, balancer):
    node, _ = three
    node.start(0)
    node.start(1)
    place(node, balancer=balancer)
    for session in ("customer-1", "customer-2", "customer-3", "customer-4"):
        headers = {"Nexus-Session-Id": session}
        assert len({by(node.ask("POST", "/agents/hello/run", {}, headers=headers)) for _ in range(8)}) == 1


def test_a_session_named_by_us_stays_where_it_began_even_after_scaling_out(three, small):
    node, workers = three
    node.start(0)
    node.start(1)
    first = node.ask("POST", "/agents/hello/run", {})
    session = {"Nexus-Session-Id": first.header("Nexus-Session-Id")}
    home = by(first)
    assert {by(node.ask("POST", "/agents/hello/run", {}, headers=session)) for _ in range(6)} == {home}
    place(node, instances=small.deployment_entry(*workers, node.worker("d"), node.worker("e"))["instances"])
    assert {by(node.ask("POST", "/agents/hello/run", {}, headers=session)) for _ in range(6)} == {home}


def test_an_instance_that_refuses_connections_is_passed_over_without_losing_a_run(three):
    node, workers = three
    node.start()
    node.stage.run(workers[0].stop())
    place(node, balancer="round-robin")
    assert {by(node.ask("POST", "/agents/hello/run", {"n": number})) for number in range(12)} == {"b", "c"}


def test_runs_wait_for_an_instance_and_go_when_one_is_ready(three):
    node, _ = three
    node.start()
    ready = node.control.entries["deployment/acme/hello/production"]["instances"]
    place(node, instances=[])
    waiting = [node.later("POST", "/agents/hello/run", {}) for _ in range(3)]
    node.wait_for(lambda: node.ask("GET", "/health").json["waiting"] == 3)
    place(node, instances=ready)
    assert {future.result(10).status for future in waiting} == {200}


def test_waiting_ends_in_503_after_wait_s_and_in_429_when_too_many_wait(three):
    node, workers = three
    node.start()
    place(node, instances=[], wait_s=0.05)
    late = node.ask("POST", "/agents/hello/run", {})
    assert (late.status, late.json["code"]) == (503, "agent.not_ready")
    assert int(late.header("Retry-After")) >= 1
    refused = node.control.next_record(id=late.header("Nexus-Run-Id"))
    assert (refused["outcome"], refused["code"]) == ("refused", "agent.not_ready")
    place(
        node,
        instances=[{"id": "ins_a", "address": workers[0].address, "version": "1.0.0"}],
        max_concurrency=1,
        max_queue=1,
        wait_s=9.0,
    )
    first = node.later("POST", "/agents/hello/run", {}, headers={"x-do": "gated"})
    workers[0].seen.get(timeout=5)
    second = node.later("POST", "/agents/hello/run", {})
    node.wait_for(lambda: node.ask("GET", "/health").json["waiting"] == 1)
    third = node.ask("POST", "/agents/hello/run", {})
    assert (third.status, third.json["code"]) == (429, "queue.full")
    assert third.header("Retry-After") == "1"
    node.open_gate(workers[0], "gate")
    assert [first.result(10).status, second.result(10).status] == [200, 200]


def test_a_client_that_leaves_the_line_frees_its_place(three):
    node, _ = three
    node.start()
    place(node, instances=[])
    key = f"Authorization: Bearer {node.key}\r\n".encode()
    with node.connect() as client:
        client.sendall(b"POST /agents/hello/run HTTP/1.1\r\nHost: localhost\r\n" + key + b"Content-Length: 0\r\n\r\n")
        node.wait_for(lambda: node.ask("GET", "/health").json["waiting"] == 1)
    node.wait_for(lambda: node.ask("GET", "/health").json["waiting"] == 0)


def test_a_deployment_deleted_while_runs_wait_ends_them(three):
    node, _ = three
    node.start()
    place(node, instances=[])
    waiting = node.later("POST", "/agents/hello/run", {})
    node.wait_for(lambda: node.ask("GET", "/health").json["waiting"] == 1)
    node.control.change({}, ("deployment/acme/hello/production",))
    assert waiting.result(10).status == 404


def test_an_idle_connection_that_its_worker_closed_is_not_used(three):
    node, workers = three
    node.start()
    place(node, instances=[{"id": "ins_a", "address": workers[0].address, "version": "1.0.0"}])
    for _ in range(5):
        assert by(node.ask("POST", "/agents/hello/run", {})) == "a"

        def hang_up():
            for writer in list(workers[0].writers):
                writer.transport.abort()

        node.stage.call(hang_up)
