"""Sessions of versions that were replaced: led to what is left of those, or held until it is there again."""

import json

import pytest

PATH = "/agents/hello/run"


@pytest.fixture
def replaced(bare_node, small):
    """A node on which version 1.0.0 serves, and what makes 2.0.0 take its place."""
    node = bare_node
    old, new = node.worker("old"), node.worker("new")
    entry = small.deployment_entry(old)
    later = small.deployment_entry(new, revision=2)
    later["instances"][0]["version"] = "2.0.0"
    node.control.entries["deployment/acme/hello/production"] = entry
    node.start()

    def replace(**fields):
        node.control.change({"deployment/acme/hello/production": later | fields})
        node.settled()

    return node, entry["instances"], replace


def ask(node, session=None):
    named = {} if session is None else {"Nexus-Session-Id": session}
    return node.ask("POST", PATH, {"input": 1}, headers=named)


def test_sessions_stay_on_what_drains_and_new_ones_do_not_go_there(replaced):
    node, old, replace = replaced
    minted = ask(node).header("Nexus-Session-Id")
    assert ask(node, "named").json["by"] == "old"
    replace(draining=old)
    for _ in range(3):
        answer = ask(node, "named")
        assert (answer.json["by"], answer.header("Nexus-Version")) == ("old", "1.0.0")
        assert ask(node, minted).json["by"] == "old"
        assert {ask(node, "newcomer").json["by"], ask(node).json["by"]} == {"new"}
    assert node.control.next_record(session_id="newcomer")["version"] == "2.0.0"
    replace()
    assert ask(node, "named").json["by"] == "new", "what drained is gone"
    replace(draining=old)
    assert ask(node, "named").json["by"] == "new", "a session that moved has moved"


def test_a_session_waits_for_its_version_to_be_woken_and_control_hears_of_it(replaced):
    node, old, replace = replaced
    assert ask(node, "sleeper").json["by"] == "old"
    replace(asleep=["1.0.0"])
    waiting = [node.later("POST", PATH, {"input": 1}, headers={"Nexus-Session-Id": "sleeper"}) for _ in range(3)]
    assert node.control.calls.get(timeout=10) == {"deployment": "dep_1", "version": "1.0.0"}
    assert ask(node, "newcomer").json["by"] == "new"
    assert not any(one.done() for one in waiting)
    replace(draining=old)
    assert {one.result(10).json["by"] for one in waiting} == {"old"}


def test_a_streaming_client_hears_that_its_version_is_being_woken(replaced):
    node, old, replace = replaced
    ask(node, "sleeper")
    replace(asleep=["1.0.0"])
    with node.connect() as client:
        client.sendall(
            b"POST /agents/hello/stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n"
            b"Nexus-Session-Id: sleeper\r\nX-Do: events\r\nContent-Length: 2\r\n\r\n{}" % node.key.encode()
        )
        heard = b""
        while b"session.waking" not in heard:
            heard += client.recv(65536)
        replace(draining=old)
        node.open_gate(node.workers[0], "gate")
        while part := client.recv(65536):
            heard += part
    assert heard.index(b"event: session.waking") < heard.index(b"event: run.started") < heard.index(b"event: run.completed")


def test_a_session_whose_version_cannot_be_woken_moves(replaced):
    node, _, replace = replaced
    ask(node, "sleeper")
    replace(asleep=["1.0.0"])
    waiting = node.later("POST", PATH, {"input": 1}, headers={"Nexus-Session-Id": "sleeper"})
    node.control.calls.get(timeout=10)
    replace()
    assert waiting.result(10).json["by"] == "new"


def test_a_session_that_waits_too_long_hears_for_what(replaced):
    node, _, replace = replaced
    ask(node, "sleeper")
    replace(asleep=["1.0.0"], wait_s=0.0)
    answer = ask(node, "sleeper")
    assert (answer.status, answer.json["code"]) == (503, "agent.not_ready")
    assert "1.0.0" in answer.json["detail"]
    task = node.door(
        0, "POST", PATH, {"input": 1}, key=node.service, headers={"Nexus-Tenant": "acme", "Nexus-Session-Id": "sleeper"}
    )
    assert (task.status, task.json["code"]) == (503, "agent.not_ready"), "a task is not told that all are busy"


def test_the_supervisor_finds_a_session_that_the_gateway_has_forgotten(bare_node, small):
    node, asked = bare_node, []

    async def answer(server, request, reader, writer):
        asked.append(json.loads(request.body))
        told = {"instance": "ins_old", "address": old.address, "phase": "live", "how": "live"}
        writer.write(small.plain(json.dumps(told).encode()))
        return False

    old, new = node.worker("old"), node.worker("new")
    supervisor = small.SmallServer(address=f"unix:{node.home.supervisor_socket}", name="supervisor", does={"echo": answer})
    node.stage.run(supervisor.start())
    node.workers.append(supervisor)
    entry = small.deployment_entry(new, options={"isolation": "session"}, draining=small.deployment_entry(old)["instances"])
    entry["instances"][0]["version"] = "2.0.0"
    node.control.entries["deployment/acme/hello/production"] = entry
    node.start()
    answers = [ask(node, "forgotten") for _ in range(2)]
    assert [(one.json["by"], one.header("Nexus-Version")) for one in answers] == [("old", "1.0.0")] * 2
    assert asked == [{"instances": ["ins_new"], "session": "forgotten", "homes": ["ins_old"]}]
