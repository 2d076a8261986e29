"""Budgets at the door of two real gateway processes: reserved before, settled after, one truth for both."""

import asyncio
import http.client
import json
import os
import signal
import socket
import tempfile
import time
from pathlib import Path

import anthropic
import openai
import pytest

from nexus.testing import fake_llm

PRICE = {"input": 1.0, "output": 10.0}
OUTPUT = 16


@pytest.fixture(scope="module")
def pair(stage, small):
    """Two gateways, one provider `fake` at a known price."""
    with tempfile.TemporaryDirectory(prefix="nx-gw-", dir="/tmp") as folder:
        one = small.Node(stage, Path(folder) / "home")
        llm = fake_llm.FakeLlm(knobs=fake_llm.Knobs(tokens=OUTPUT))
        stage.run(llm.__aenter__())
        entry = {
            "provider": "fake", "base_url": llm.base_url, "headers": {}, "upstream_model": "fake-model",
            "dialects": ["openai", "anthropic"], "options": {"price": PRICE, "context": 200_000},
        }  # fmt: skip
        one.control.entries |= {"model/fake": entry, "model/unpriced": {**entry, "options": {}}}
        one.control.start()
        one.start(0, NEXUS_GATEWAYS="2")
        one.start(1, NEXUS_GATEWAYS="2")
        one.llm, one.entry = llm, entry
        yield one
        one.close()
        stage.run(llm.__aexit__(None, None, None))


@pytest.fixture(autouse=True)
def _as_before(pair):
    yield
    gone = tuple(name for name in pair.control.entries if name.startswith(("budget/", "stop/", "route/")))
    pair.control.change({}, gone)
    pair.settled()
    pair.llm.turn(
        tokens=OUTPUT, usage=True, piece_s=0.0, latency_s=0.0, fail=None, fail_times=None, garbage=False, cut_after=None
    )


def budget(**fields):
    return {
        "id": "b", "scope": "agent", "agent": None, "environment": None, "subject": None, "unit": "cost", "period": "day",
        "limit": 0, "warn": [50, 80, 100], **fields,
    }  # fmt: skip


def govern(pair, name, **fields):
    pair.control.change({f"budget/acme/{name}": budget(id=name, **fields)})
    pair.settled()


def chat(pair, number=0, path="/v1/chat/completions", run="run_1", headers=None, **fields):
    body = {"model": "fake", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": OUTPUT, **fields}
    return pair.door(number, "POST", path, body, key=pair.token, headers={"Nexus-Run-Id": run, **(headers or {})})


def record_of(pair, run):
    return pair.control.next_record(kind="model", run_id=run)


def head_of(pair, body, run):
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {pair.token}\r\nNexus-Run-Id: {run}\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


@pytest.mark.parametrize("calls", [1000])
def test_a_thousand_calls_in_parallel_over_two_gateways_do_not_overshoot(pair, calls):
    """The budget pays for about 200 of them. What the provider counted never exceeds it."""
    one = 9 * 1000 + OUTPUT * 10_000  # the estimate of this prompt is a little above what the provider counts
    govern(pair, "small", limit=200 * one)
    pair.llm.turn(latency_s=0.05)
    body = json.dumps(
        {"model": "fake", "messages": [{"role": "user", "content": "hello there you"}], "max_tokens": OUTPUT}
    ).encode()

    async def call(number):
        reader, writer = await asyncio.open_unix_connection(str(pair.home.door_socket(number % 2)))
        writer.write(head_of(pair, body, "run_many"))
        answer = await reader.read()
        writer.close()
        return answer

    async def everybody():
        return await asyncio.gather(*(call(number) for number in range(calls)))

    before = len(pair.llm.requests)
    answers = asyncio.run_coroutine_threadsafe(everybody(), pair.stage.loop).result(60)
    statuses = [int(answer.split(b" ", 2)[1]) for answer in answers]
    assert set(statuses) <= {200, 402, 429}
    served = statuses.count(200)
    cost = 0
    for answer in answers:
        if answer.startswith(b"HTTP/1.1 200"):
            used = json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]
            cost += used["prompt_tokens"] * 1000 + used["completion_tokens"] * 10_000
    assert len(pair.llm.requests) - before == served
    assert cost <= 200 * one
    assert served >= 190, "and what there is may be used"
    # What is left is used by calls one after another, and still not exceeded.
    while (answer := chat(pair)).status == 200:
        used = answer.json["usage"]
        cost += used["prompt_tokens"] * 1000 + used["completion_tokens"] * 10_000
    assert cost <= 200 * one
    assert (answer.status, answer.json["code"], answer.json["budget"]) == (402, "budget.exhausted", "small")


