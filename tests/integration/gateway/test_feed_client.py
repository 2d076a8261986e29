"""Following control: deltas, gaps, restarts of either side, records that are sent again."""

import json
import os
import signal

import pytest


@pytest.fixture
def one(bare_node, small):
    node = bare_node
    node.control.change({"deployment/acme/hello/production": small.deployment_entry(node.worker("a"))})
    return node


def hellos(node):
    found = []
    while not node.control.hellos.empty():
        found.append(node.control.hellos.get_nowait())
    return found


def test_a_gap_in_the_deltas_makes_it_take_a_snapshot(one):
    one.start()
    assert one.control.hellos.get(timeout=5) == {"gateway": 0}
    two = one.control.entries["deployment/acme/hello/production"]
    one.control.version += 5
    one.control.change({"deployment/acme/two/production": two})
    assert one.control.hellos.get(timeout=5) == {"gateway": 0}
    one.settled()
    assert one.ask("POST", "/agents/two/run", {}).status == 200


@pytest.mark.parametrize(
    "message",
    [
        {"delta": {"epoch": "other", "previous": 2, "version": 3, "set": {}, "delete": []}},
        {"delta": {"epoch": "e1", "previous": 2, "version": 3, "set": {"deployment/acme/x/production": {"id": 1}}, "delete": []}},
        {"delta": {"epoch": "e1", "previous": 2, "version": 3, "set": {"deployment/acme": {}}, "delete": []}},
        {"delta": 7},
        ["not an object"],
    ],
)
def test_what_cannot_be_applied_changes_nothing_and_leads_to_a_snapshot(one, message):
    one.start()
    one.control.hellos.get(timeout=5)
    one.control.say(message)
    assert one.control.hellos.get(timeout=5) == {"gateway": 0}
    one.settled()
    assert one.ask("POST", "/agents/hello/run", {}).status == 200


def test_it_serves_on_while_control_is_down_and_starts_without_it(one):
    child = one.start()
    one.wait_for(lambda: one.home.route_cache.exists())
    one.control.stop()
    one.wait_for(lambda: not one.ask("GET", "/health").json["connected"])
    assert one.ask("POST", "/agents/hello/run", {}).status == 200
    child.send_signal(signal.SIGKILL)
    child.wait(5)
    one.start()
    assert one.ask("POST", "/agents/hello/run", {}).status == 200
    assert one.ask("GET", "/v1/agents", key="nxk_wrong").status == 401
    gone = one.ask("GET", "/v1/agents")
    assert (gone.status, gone.json["code"]) == (503, "control.unavailable")
    one.control.start()
    one.wait_for(lambda: one.ask("GET", "/health").json["connected"])
    assert one.ask("GET", "/v1/agents").status == 200


def test_a_short_restart_of_control_is_waited_out(one):
    one.start()
    one.control.stop()
    asked = one.later("GET", "/v1/agents")
    one.control.start()
    assert asked.result(10).status == 200


def test_the_cache_is_private_and_holds_no_provider_key(one):
    model = {
        "provider": "openai", "base_url": "https://api.openai.com/v1", "headers": {"Authorization": "Bearer sk-secret"},
        "upstream_model": "gpt", "dialects": ["openai"],
    }  # fmt: skip
    one.control.change({"model/gpt": model, "model/small": {**model, "base_url": "unix:/x", "headers": {}}})
    one.start()
    one.wait_for(lambda: one.home.route_cache.exists())
    text = one.home.route_cache.read_text()
    assert one.home.route_cache.stat().st_mode & 0o777 == 0o600
    assert "sk-secret" not in text
    assert "model/small" in json.loads(text)["entries"]
    assert [name for name in os.listdir(one.home.root) if name.startswith("routes.json.")] == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"epoch": "e", "version": 1, "entries": {"key/x": {}}}'])
def test_a_cache_that_cannot_be_read_is_left_alone(one, content):
    one.home.route_cache.write_text(content)
    one.start()
    assert one.ask("POST", "/agents/hello/run", {}).status == 200


def test_without_routes_it_says_so(bare_node):
    node = bare_node
    node.control.stop()
    child = node.start(wait=False)
    node.wait_for(lambda: answers(node))
    assert child.poll() is None
    answer = node.ask("POST", "/agents/hello/run", {})
    assert (answer.status, answer.json["code"]) == (503, "routes.unavailable")
    assert node.ask("GET", "/health").json["status"] == "starting"
    node.control.start()


def test_records_that_were_not_acknowledged_come_again(one):
    one.start()
    one.control.acknowledging = False
    run = one.ask("POST", "/agents/hello/run", {}).header("Nexus-Run-Id")
    one.control.next_record(id=run)
    one.control.stop()
    later = one.ask("POST", "/agents/hello/run", {}).header("Nexus-Run-Id")
    one.control.acknowledging = True
    one.control.start()
    assert one.control.next_record(id=run)["id"] == run
    assert one.control.next_record(id=later)["id"] == later
    one.wait_for(lambda: one.ask("GET", "/health").json["records_pending"] == 0)


def test_a_stop_waits_for_its_last_records(one):
    child = one.start()
    run = one.ask("POST", "/agents/hello/run", {}).header("Nexus-Run-Id")
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 0
    assert one.control.next_record(id=run)["outcome"] == "completed"


def test_a_taken_port_and_a_bad_variable_are_said_plainly(one):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", one.port))
        taken.listen()
        child = one.start(wait=False)
        assert child.wait(10) == 9
    assert f"port {one.port}" in (one.home.root / "gateway-0.log").read_text()
    child = one.start(wait=False, NEXUS_PORT="eighty")
    assert child.wait(10) == 2
    assert "NEXUS_PORT" in (one.home.root / "gateway-0.log").read_text()


def answers(node):
    try:
        return node.ask("GET", "/health").status
    except OSError:
        return None
