"""What the models door gives again without asking the provider, to whom, and what of a call's text it reports."""

import contextlib
import http.client
import json

import pytest

from nexus.kit import keys
from nexus.testing import fake_llm

MISS = "nexus-models; fwd=uri-miss"
CACHE = {"ttl": 300.0, "size": 1 << 20}
CHAT = {"model": "big", "temperature": 0, "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def door(node, small):
    """The shared node with a scripted provider, and an agent of the same tenant and one of another."""
    llm = fake_llm.FakeLlm()
    node.stage.run(llm.__aenter__())
    node.llm = llm
    entry = {
        "provider": "remote", "base_url": llm.base_url, "headers": {}, "upstream_model": "real",
        "dialects": ["openai", "anthropic"],
    }  # fmt: skip
    worker = node.workers[0]
    node.tokens = {}
    entries = {"model/big": entry, "model/other": {**entry, "upstream_model": "else"}}
    for tenant, agent in (("acme", "hello"), ("acme", "second"), ("rival", "hello")):
        token = keys.new_key(keys.INSTANCE_TOKEN)
        node.tokens[tenant, agent] = token
        entries[f"token/{keys.hash_key(token)}"] = {
            "instance_id": f"ins_{tenant}{agent}", "tenant": tenant, "agent": agent, "environment": "production"
        }  # fmt: skip
        entries[f"deployment/{tenant}/{agent}/production"] = small.deployment_entry(worker, id=f"dep_{tenant}_{agent}")
    node.control.change(entries)
    yield node
    node.stage.run(llm.__aexit__(None, None, None))


@pytest.fixture
def choose(door, small):
    """Gives all agents these options under `models`, with nothing in their caches, and the provider fresh knobs."""

    def choosing(revision=[1], **models):  # noqa: B006 - counts
        revision[0] += 1
        changed = {
            f"deployment/{tenant}/{agent}/production": small.deployment_entry(
                door.workers[0], id=f"dep_{tenant}_{agent}", revision=revision[0], options={"models": models}
            )
            for tenant, agent in door.tokens
        }
        door.control.change(changed)
        door.settled()
        door.stage.call(reset, door.llm)
        return door.llm

    return choosing


def reset(llm):
    llm.requests.clear()
    llm.replies.clear()
    llm.knobs = fake_llm.Knobs(reply="hi")


def turn(door, **knobs):
    door.stage.call(lambda: door.llm.turn(**knobs))


def ask(door, body=CHAT, *, who=("acme", "hello"), path="/v1/chat/completions", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return door.door(0, "POST", path, body, key=door.tokens[who], headers=named)


def with_text(text, **fields):
    return {**CHAT, "messages": [{"role": "user", "content": text}], **fields}


def test_the_same_request_is_answered_again_and_costs_nothing(door, choose):
    llm = choose(cache=CACHE)
    first = ask(door, with_text("again"), Nexus_Run_Id="run_c1")
    again = ask(door, {name: value for name, value in reversed(with_text("again").items())}, Nexus_Run_Id="run_c2")
    assert (first.header("Cache-Status"), len(llm.requests)) == (MISS, 1)
    assert again.json == first.json
    assert again.header("Cache-Status").startswith("nexus-models; hit; ttl=")
    assert again.header("Content-Type") == "application/json"
    record = door.control.next_record(kind="model", run_id="run_c2")
    assert (record["cached"], record["input_tokens"], record["output_tokens"], record["status"]) == (True, 0, 0, 200)


@pytest.mark.parametrize(
    "other",
    [
        with_text("Vary"), with_text("vary", temperature=0.0, max_tokens=5), with_text("vary", model="other"),
        with_text("vary", stream=True),
    ],
)  # fmt: skip
def test_another_request_is_another_answer(door, choose, other):
    llm = choose(cache={**CACHE, "scope": "user"})
    ask(door, with_text("vary"), Nexus_User_Id=repr(other)[:200].replace(" ", ""))
    assert ask(door, other, Nexus_User_Id=repr(other)[:200].replace(" ", "")).header("Cache-Status") == MISS
    assert len(llm.requests) == 2


@pytest.mark.parametrize(
    "body",
    [
        {name: value for name, value in with_text("free").items() if name != "temperature"}, with_text("free", temperature=0.7),
        with_text("free", temperature=False), with_text("free", store=True), with_text("free", previous_response_id="resp_1"),
    ],
)  # fmt: skip
def test_answers_that_may_differ_are_not_kept_unless_asked(door, choose, body):
    llm = choose(cache=CACHE)
    for _ in range(2):
        assert ask(door, body).header("Cache-Status") is None
    assert len(llm.requests) == 2


def test_always_keeps_what_may_differ_too(door, choose):
    llm = choose(cache={**CACHE, "always": True})
    for _ in range(3):
        ask(door, with_text("dice", temperature=1))
    assert len(llm.requests) == 1


@pytest.mark.parametrize(
    ("scope", "shared"),
    [("agent", {("acme", "hello")}), ("tenant", {("acme", "hello"), ("acme", "second")}), ("user", set())],
)
def test_who_shares_an_answer_and_never_another_tenant(door, choose, scope, shared):
    llm = choose(cache={**CACHE, "scope": scope})
    body = with_text(f"who {scope}")
    ask(door, body)
    for who in door.tokens:
        before = len(llm.requests)
        ask(door, body, who=who)
        assert (len(llm.requests) == before) == (who in shared), who


def test_users_share_only_with_themselves(door, choose):
    llm = choose(cache={**CACHE, "scope": "user"})
    for user in ("ann", "ann", "bob", "ann"):
        ask(door, with_text("mine"), Nexus_User_Id=user)
    assert len(llm.requests) == 2


def test_a_client_may_ask_for_a_fresh_answer_or_for_none_to_be_kept(door, choose):
    llm = choose(cache=CACHE)
    ask(door, with_text("control"), Cache_Control="no-store")
    ask(door, with_text("control"))
    assert len(llm.requests) == 2
    ask(door, with_text("control"), Cache_Control="no-cache")
    assert len(llm.requests) == 3
    ask(door, with_text("control"))
    assert len(llm.requests) == 3


@pytest.mark.parametrize("knobs", [{"fail": 500, "fail_times": 1}, {"garbage": True}, {"cut_after": 2}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_answer_is_never_kept(door, choose, knobs, stream):
    llm = choose(cache=CACHE)
    body = with_text(f"broken {knobs}", stream=stream)
    turn(door, **knobs)
    with contextlib.suppress(http.client.HTTPException):
        ask(door, body)
    turn(door, garbage=False, cut_after=None, fail=None)
    assert ask(door, body).status == 200
    assert len(llm.requests) == 2


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_a_stream_is_given_again_as_it_was(door, choose, path):
    llm = choose(cache=CACHE)
    body = {**with_text(f"stream {path}", stream=True), "input": "x", "max_tokens": 9}
    first, again = ask(door, body, path=path), ask(door, body, path=path)
    assert first.body == again.body
    assert again.header("Content-Type").startswith("text/event-stream")
    assert len(llm.requests) == 1


def test_old_answers_go(door, choose):
    llm = choose(cache={**CACHE, "ttl": 1e-6})
    ask(door, with_text("old"))

    def is_asked_again() -> bool:
        ask(door, with_text("old"))
        return len(llm.requests) >= 2

    door.wait_for(is_asked_again)  # the loop's clock goes in steps of a millisecond


def test_a_small_cache_keeps_the_newest(door, choose):
    llm = choose(cache={**CACHE, "size": 3000})
    for number in (1, 2, 3, 4, 5, 6, 5, 6):
        ask(door, with_text(f"number {number}"))
    assert len(llm.requests) == 6
    ask(door, with_text("number 1"))
    assert len(llm.requests) == 7


def vectors(answer):
    return {row["index"]: row["embedding"] for row in answer.json["data"]}


def embed(door, given, **fields):
    return ask(door, {"model": "big", "input": given, **fields}, path="/v1/embeddings", Nexus_Run_Id="run_e")


def test_only_texts_that_are_not_known_are_embedded(door, choose):
    llm = choose(embedding_cache=CACHE)
    one = embed(door, ["a", "b"])
    two = embed(door, ["c", "a", "d", "b"])
    assert [request.body["input"] for request in llm.requests] == [["a", "b"], ["c", "d"]]
    plain = {name: row["embedding"] for name, row in zip("ab", one.json["data"], strict=True)}
    assert vectors(two)[1] == plain["a"]
    assert vectors(two)[3] == plain["b"]
    assert list(vectors(two)) == [0, 1, 2, 3]
    assert two.json["usage"]["prompt_tokens"] == 2
    three = embed(door, ["d", "c"])
    assert (vectors(three)[0], vectors(three)[1]) == (vectors(two)[2], vectors(two)[0])
    assert three.json["usage"]["prompt_tokens"] == 0
    assert embed(door, "a").json["data"][0]["embedding"] == plain["a"]
    assert len(llm.requests) == 2


def test_a_vector_hangs_on_model_size_and_encoding(door, choose):
    llm = choose(embedding_cache=CACHE)
    embed(door, "same")
    embed(door, "same", dimensions=4)
    embed(door, "same", encoding_format="base64")
    embed(door, "same", model="other")
    assert len(llm.requests) == 4
    embed(door, [1, 2, 3])
    embed(door, [[1, 2, 3]])
    assert len(llm.requests) == 5


@pytest.mark.parametrize("knobs", [{"garbage": True}, {"fail": 400}, {"cut_after": 1}])
def test_a_provider_that_fails_for_the_rest_fails_the_call_and_keeps_nothing_wrong(door, choose, knobs):
    texts = ["known", f"new {knobs}"]
    choose(embedding_cache=CACHE)
    embed(door, ["known"])
    turn(door, **knobs)
    if "cut_after" in knobs:
        with pytest.raises(http.client.HTTPException):
            embed(door, texts)
    else:
        assert "data" not in embed(door, texts).json
    turn(door, garbage=False, fail=None, cut_after=None)
    assert len(vectors(embed(door, texts))) == 2


@pytest.mark.parametrize("given", [[], [None], [{"a": 1}], {"x": 1}, 7])
def test_an_odd_input_is_the_providers_to_judge(door, choose, given):
    llm = choose(embedding_cache=CACHE)
    embed(door, given)
    assert len(llm.requests) == 1


def test_the_text_of_a_call_is_reported_only_where_it_was_chosen(door, choose):
    choose()
    ask(door, with_text("quiet"), Nexus_Run_Id="run_quiet")
    assert "content" not in door.control.next_record(run_id="run_quiet")
    choose(audit_content=True)
    ask(door, with_text("told"), Nexus_Run_Id="run_told")
    content = door.control.next_record(run_id="run_told")["content"]
    assert json.loads(content["request"])["messages"][0]["content"] == "told"
    assert json.loads(content["response"])["choices"][0]["message"]["content"] == "hi"
    ask(door, with_text("streamed", stream=True), Nexus_Run_Id="run_streamed")
    assert '"content": "hi"' in door.control.next_record(run_id="run_streamed")["content"]["response"]


def test_long_text_is_cut_and_said_to_be(door, choose):
    choose(audit_content=True)
    ask(door, with_text("x" * 200_000), Nexus_Run_Id="run_long")
    record = door.control.next_record(run_id="run_long")
    assert (len(record["content"]["request"]), record["content_cut"]) == (65536, True)


@pytest.mark.parametrize(("mode", "asked", "told"), [("never", True, False), ("on", None, True), ("on", False, False)])
def test_the_host_has_the_last_word_on_text(door, choose, mode, asked, told):
    choose(**({} if asked is None else {"audit_content": asked}))
    before = door.control.entries["settings"]
    door.control.change({"settings": {**before, "audit_content": mode}})
    door.settled()
    run = f"run_{mode}{asked}"
    ask(door, with_text("mode"), Nexus_Run_Id=run)
    assert ("content" in door.control.next_record(run_id=run)) is told
    door.control.change({"settings": before})
    door.settled()
