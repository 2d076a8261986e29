"""Who is left out for being slow at the tail."""

import pytest
from tests.unit.gateway.test_choices import choose, deployment

from nexus.gateway import balance, outliers


def feed(target, *tails, runs=100, now=100.0):
    """One run in ten of each instance takes its tail, the others a millisecond: means stay close, tails do not."""
    outliers.sweep(target, now)
    for number in range(runs):
        for instance, tail in zip(target.instances, tails, strict=True):
            balance.note_answer(instance, latency_s=tail if number % 10 == 0 else 0.001, failed=False)


@pytest.mark.parametrize(
    ("tails", "instances", "out", "chosen"),
    [
        ({"a": 1.0, "b": 0.1, "c": 0.1}, 3, 0, ["a"]), ({"a": 0.2, "b": 0.1, "c": 0.1}, 3, 0, []),
        ({"a": 0.02, "b": 0.002, "c": 0.002}, 3, 0, []), ({"a": 1.0, "b": 0.1, "c": 0.1}, 3, 1, []),
        ({"a": 1.0, "b": 0.1}, 2, 0, ["a"]), ({"a": 1.0}, 3, 0, []), ({}, 3, 0, []),
        ({"a": 1.0, "b": 2.0, "c": 0.1, "d": 0.1, "e": 0.1}, 5, 0, ["b"]),
        ({"a": 1.0, "b": 2.0, **{name: 0.1 for name in "cdefgh"}}, 8, 0, ["b", "a"]),
    ],
)  # fmt: skip
def test_whose_tail_is_too_far_out(tails, instances, out, chosen):
    assert list(outliers.plan_outliers(tails, instances=instances, out=out)) == chosen


def test_the_slow_tailed_is_left_out_for_a_growing_while_and_sessions_stay():
    target = deployment(balancer="health-based")
    session = next(f"s{n}" for n in range(99) if choose(target, f"s{n}") == "ins_0")
    feed(target, 2.0, 0.05, 0.05)
    outliers.sweep(target, 100.0)
    assert {choose(target, now=101.0) for _ in range(30)} == {"ins_1", "ins_2"}
    assert choose(target, session, now=101.0) == "ins_0"
    for instance in target.instances[1:]:
        instance.active = 50
    assert choose(target, now=111.0) == "ins_0", "its time is over, and it is judged afresh"
    for instance in target.instances[1:]:
        instance.active = 0
    feed(target, 2.0, 0.05, 0.05, now=111.0)
    outliers.sweep(target, 111.0)
    assert "ins_0" not in {choose(target, now=130.0) for _ in range(30)}


def test_when_every_one_is_slow_none_is_left_out():
    target = deployment(balancer="health-based")
    feed(target, 2.0, 2.0, 2.0)
    outliers.sweep(target, 100.0)
    assert {one.watch.out_until for one in target.instances} == {0.0}


def test_too_few_runs_judge_nobody_and_what_is_kept_is_bounded():
    target = deployment(balancer="health-based")
    feed(target, 2.0, 0.05, 0.05, runs=outliers.LEAST_SAMPLES - 1)
    outliers.sweep(target, 100.0)
    assert target.instances[0].watch.out_until == 0.0
    feed(target, 2.0, 0.05, 0.05, runs=1000)
    assert len(target.instances[0].watch._latest) == 200
