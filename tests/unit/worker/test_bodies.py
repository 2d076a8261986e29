"""Bodies become calls, or refusals with a stable code."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.core import errors
from nexus.worker import bodies

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON_VALUES, st.dictionaries(st.text(), JSON_VALUES, max_size=3), st.booleans())
def test_whatever_is_json_arrives_unchanged(value: object, context: dict[str, object], ascii_only: bool) -> None:
    body = json.dumps({"input": value, "context": context}, ensure_ascii=ascii_only).encode()
    assert bodies.parse_call(body) == bodies.Call(value, context)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_call_or_a_typed_refusal(body: bytes) -> None:
    with contextlib.suppress(errors.Invalid):
        assert isinstance(bodies.parse_call(body).context, dict)


@pytest.mark.parametrize(
    ("body", "input", "context"),
    [
        (b"{}", None, {}),
        (b'\xef\xbb\xbf{"input": 1}', 1, {}),
        (b'{"input": [1], "context": null}', [1], {}),
        (b'{"input": "x", "other": 1}', "x", {}),
        (b'{"input": "\\ud83d\\ude00"}', "\U0001f600", {}),
    ],
)
def test_forms_that_are_welcome(body: bytes, input: object, context: dict[str, object]) -> None:
    assert bodies.parse_call(body) == bodies.Call(input, context)


@pytest.mark.parametrize("levels", [bodies.DEEPEST - 1, bodies.DEEPEST])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_depth_is_counted_exactly(levels: int, opening: str) -> None:
    closing = "]" if opening == "[" else "}"
    body = ('{"input":' + opening * levels + "1" + closing * levels + "}").encode()
    if levels < bodies.DEEPEST:
        assert bodies.parse_call(body)
    else:
        with pytest.raises(errors.Invalid) as caught:
            bodies.parse_call(body)
        assert caught.value.code == "body.too_deep"


@pytest.mark.parametrize("body", [b'{"input": ["x", {"k": "\\uDC00"}]}', b'{"context": {"\\ud800": 1}}'])
def test_half_a_surrogate_pair_is_found_wherever_it_is(body: bytes) -> None:
    with pytest.raises(errors.Invalid) as caught:
        bodies.parse_call(body)
    assert caught.value.code == "body.invalid_unicode"


def test_the_place_of_a_mistake_is_told() -> None:
    with pytest.raises(errors.Invalid) as caught:
        bodies.parse_call(b'{"input": 1,\n "context": }')
    assert "line 2, column 13" in (caught.value.cause or "")
