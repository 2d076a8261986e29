"""Who may deploy may call a version by name, also one that has no traffic yet; for everybody else it is not there."""

import pytest

from nexus.kit import keys

PATH = "/agents/hello/run"


@pytest.fixture
def colours(bare_node, small):
    """Blue serves, green is ready without traffic; a key that may only run."""
    node = bare_node
    blue, green = node.worker("blue"), node.worker("green")
    entry = small.deployment_entry(blue, options={"circuit_breaker": True, "failure_threshold": 2})
    entry["instances"][0]["version"] = "1.0.0"
    entry["idle"] = [{**small.deployment_entry(green)["instances"][0], "version": "2.0.0"}]
    node.control.entries["deployment/acme/hello/production"] = entry
    runner = keys.new_key()
    node.control.entries[f"key/{keys.hash_key(runner)}"] = {
        **node.control.entries[f"key/{keys.hash_key(node.key)}"], "id": "key_runner", "roles": ["runner"],
    }  # fmt: skip
    node.start()
    return node, green, runner


def ask(node, version=None, *, key="", **headers):
    named = {} if version is None else {"Nexus-Version": version}
    return node.ask("POST", PATH, {"input": 1}, key=key, headers={**named, **headers})


def test_a_named_version_is_reached_and_nobody_else_gets_it(colours):
    node, _, runner = colours
    for _ in range(3):
        named = ask(node, "2.0.0")
        assert (named.status, named.json["by"], named.header("nexus-version")) == (200, "green", "2.0.0")
        assert {ask(node).json["by"], ask(node, key=runner).json["by"], ask(node, "1.0.0").json["by"]} == {"blue"}
    refused = ask(node, "2.0.0", key=runner)
    assert (refused.status, refused.json["code"]) == (403, "auth.forbidden")
    absent = ask(node, "3.0.0")
    assert (absent.status, absent.json["code"]) == (404, "version.not_serving")
    assert "1.0.0, 2.0.0" in absent.json["cause"]
    for wrong in ("", "2.0.0, 1.0.0", "../2.0.0"):
        assert ask(node, wrong).status == 404


def test_a_session_that_was_shown_another_version_stays_where_it_was(colours):
    node, _, _ = colours
    session = {"Nexus-Session-Id": "s-1"}
    assert [ask(node, version, **session).json["by"] for version in (None, "2.0.0", None, "2.0.0", None)] == [
        "blue", "green", "blue", "green", "blue",
    ]  # fmt: skip


def test_a_named_version_that_fails_opens_no_circuit_for_others(colours):
    node, green, _ = colours

    async def fail(server, request, reader, writer):
        writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        return True

    green.does["fail"] = fail
    assert [ask(node, "2.0.0", **{"x-do": "fail"}).status for _ in range(2)] == [500, 500]
    assert ask(node).status == 200
