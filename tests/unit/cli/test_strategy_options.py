"""The rollout options of `deploy`: what they mean, and what is said about wrong ones. And the picture of a rollout."""

from typing import Any

import pytest
from rich.console import Console

from nexus.cli.agent import rollout_commands, strategies
from nexus.core import errors

NOTHING: dict[str, Any] = {
    "kind": None, "max_surge": None, "max_unavailable": None, "steps": None, "interval": None, "samples": None, "keep": None,
    "auto_promote": None, "variants": [], "split_by": None,
}  # fmt: skip


def read(**given: Any) -> Any:
    return strategies.read(**{**NOTHING, **given})


def test_nothing_said_leaves_it_to_the_file() -> None:
    assert read() is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"kind": "canary", "steps": "10, 50%,100"}, {"type": "canary", "steps": [10, 50, 100]}),
        ({"steps": "10,100", "interval": "60s"}, {"type": "canary", "steps": [10, 100], "interval": "60s"}),
        ({"keep": "5m"}, {"type": "blue-green", "keep": "5m"}),
        ({"max_surge": "2", "max_unavailable": "25%"}, {"max_surge": "2", "max_unavailable": "25%"}),
        ({"samples": 40}, {"type": "canary", "analysis": {"samples": 40}}),
        (
            {"variants": ["a=1.0.0:50", "b=1.1.0+x:50"]},
            {
                "type": "ab",
                "variants": [
                    {"name": "a", "version": "1.0.0", "weight": 50}, {"name": "b", "version": "1.1.0+x", "weight": 50},
                ],
            },
        ),
    ],
)  # fmt: skip
def test_options_become_a_strategy(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read(**given) == expected


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "purple"}, {"steps": "ten"}, {"steps": "50,10"}, {"steps": ""}, {"interval": "soon"}, {"max_surge": "many"},
        {"variants": ["a"]}, {"variants": ["a=1.0.0"]}, {"variants": ["a=1.0.0:x"]}, {"variants": ["a=1.0.0:50", "b=1.1.0:60"]},
        {"variants": ["=1.0.0:50", "b=1.1.0:50"]}, {"split_by": "moon"}, {"max_surge": "0", "max_unavailable": "0"},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_option_is_an_error_before_anything_is_packed(given: dict[str, Any]) -> None:
    with pytest.raises(errors.Invalid) as caught:
        read(**given)
    assert caught.value.code == "strategy.invalid"
    assert caught.value.next_step


def test_a_test_of_stored_versions_needs_no_folder() -> None:
    test = read(variants=["a=1.0.0:50", "b=1.1.0:50"])
    assert strategies.stored_version(test, "1.1.0") is None
    assert strategies.stored_version(test, "2.0.0") == "1.1.0"
    assert strategies.stored_version(None, "2.0.0") is None


VIEW: dict[str, Any] = {
    "agent": "echo", "environment": "production", "revision": 2, "strategy": "canary", "phase": "rolling", "stage": 1,
    "stages": [10, 100], "next_at": 30.0, "waiting": "",
    "shares": [
        {"version": "1.0.0", "role": "stable", "weight": 90, "ready": 2, "wanted": 2, "runs": 90, "errors": 0, "error_rate": 0.0,
         "p50_s": 0.1, "p95_s": 1.5},
        {"version": "1.1.0\x1b[31m", "role": "new", "weight": 10, "ready": 1, "wanted": 1, "runs": 10, "errors": 1,
         "error_rate": 0.1, "p50_s": 0.0, "p95_s": 0.0},
    ],
}  # fmt: skip


def drawn(view: dict[str, Any]) -> str:
    plain = Console(width=160, no_color=True)
    with plain.capture() as captured:
        plain.print(rollout_commands.picture(view, now=10.0))
    return captured.get()


def test_the_picture_says_who_gets_what_and_what_comes() -> None:
    text = drawn(VIEW)
    assert "█" * 27 + "·" * 3 in text
    assert "90 %" in text
    assert "1 (10.0%)" in text
    assert "1.50 s" in text
    assert "stage 1 of 2" in text
    assert "in 20 s" in text
    assert "\x1b" not in text


def test_the_picture_says_how_it_ended() -> None:
    outcome = {"decision": "rolled back", "by": "platform", "reason": "5 of 5 runs failed"}
    assert "rolled back by platform: 5 of 5 runs failed" in drawn(
        {**VIEW, "phase": "failed", "next_at": None, "outcome": outcome}
    )
    assert "promote or abort" in drawn({**VIEW, "next_at": None, "waiting": "promotion"})
