"""Aliases at the door: choice, fall-back before the first byte, circuit breaker, rules, trimming."""

import collections
import tempfile
from pathlib import Path

import pytest

from nexus.testing import fake_llm


@pytest.fixture(scope="module")
def door(stage, small):
    """One gateway, three providers: `a`, `b`, and `c`, which speaks OpenAI only; `gone` answers nowhere."""
    with tempfile.TemporaryDirectory(prefix="nx-gw-", dir="/tmp") as folder:
        one = small.Node(stage, Path(folder) / "home")
        one.llms = {name: fake_llm.FakeLlm(knobs=fake_llm.Knobs(reply=name)) for name in "abc"}
        for llm in one.llms.values():
            stage.run(llm.__aenter__())
        for name, llm in one.llms.items():
            options = {
                "price": {"input": ord(name), "output": 1},
                "context": 1000 if name == "c" else 100_000,
                "timeout_s": 0.5,
            }
            one.control.entries[f"model/{name}"] = {
                "provider": name, "base_url": llm.base_url, "headers": {}, "upstream_model": f"{name}-1",
                "dialects": ["openai"] if name == "c" else ["openai", "anthropic"], "options": options,
            }  # fmt: skip
        one.control.entries["model/gone"] = {
            **one.control.entries["model/a"],
            "base_url": f"http://127.0.0.1:{small.free_port()}/v1",
        }
        one.control.start()
        one.start()
        yield one
        one.close()
        for llm in one.llms.values():
            stage.run(llm.__aexit__(None, None, None))


@pytest.fixture(autouse=True)
def _as_before(door):
    yield
    for llm in door.llms.values():
        llm.turn(fail=None, fail_times=None, latency_s=0.0, garbage=False, cut_after=None, retry_after_s=None)


def alias(door, name, *targets, **fields):
    weighed = [(one, 1) if isinstance(one, str) else one for one in targets]
    entry = {
        "targets": [{"model": model, "weight": weight} for model, weight in weighed],
        "choose": "order", "fallback": [], "on": ["error", "timeout", "rate", "quota"], **fields,
    }  # fmt: skip
    door.control.change({f"route/{name}": entry})
    door.settled()


def chat(door, model, *, path="/v1/chat/completions", **fields):
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20, **fields}
    return door.ask("POST", path, body)


def said(answer):
    value = answer.json
    return value["choices"][0]["message"]["content"] if "choices" in value else value["content"][0]["text"]


def test_the_first_that_works_answers_and_is_named(door):
    alias(door, "fast", "a", "b")
    answer = chat(door, "fast")
    assert (said(answer), answer.header("Nexus-Model"), answer.json["model"]) == ("a", "a", "a-1")
    record = door.control.next_record(kind="model", requested="fast")
    assert (record["model"], record["provider"], record["upstream_model"]) == ("a", "a", "a-1")


@pytest.mark.parametrize("status", [429, 500, 503, 529, 401, 404])
def test_an_error_before_the_first_byte_falls_back(door, status):
    alias(door, "fast", "a", fallback=["b"])
    door.llms["a"].turn(fail=status, fail_times=1)
    assert said(chat(door, "fast")) == "b"
    assert said(chat(door, "fast", stream=False)) == "a"


def test_one_that_says_nothing_in_time_falls_back(door):
    alias(door, "fast", "a", "b", "c")
    door.llms["a"].turn(latency_s=30.0)
    assert said(chat(door, "fast")) == "b"


def test_a_stream_that_does_not_begin_falls_back_sooner(door):
    entry = door.control.entries["model/a"]
    door.control.change({"model/hurried": {**entry, "options": {**entry["options"], "timeout_s": 30, "first_byte_s": 0.3}}})
    alias(door, "hurry", "hurried", "b")
    door.llms["a"].turn(latency_s=2.0)
    answer = chat(door, "hurry", stream=True)
    assert (answer.status, answer.header("Nexus-Model")) == (200, "b")
    assert said(chat(door, "hurry")) == "a", "a whole answer takes the time it takes"