def test_the_error_says_which_budget_and_has_the_form_of_the_callers_sdk(pair):
    govern(pair, "nothing", limit=1000, period="month", agent="hello")
    answer = chat(pair)
    value = answer.json
    assert (answer.status, value["code"], value["budget"], value["period"]) == (402, "budget.exhausted", "nothing", "month")
    assert value["error"]["type"] == "insufficient_quota"
    assert "nexus models budget set nothing" in value["error"]["message"]
    assert value["limit"] == 1000 / 1e9
    assert answer.header("x-should-retry") == "false"
    assert value["resets_at"] > time.time()
    value = chat(pair, path="/v1/messages").json
    assert (value["type"], value["error"]["type"], value["code"]) == ("error", "billing_error", "budget.exhausted")


def test_a_rate_of_tokens_a_minute_says_when_to_come_again(pair):
    govern(pair, "rate", unit="tokens", period="minute", limit=60)
    assert chat(pair).status == 200
    assert chat(pair, number=1).status == 200
    while (answer := chat(pair)).status == 200:
        continue
    assert (answer.status, answer.json["code"]) == (429, "budget.rate")
    assert 1 <= int(answer.header("Retry-After")) <= 60


@pytest.mark.parametrize(
    ("scope", "header"), [("run", "Nexus-Run-Id"), ("session", "Nexus-Session-Id"), ("user", "Nexus-User-Id")]
)
def test_each_run_session_and_user_has_its_own(pair, scope, header):
    govern(pair, f"each-{scope}", scope=scope, unit="requests", period="total", limit=2)
    mine = [chat(pair, number % 2, headers={header: f"{scope}_mine"}).status for number in range(3)]
    other = chat(pair, headers={header: f"{scope}_other"}).status
    assert (mine, other) == ([200, 200, 402], 200)


def test_what_does_not_say_whose_it_is_shares_one(pair):
    govern(pair, "nobody", scope="user", unit="requests", period="day", limit=1)
    assert [chat(pair).status, chat(pair, number=1).status] == [200, 402]


def test_a_budget_of_another_agent_or_tenant_does_not_bind(pair):
    pair.control.change(
        {"budget/globex/all": budget(id="all", scope="tenant"), "budget/acme/other": budget(id="other", agent="x")}
    )
    pair.settled()
    assert chat(pair).status == 200


def test_an_unknown_price_is_refused_where_money_is_limited(pair):
    assert chat(pair, model="unpriced").status == 200
    govern(pair, "money", limit=10**9)
    answer = chat(pair, model="unpriced")
    assert (answer.status, answer.json["code"]) == (403, "model.price_unknown")


def test_the_last_call_gets_what_is_left(pair):
    govern(pair, "rest", unit="tokens", limit=150)
    answer = chat(pair, max_tokens=5000)
    assert answer.status == 200
    left = int(answer.header("Nexus-Max-Tokens"))
    assert 100 < left < 150
    assert pair.llm.requests[-1].body["max_tokens"] == left


@pytest.mark.parametrize("absurd", [10**30, -5, 0, True, "9", 1e300, None, [], {"a": 1}])
def test_absurd_limits_on_the_answer_do_no_harm(pair, absurd):
    govern(pair, "wide", unit="cost", limit=10**24)
    govern(pair, "tokens", unit="tokens", limit=10**15)
    for name in ("max_tokens", "max_completion_tokens"):
        assert chat(pair, **{"max_tokens": None, name: absurd, "n": absurd}).status == 200


def test_a_stream_without_a_limit_ends_when_the_budget_does_and_says_why(pair):
    pair.llm.turn(tokens=20_000)
    govern(pair, "stream", unit="tokens", limit=6000)
    with pytest.raises(http.client.IncompleteRead) as cut:
        chat(pair, run="run_long", stream=True, max_tokens=None)
    body = cut.value.partial
    last = json.loads(body.rstrip().rpartition(b"data: ")[2])
    assert (last["code"], last["error"]["code"]) == ("budget.exhausted", "budget.exhausted")
    assert b"[DONE]" not in body
    record = record_of(pair, "run_long")
    assert record["outcome"] == "failed"
    assert record["code"] == "budget.exhausted"
    assert 4096 <= record["output_tokens"] <= 6100


