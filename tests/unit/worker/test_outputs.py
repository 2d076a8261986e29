"""Outputs become JSON, or an error that names what does not."""

import collections
import dataclasses
import json
from typing import Any

import pydantic
import pytest

from nexus.core import errors
from nexus.worker import outputs


class Point(pydantic.BaseModel):
    x: int
    tags: set[str]


@dataclasses.dataclass
class Box:
    inside: Any


class Broken:
    def model_dump(self, mode: str) -> Any:
        raise AttributeError("half built")


Pair = collections.namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Point(x=1, tags={"t"}), {"x": 1, "tags": ["t"]}),
        (Box(Box([Point(x=2, tags=set())])), {"inside": {"inside": [{"x": 2, "tags": []}]}}),
        (Pair(1, 2), [1, 2]),
        ({1: "a", None: "b", 2.5: "c"}, {"1": "a", "null": "b", "2.5": "c"}),
        (frozenset({"b", "a"}), ["a", "b"]),
        (collections.ChainMap({"a": 1}), {"a": 1}),
    ],
)
def test_values_with_a_json_form(value: object, expected: object) -> None:
    assert json.loads(outputs.encode(value)) == expected


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [1, object()]}, "output.a[1] is a object"),
        (Box(Box(b"x")), "output.inside.inside is a bytes"),
        ({"a": {("x",): 1}}, "a key of output.a is a tuple"),
        ([float("inf")], "output[0] is inf"),
        ({"a": Broken()}, "output.a is a Broken (half built)"),
        (Box, "output is a type"),
        (len, "output is a builtin_function_or_method"),
    ],
)
def test_what_has_none_is_named_with_its_place(value: object, where: str) -> None:
    with pytest.raises(errors.AgentFailed) as caught:
        outputs.encode(value)
    assert caught.value.code == "agent.unserialisable"
    assert caught.value.message.endswith(where)


def test_nesting_without_end_is_an_error_too() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(errors.AgentFailed) as caught:
        outputs.encode(value)
    assert caught.value.cause == "it is nested too deeply"


def test_half_a_surrogate_pair_is_valid_utf8_on_the_wire() -> None:
    assert outputs.encode("\ud800").encode() == b'"\\ud800"'
