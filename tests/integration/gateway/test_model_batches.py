"""Embeddings of one tenant that come together go to the provider together, and come back apart."""

import asyncio
import json
import socket
import tempfile
from pathlib import Path

import pytest

from nexus.testing import fake_llm


@pytest.fixture(scope="module")
def door(stage, small):
    with tempfile.TemporaryDirectory(prefix="nx-gw-", dir="/tmp") as folder:
        one = small.Node(stage, Path(folder) / "home")
        one.llm = fake_llm.FakeLlm()
        stage.run(one.llm.__aenter__())
        entry = {
            "provider": "fake", "base_url": one.llm.base_url, "headers": {"authorization": "Bearer sk-host"},
            "upstream_model": "fake-embed", "dialects": ["openai"], "options": {"price": {"input": 1}},
        }  # fmt: skip
        together = {**entry, "options": {**entry["options"], "batch": {"window_s": 0.2, "most": 12}}}
        one.control.entries |= {"model/alone": entry, "model/together": together}
        one.control.start()
        one.start()
        yield one
        one.close()
        stage.run(one.llm.__aexit__(None, None, None))


@pytest.fixture(autouse=True)
def _as_before(door):
    door.llm.requests.clear()
    yield
    door.llm.turn(fail=None, fail_times=None, latency_s=0.0, garbage=False)


def ask_all(door, *bodies):
    """Every body at the same moment; their answers as (status, JSON)."""

    async def ask(body):
        reader, writer = await asyncio.open_unix_connection(str(door.home.door_socket(0)))
        raw = json.dumps(body).encode()
        head = (
            f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {door.token}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nNexus-Run-Id: run_{body.get('user', 'x')}\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        writer.write(head.encode() + raw)
        answer = await reader.read()
        writer.close()
        return int(answer.split(b" ", 2)[1]), json.loads(answer.partition(b"\r\n\r\n")[2])

    async def everybody():
        return await asyncio.gather(*(ask(body) for body in bodies))

    return asyncio.run_coroutine_threadsafe(everybody(), door.stage.loop).result(30)


def vectors(answer):
    return [row["embedding"] for row in sorted(answer["data"], key=lambda row: row["index"])]


def body(number, model="together", **fields):
    return {"model": model, "input": [f"text {number} {part}" for part in range(1 + number % 2)], "user": f"u{number}", **fields}


def test_calls_that_come_together_go_together_and_each_gets_its_own(door):
    apart = ask_all(door, *(body(number, model="alone") for number in range(6)))
    assert len(door.llm.requests) == 6
    door.llm.requests.clear()
    found = ask_all(door, *(body(number) for number in range(6)))
    assert [status for status, _ in found] == [200] * 6
    assert len(door.llm.requests) == 1
    assert "user" not in door.llm.requests[0].body
    assert door.llm.requests[0].headers["authorization"] == "Bearer sk-host"
    assert [vectors(answer) for _, answer in found] == [vectors(answer) for _, answer in apart]
    assert sum(answer["usage"]["prompt_tokens"] for _, answer in found) == sum(
        answer["usage"]["prompt_tokens"] for _, answer in apart
    )
    records = [door.control.next_record(kind="model", run_id=f"run_u{number}", model="together") for number in range(6)]
    assert all(record["cost_nano"] == record["input_tokens"] * 1000 for record in records)


def test_a_full_batch_does_not_wait_and_other_settings_go_apart(door):
    found = ask_all(door, *({**body(0), "input": [f"{number}"]} for number in range(24)))
    assert {status for status, _ in found} == {200}
    assert [len(request.body["input"]) for request in door.llm.requests] == [12, 12]
    door.llm.requests.clear()
    ask_all(door, body(0), body(2), body(4, dimensions=8), body(6, dimensions=8))
    assert len(door.llm.requests) == 2


def test_when_the_whole_does_not_go_well_each_goes_by_itself(door):
    door.llm.turn(fail=400, fail_times=1)
    found = ask_all(door, body(0), body(2), body(4))
    assert [status for status, _ in found] == [200] * 3
    assert len(door.llm.requests) == 4
    door.llm.requests.clear()
    door.llm.turn(fail=429, fail_times=None)
    assert [status for status, _ in ask_all(door, body(0), body(2))] == [429, 429]
    assert len(door.llm.requests) == 1


def test_one_who_leaves_takes_nobody_along(door):
    door.llm.turn(latency_s=0.3)
    raw = json.dumps(body(1)).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nX-Api-Key: {door.token}\r\nContent-Length: {len(raw)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(door.home.door_socket(0)))
        client.sendall(head.encode() + raw)
        door.wait_for(lambda: door.door(0, "GET", "/health").json["in_flight"])
    found = ask_all(door, body(0), body(2))
    assert [status for status, _ in found] == [200] * 2
    assert [len(request.body["input"]) for request in door.llm.requests] == [2]


def test_tenants_never_share_a_call(door, small):
    from nexus.kit import keys

    other = keys.new_key()
    door.control.change({f"key/{keys.hash_key(other)}": small.key_entry(id="key_2", tenant="globex")})
    door.settled()
    first = door.later("POST", "/v1/embeddings", body(0))
    second = door.later("POST", "/v1/embeddings", body(2), key=other)
    assert (first.result(10).status, second.result(10).status) == (200, 200)
    assert len(door.llm.requests) == 2