def test_warnings_come_once_from_either_gateway(pair):
    while not pair.control.records.empty():
        pair.control.records.get_nowait()
    govern(pair, "warned", scope="tenant", unit="requests", limit=4)
    assert [chat(pair, number % 2).status for number in range(5)] == [200] * 4 + [402]
    told = [pair.control.next_record(kind="budget", budget="warned") for _ in range(3)]
    assert sorted((one["percent"], one["spent"]) for one in told) == [(50, 2), (80, 4), (100, 4)]
    chat(pair)
    record_of(pair, "run_1")
    assert not [one for one in list(pair.control.records.queue) if one["kind"] == "budget"]


def test_a_budget_begins_with_what_control_knew_to_be_spent(pair):
    govern(pair, "late", unit="requests", limit=3, spent={"window": int(time.time() // 86400), "amount": 2})
    assert [chat(pair).status, chat(pair, number=1).status] == [200, 402]


def test_a_client_that_leaves_in_mid_stream_is_billed_for_what_came(pair):
    pair.llm.turn(tokens=2000, piece_s=0.02)
    body = json.dumps({"model": "fake", "stream": True, "messages": [{"role": "user", "content": "hello there"}]}).encode()
    before = pair.llm.cancelled
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(pair.home.door_socket(0)))
        client.sendall(head_of(pair, body, "run_left"))
        seen = b""
        while seen.count(b"data: ") < 5:
            seen += client.recv(65536)
    pair.wait_for(lambda: pair.llm.cancelled > before)
    record = record_of(pair, "run_left")
    assert (record["outcome"], record["estimated"]) == ("cancelled", True)
    assert 4 <= record["output_tokens"] <= 40
    assert record["input_tokens"] > 0
    assert record["cost_nano"] == record["input_tokens"] * 1000 + record["output_tokens"] * 10_000
    assert record["ttft_s"] <= record["duration_s"]


def test_no_answer_is_needed_to_bill_a_prompt_that_was_read(pair):
    pair.llm.turn(latency_s=5.0)
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hello there"}]}).encode()
    before = len(pair.llm.requests)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(pair.home.door_socket(0)))
        client.sendall(head_of(pair, body, "run_early"))
        pair.wait_for(lambda: len(pair.llm.requests) > before)
    record = record_of(pair, "run_early")
    assert (record["outcome"], record["estimated"], record["output_tokens"]) == ("cancelled", True, 0)
    assert record["input_tokens"] > 0


def test_a_stream_that_is_cut_and_one_without_usage_are_estimated(pair):
    pair.llm.turn(usage=False)
    chat(pair, run="run_mute", stream=True)
    mute = record_of(pair, "run_mute")
    assert mute["estimated"]
    assert OUTPUT <= mute["output_tokens"] <= OUTPUT + 4
    pair.llm.turn(usage=True, cut_after=6)
    for path in ("/v1/chat/completions", "/v1/messages"):
        with pytest.raises(Exception, match="IncompleteRead"):
            chat(pair, run="run_cut", path=path, stream=True)
        cut = record_of(pair, "run_cut")
        assert (cut["outcome"], cut["estimated"]) == ("failed", True)
        assert 3 <= cut["output_tokens"] <= 8


def test_the_kill_switch_refuses_and_cuts_what_is_under_way(pair):
    pair.llm.turn(tokens=2000, piece_s=0.02)
    body = json.dumps({"model": "fake", "stream": True, "messages": [{"role": "user", "content": "hello there"}]}).encode()
    clients = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    try:
        for number, client in enumerate(clients):
            client.settimeout(10)
            client.connect(str(pair.home.door_socket(number)))
            client.sendall(head_of(pair, body, f"run_stopped{number}"))
            while b'"content"' not in client.recv(65536):
                pass
        pair.control.change({"stop/acme/hello": {"reason": "it loops", "since": time.time()}})
        rests = [b"".join(iter(lambda client=client: client.recv(65536), b"")) for client in clients]
    finally:
        for client in clients:
            client.close()
    for rest in rests:
        assert b'"code": "model.stopped"' in rest
        assert b"it loops" in rest
    answer = chat(pair, number=1)
    assert (answer.status, answer.json["code"]) == (403, "model.stopped")
    assert record_of(pair, "run_stopped1")["code"] == "model.stopped"
    pair.control.change({}, ("stop/acme/hello",))
    pair.settled()
    pair.llm.turn(tokens=1, piece_s=0.0)
    assert chat(pair).status == 200


def test_a_prompt_of_a_million_tokens_is_refused_by_its_length_in_little_memory(pair):
    pair.control.change({"settings": {**pair.control.entries["settings"], "max_body_bytes": 16 << 20}})
    pair.settled()
    answer = chat(pair, messages=[{"role": "user", "content": "word " * 900_000}])
    assert (answer.status, answer.json["code"]) == (400, "model.context_exceeded")
    status = Path(f"/proc/{pair.processes[0].pid}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) < 150 * 1024


def test_a_killed_gateway_leaves_its_reservations_spent_and_the_budget_whole(stage, small):
    with tempfile.TemporaryDirectory(prefix="nx-gw-", dir="/tmp") as folder:
        node = small.Node(stage, Path(folder) / "home")
        provider = node.worker("p")
        entry = {
            "provider": "fake", "base_url": provider.address, "headers": {}, "upstream_model": "m", "dialects": ["openai"],
            "options": {"price": PRICE},
        }  # fmt: skip
        node.control.entries |= {"model/fake": entry, "budget/acme/k": budget(id="k", unit="tokens", limit=150)}
        node.control.start()
        node.start(0)
        second = node.start(1)
        body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}).encode()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(node.home.door_socket(1)))
            client.sendall(head_of(node, body, "run_k").replace(b"Nexus-Run-Id", b"x-do: hang\r\nNexus-Run-Id"))
            provider.seen.get(timeout=10)
            waiting = chat_with(node, max_tokens=100)
            assert (waiting.status, waiting.json["code"]) == (429, "budget.pending")
            os.kill(second.pid, signal.SIGKILL)
            second.wait()
        node.processes.remove(second)
        node.wait_for(lambda: chat_with(node, max_tokens=100).json.get("code") == "budget.exhausted")
        node.close()


