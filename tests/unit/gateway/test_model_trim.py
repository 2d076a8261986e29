"""Which messages of a long chat stay: never a broken one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.gateway import model_trim

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