def test_callers_mistakes_do_not_turn_a_provider_away_from_others(door):
    for status in (404, 401):
        door.llms["c"].turn(fail=status, fail_times=8)
        assert {chat(door, "c").status for _ in range(8)} <= {404, 502}
    assert said(chat(door, "c")) == "c"


def test_an_answer_that_broke_off_is_not_asked_for_again(door):
    alias(door, "fast", "a", "b", "c")
    door.llms["a"].turn(cut_after=0)
    before = len(door.llms["b"].requests)
    with pytest.raises(Exception, match="IncompleteRead"):
        chat(door, "fast")
    assert len(door.llms["b"].requests) == before


def test_what_is_no_answer_at_all_falls_back_and_passes_where_nothing_else_is(door):
    alias(door, "fast", "a", "b")
    door.llms["a"].turn(garbage=True)
    assert said(chat(door, "fast")) == "b"
    answer = chat(door, "a")
    assert (answer.status, answer.header("Content-Type")) == (200, "text/html")


def test_nowhere_and_then_the_last_resort(door):
    alias(door, "fast", "gone", fallback=["gone"], last_resort="c")
    answer = chat(door, "fast")
    assert (said(answer), answer.header("Nexus-Model")) == ("c", "c")


def test_a_429_passes_on_with_its_retry_after_when_nothing_else_is_there(door):
    alias(door, "alone", "a")
    for pause in (7, None):
        door.llms["a"].turn(fail=429, fail_times=1, retry_after_s=pause)
        answer = chat(door, "alone")
        assert (answer.status, answer.header("Retry-After")) == (429, None if pause is None else "7")


def test_what_the_alias_does_not_name_does_not_fall_back(door):
    alias(door, "strict", "a", "b", on=["timeout"])
    door.llms["a"].turn(fail=500, fail_times=1)
    assert chat(door, "strict").status == 500


def test_a_stream_that_has_begun_is_not_asked_again(door):
    alias(door, "fast", "a", "b")
    door.llms["a"].turn(cut_after=2)
    before = len(door.llms["b"].requests)
    with pytest.raises(Exception, match="IncompleteRead"):
        chat(door, "fast", stream=True)
    assert len(door.llms["b"].requests) == before


def test_retries_at_one_place_are_declared(door):
    entry = door.control.entries["model/a"]
    door.control.change({"model/again": {**entry, "options": {**entry["options"], "retries": 2}}})
    door.settled()
    door.llms["a"].turn(fail=503, fail_times=2)
    assert said(chat(door, "again")) == "a"
    door.llms["a"].turn(fail=503, fail_times=3)
    assert chat(door, "again").status == 503
    door.llms["a"].turn(fail=None)


def test_a_provider_that_fails_again_and_again_is_left_alone(door, small):
    provider = fake_llm.FakeLlm(knobs=fake_llm.Knobs(reply="d", fail=500))
    door.stage.run(provider.__aenter__())
    entry = {**door.control.entries["model/b"], "provider": "d", "base_url": provider.base_url, "upstream_model": "d-1"}
    door.control.change({"model/d": entry})
    alias(door, "guarded", "d", "b")
    assert [said(chat(door, "guarded")) for _ in range(8)] == ["b"] * 8
    assert len(provider.requests) == 5
    answer = chat(door, "d")
    assert (answer.status, answer.json["code"]) == (503, "model.circuit_open")
    assert int(answer.header("Retry-After")) >= 1
    provider.turn(fail=None)
    door.wait_for(lambda: said(chat(door, "guarded")) == "d")
    assert said(chat(door, "d")) == "d"
    door.stage.run(provider.__aexit__(None, None, None))


def test_weights_share_and_price_chooses_the_cheapest_that_fits(door):
    alias(door, "shared", ("a", 3), ("b", 1), choose="weight")
    drawn = collections.Counter(said(chat(door, "shared")) for _ in range(80))
    assert drawn["a"] > drawn["b"] > 0
    alias(door, "cheap", "c", "b", "a", choose="price")
    assert said(chat(door, "cheap")) == "a"