def chat_with(node, **fields):
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], **fields}
    return node.door(0, "POST", "/v1/chat/completions", body, key=node.token)


def test_direct_callers_are_bound_by_the_tenants_budget(pair):
    govern(pair, "everybody", scope="tenant", unit="requests", limit=1)
    body = {"model": "fake", "messages": [], "max_tokens": 4}
    assert [pair.ask("POST", "/v1/chat/completions", body).status for _ in range(2)] == [200, 402]


def sdks(pair):
    base = f"http://127.0.0.1:{pair.port}"
    return (
        openai.OpenAI(base_url=base + "/v1", api_key=pair.key, max_retries=3),
        anthropic.Anthropic(base_url=base, api_key=pair.key, max_retries=3),
    )


def test_the_vendors_sdks_show_what_is_wrong_and_do_not_try_in_vain(pair):
    govern(pair, "none", scope="tenant", unit="requests", limit=0)
    before = sum(pair.door(number, "GET", "/health").json["requests"] for number in (0, 1))
    gpt, claude = sdks(pair)
    hello = [{"role": "user", "content": "hello"}]
    with gpt, claude:
        with pytest.raises(openai.APIStatusError, match="the budget 'none' of tenant acme is used up") as first:
            gpt.chat.completions.create(model="fake", messages=hello)
        with pytest.raises(anthropic.APIStatusError, match="the budget 'none' of tenant acme is used up") as second:
            claude.messages.create(model="fake", messages=hello, max_tokens=9)
    assert (first.value.status_code, first.value.code) == (402, "budget.exhausted")
    assert (second.value.status_code, second.value.body["error"]["type"]) == (402, "billing_error")
    assert sum(pair.door(number, "GET", "/health").json["requests"] for number in (0, 1)) == before + 2 + 2


def test_the_vendors_sdks_hear_of_a_stream_that_is_cut(pair):
    pair.llm.turn(tokens=9000)
    govern(pair, "cut", scope="tenant", unit="tokens", limit=5000)
    gpt, claude = sdks(pair)
    hello = [{"role": "user", "content": "hello"}]
    with gpt, claude:
        with pytest.raises(openai.APIError, match="the budget 'cut' of tenant acme is used up") as first:
            for _ in gpt.chat.completions.create(model="fake", messages=hello, stream=True):
                pass
        assert first.value.code == "budget.exhausted"
        pair.control.change({"stop/acme/*": {"reason": "enough", "since": time.time()}}, ("budget/acme/cut",))
        pair.settled()
        with pytest.raises(anthropic.APIStatusError, match="enough"):
            claude.messages.create(model="fake", messages=hello, max_tokens=9)
        pair.control.change({}, ("stop/acme/*",))
        pair.settled()
        pair.llm.turn(tokens=9000, piece_s=0.01)

        def read():
            with claude.messages.stream(model="fake", messages=hello, max_tokens=9000) as stream:
                for number, _ in enumerate(stream.text_stream):
                    if number == 3:
                        pair.control.change({"stop/acme/*": {"reason": "at once", "since": time.time()}})

        with pytest.raises(anthropic.APIStatusError, match="at once"):
            read()
