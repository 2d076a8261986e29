"""Which messages of a long chat stay: never a broken one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.gateway import model_batch, model_estimate, model_trim

SYSTEM, TASK = {"role": "system", "content": "s" * 40}, {"role": "user", "content": "t" * 40}


def chat_call(number):
    call = {"id": f"c{number}", "type": "function", "function": {"name": "f", "arguments": "a" * 40}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": f"c{number}", "content": "r" * 40},
    ]


def anthropic_call(number):
    return [
        {"role": "assistant", "content": [{"type": "tool_use", "id": f"c{number}", "name": "f", "input": {"a": "a" * 40}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": f"c{number}", "content": "r" * 40}]},
    ]


def response_call(number):
    return [
        {"type": "reasoning", "id": f"r{number}", "summary": [{"type": "summary_text", "text": "x" * 40}]},
        {"type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": "a" * 40},
        {"type": "function_call", "call_id": f"d{number}", "name": "f", "arguments": "a" * 40},
        {"type": "function_call_output", "call_id": f"c{number}", "output": "o" * 40},
        {"type": "function_call_output", "call_id": f"d{number}", "output": "o" * 40},
    ]


@pytest.mark.parametrize("make", [chat_call, anthropic_call, response_call])
@given(calls=st.integers(0, 6), tail=st.booleans(), most=st.integers(0, 400))
def test_what_belongs_together_stays_together(make, calls, tail, most):
    messages = [SYSTEM, TASK, *(message for number in range(calls) for message in make(number))]
    messages += [{"role": "user", "content": "and now? " * 4}] if tail else []
    kept = model_trim.keep_newest(messages, most)
    assert [message for message in messages if message in kept] == kept
    assert kept[:2] == [SYSTEM, TASK]
    assert kept[-1] == messages[-1]
    whole = [make(number) for number in range(calls)]
    shown = [sum(message in kept for message in group) for group in whole]
    assert all(count in (0, len(group)) for count, group in zip(shown, whole, strict=True))
    assert shown == sorted(shown), "the oldest go first"
    if calls and not tail:
        assert shown[-1], "the newest group stays"


def test_everything_stays_when_there_is_room():
    messages = [SYSTEM, TASK, *chat_call(1)]
    assert model_trim.keep_newest(messages, 10_000) == messages
    assert model_trim.keep_newest([], 0) == []
    assert model_trim.keep_newest(["odd", 7, None], 0)[-1:] == [None]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.sampled_from(["role", "type"]), inner, max_size=4)
    ),
    max_leaves=12,
)
BODIES = st.dictionaries(st.sampled_from(["messages", "input", "prompt", "system", "tools", "max_tokens", "n", "stream"]), JSON)


@given(body=BODIES, most=st.integers(-5, 50))
def test_whatever_a_body_holds_it_can_be_estimated_and_trimmed(body, most):
    assert model_estimate.prompt_tokens(body) >= 0
    assert model_estimate.choices(body) >= 1
    cap = model_estimate.output_cap(body)
    assert cap is None or cap[1] > 0
    for value in body.values():
        if isinstance(value, list):
            assert len(model_trim.keep_newest(value, most)) <= len(value)


def test_pictures_count_by_the_piece_and_text_by_its_bytes():
    text = {"messages": [{"role": "user", "content": "word " * 400}]}
    assert 490 <= model_estimate.prompt_tokens(text) <= 520
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4_000_000}}
    raw = {"type": "image", "source": {"type": "base64", "data": "A" * 4_000_000}}
    for part in (picture, raw):
        assert model_estimate.prompt_tokens({"messages": [{"role": "user", "content": [part]}]}) < 2000
    assert model_estimate.prompt_tokens({"messages": [{"role": "user", "content": "語" * 400}]}) >= 300
    assert model_estimate.prompt_tokens({"input": list(range(500))}) >= 500


@given(total=st.integers(0, 10**6), weights=st.lists(st.integers(1, 1000), min_size=1, max_size=20))
def test_shares_make_the_whole(total, weights):
    shares = model_batch.share(total, weights)
    assert sum(shares) == total
    assert min(shares) >= 0