def test_length_rules_and_tools_choose(door):
    alias(door, "room", "c", "b")
    assert said(chat(door, "room")) == "c"
    assert said(chat(door, "room", messages=[{"role": "user", "content": "word " * 1000}])) == "b"
    alias(door, "ruled", "b", rules=[{"below_tokens": 50, "without_tools": True, "use": "a"}])
    assert said(chat(door, "ruled")) == "a"
    assert said(chat(door, "ruled", messages=[{"role": "user", "content": "word " * 100}])) == "b"
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert said(chat(door, "ruled", tools=[tool])) == "b"
    door.control.change({"model/a": {**(a := door.control.entries["model/a"]), "options": {**a["options"], "tags": ["small"]}}})
    alias(door, "tagged", "b", "c", "a", rules=[{"below_tokens": 50, "use": "tag:small"}])
    assert said(chat(door, "tagged")) == "a"
    assert said(chat(door, "tagged", messages=[{"role": "user", "content": "word " * 100}])) == "b"


def test_a_dialect_leaves_out_those_that_do_not_speak_it(door):
    alias(door, "spoken", "c", "b")
    assert said(chat(door, "spoken", path="/v1/messages")) == "b"
    alias(door, "unspoken", "c")
    assert chat(door, "unspoken", path="/v1/messages").json["code"] == "model.dialect_unsupported"


def test_old_messages_are_left_out_by_declared_policy(door):
    alias(door, "trimmed", "a", trim_to=120)
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": "x" * 90}}
    messages = [
        {"role": "system", "content": "be kind"},
        *({"role": "user", "content": f"question {number} " + "word " * 30} for number in range(9)),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t", "content": "42"},
        {"role": "user", "content": "and now?"},
    ]  # fmt: skip
    answer = chat(door, "trimmed", messages=messages)
    kept = door.llms["a"].requests[-1].body["messages"]
    assert kept[0] == messages[0]
    assert kept[-1] == messages[-1]
    assert len(kept) < len(messages)
    assert [message["role"] for message in kept].index("system") == 0
    assert kept[1]["role"] != "tool"
    assert int(answer.header("Nexus-Trimmed-Messages")) == len(messages) - len(kept)


def test_an_unknown_name_is_refused_with_the_known_ones_where_that_is_set(door):
    settings = door.control.entries["settings"]
    door.control.change({"settings": {**settings, "default_model": "a", "unknown_model": "refuse"}})
    door.settled()
    answer = chat(door, "gpt-nonsense")
    assert (answer.status, answer.json["code"]) == (404, "model.not_found")
    assert {"a", "b", "c", "gone"} <= set(answer.json["cause"].removeprefix("the models are ").split(", "))
    assert said(chat(door, "default")) == "a"
    door.control.change({"settings": settings})
    door.settled()


def test_a_budget_that_is_used_up_sends_the_call_to_what_costs_nothing(door):
    free = {**door.control.entries["model/b"], "options": {"price": {}}}
    limited = {
        "id": "m", "scope": "tenant", "agent": None, "environment": None, "subject": None, "unit": "cost", "period": "day",
        "limit": 10, "warn": [],
    }  # fmt: skip
    door.control.change({"model/free": free, "budget/acme/m": limited})
    alias(door, "frugal", "a", last_resort="free")
    assert said(chat(door, "frugal")) == "b"
    assert chat(door, "a").json["code"] == "budget.exhausted"
    door.control.change({}, ("budget/acme/m",))
    door.settled()


def test_aliases_are_listed_and_lead_nowhere_when_their_targets_are_gone(door):
    alias(door, "lost", "nothing")
    listed = {item["id"]: item["owned_by"] for item in door.ask("GET", "/v1/models").json["data"]}
    assert listed["lost"] == "nexus"
    assert door.ask("GET", "/v1/models/lost").status == 200
    answer = chat(door, "lost")
    assert (answer.status, answer.json["code"]) == (404, "model.not_found")
