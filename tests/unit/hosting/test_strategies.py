"""Strategies as data: shares of traffic and instances for every point of every rollout, and what comes next."""

from dataclasses import replace
from typing import Any

import pytest

from nexus.core import errors
from nexus.core.deployments import Deployment, Revision, Scaling, Settings, Target
from nexus.core.phases import RevisionPhase
from nexus.core.rollouts import Progress, Strategy, StrategyKind, Variant
from nexus.hosting import planner, steps, strategies
from nexus.hosting.strategies import Share
from nexus.ports.run_samples import Sample
from nexus.wire import project

NOW = 1_000_000.0
CANARY = Strategy(kind=StrategyKind.CANARY)
BLUE_GREEN = Strategy(kind=StrategyKind.BLUE_GREEN)
AB = Strategy(
    kind=StrategyKind.AB,
    variants=(Variant(name="a", version="1", weight=60, revision=1), Variant(name="b", version="2", weight=40, revision=2)),
)


def revision(number: int, phase: RevisionPhase = RevisionPhase.ROLLING, **more: Any) -> Revision:
    given: dict[str, Any] = {
        "deployment_id": "dep", "number": number, "tenant": "t", "version_id": f"ver_{number}", "version": f"{number}.0.0",
        "phase": phase, "reason": "deploy", "replicas": 4, "settings": Settings(entrypoint="a:b", package_digest="d"),
        "created_at": 0.0, "created_by": "k",
    }  # fmt: skip
    return Revision(**{**given, **more})


def deployment(**more: Any) -> Deployment:
    given: dict[str, Any] = {
        "id": "dep", "tenant": "t", "agent": "a", "environment": "production", "target": Target.RUNNING, "target_revision": 2,
        "active_revision": 1, "replicas": 4, "scaling": Scaling(minimum=1, maximum=10), "created_at": 0.0, "updated_at": 0.0,
    }  # fmt: skip
    return Deployment(**{**given, **more})


def shares_of(target: Revision, **more: Any) -> tuple[tuple[int, int, int], ...]:
    known = {1: revision(1, RevisionPhase.ACTIVE), 2: target}
    if target.phase is RevisionPhase.ACTIVE:
        known[1] = revision(1, RevisionPhase.SUPERSEDED)
        more.setdefault("active_revision", 2)
    found = strategies.plan_shares(deployment(**more), known, NOW)
    return tuple((share.revision, share.weight, share.count) for share in found)


def at(stage: int, *, entered: bool, **more: Any) -> Progress:
    return Progress(stage=stage, since=NOW - 10 if entered else None, started=NOW - 10 if entered or stage else None, **more)


SHARES = {
    "rolling has none": (revision(2), ()),
    "a canary before its first stage": (revision(2, strategy=CANARY), ((1, 100, 4), (2, 0, 1))),
    "a canary in its first stage": (revision(2, strategy=CANARY, progress=at(0, entered=True)), ((1, 90, 4), (2, 10, 1))),
    "a canary between stages keeps its share": (
        revision(2, strategy=CANARY, progress=at(1, entered=False)),
        ((1, 90, 4), (2, 10, 2)),
    ),
    "a canary in its second stage": (revision(2, strategy=CANARY, progress=at(1, entered=True)), ((1, 50, 4), (2, 50, 2))),
    "a canary with everything": (revision(2, strategy=CANARY, progress=at(2, entered=True)), ((1, 0, 4), (2, 100, 4))),
    "a canary promoted by hand": (
        revision(2, strategy=CANARY, progress=at(0, entered=True, decision="promote")),
        ((1, 90, 4), (2, 10, 4)),
    ),
    "green beside blue": (revision(2, strategy=BLUE_GREEN), ((1, 100, 4), (2, 0, 4))),
    "blue stands by": (
        revision(2, RevisionPhase.ACTIVE, strategy=BLUE_GREEN, progress=Progress(standby=1, standby_until=NOW + 1)),
        ((1, 0, 4), (2, 100, 4)),
    ),
    "blue's time is over": (
        revision(2, RevisionPhase.ACTIVE, strategy=BLUE_GREEN, progress=Progress(standby=1, standby_until=NOW)),
        (),
    ),
    "a test before it serves": (revision(2, strategy=AB), ((1, 100, 4), (2, 0, 2))),
    "a test": (revision(2, strategy=AB, progress=at(0, entered=True)), ((1, 60, 3), (2, 40, 2))),
    "a test with a winner": (
        revision(2, strategy=AB, progress=at(0, entered=True, decision="promote", winner=2)),
        ((1, 60, 3), (2, 40, 4)),
    ),
    "a failed canary has none": (revision(2, RevisionPhase.FAILED, strategy=CANARY, progress=at(0, entered=True)), ()),
}


@pytest.mark.parametrize("name", SHARES)
def test_shares(name: str) -> None:
    target, expected = SHARES[name]
    assert shares_of(target) == expected


@pytest.mark.parametrize("name", SHARES)
def test_what_is_published_always_makes_a_hundred(name: str) -> None:
    _, expected = SHARES[name]
    found = [Share(revision=n, weight=weight, count=count, is_old=n == 1) for n, weight, count in expected]
    for ready in ({1: 1, 2: 1}, {1: 1}, {2: 1}, {}):
        weights = strategies.split_weights(found, ready, 1)
        assert not found or sum(weights.values()) == 100


def test_without_anything_active_or_wanted_there_are_no_shares() -> None:
    assert shares_of(revision(2, strategy=CANARY), active_revision=None) == ()
    assert shares_of(revision(2, strategy=CANARY), replicas=0) == ()


@pytest.mark.parametrize(
    ("surge", "unavailable", "replicas", "expected"),
    [("1", "0", 4, (1, 0)), ("25%", "25%", 10, (3, 2)), ("0", "10%", 4, (0, 1)), ("100%", "0", 3, (3, 0)), ("0", "1", 1, (0, 1))],
)
def test_bounds_are_rounded_as_kubernetes_rounds_them(
    surge: str, unavailable: str, replicas: int, expected: tuple[int, int]
) -> None:
    strategy = Strategy(max_surge=surge, max_unavailable=unavailable)
    assert (strategy.surge(replicas), strategy.unavailable(replicas)) == expected


@pytest.mark.parametrize("strategy", [Strategy(), CANARY, BLUE_GREEN, AB])
def test_a_strategy_survives_its_storage(strategy: Strategy) -> None:
    import json

    assert Strategy.from_json(json.loads(json.dumps(strategy.to_json()))) == strategy
    assert Strategy.from_json(None) == Strategy()
    assert Strategy.from_json({**strategy.to_json(), "from a later version": 1}) == strategy


def test_versions_that_share_a_number_are_told_apart() -> None:
    found = strategies.labels_of([revision(3, version="1.0"), revision(1, version="1.0"), revision(2, version="1.1")])
    assert found == {1: "1.0", 2: "1.1", 3: "1.0+r3"}


def test_what_a_caller_says_replaces_what_the_file_says_and_nothing_else() -> None:
    section = project.Strategy.model_validate({"type": "canary", "steps": [5, 50], "analysis": {"samples": 7, "alpha": 0.05}})
    asked = project.Strategy.model_validate({"interval": "5m", "analysis": {"samples": 9}})
    found = strategies.plan_strategy(section, asked)
    assert (found.kind, found.steps, found.interval_s) == (StrategyKind.CANARY, (5, 50), 300.0)
    assert (found.analysis.samples, found.analysis.alpha) == (9, 0.05)
    with pytest.raises(errors.Invalid) as caught:
        strategies.plan_strategy(project.Strategy(), project.Strategy(type="ab"))
    assert caught.value.code == "strategy.invalid"


# what comes next


def look(target: Revision, **more: Any) -> steps.Look:
    active = revision(1, RevisionPhase.SUPERSEDED if target.phase is RevisionPhase.ACTIVE else RevisionPhase.ACTIVE)
    one = deployment(active_revision=2 if target.phase is RevisionPhase.ACTIVE else 1)
    found = strategies.plan_shares(one, {1: active, 2: target}, NOW)
    given: dict[str, Any] = {
        "target": target, "active": active, "shares": found, "now": NOW,
        "ready": {share.revision: share.count for share in found},
    }  # fmt: skip
    return steps.Look(**{**given, **more})


GOOD = Sample(runs=100, errors=0, durations=(0.1,) * 100)
BROKEN = Sample(runs=20, errors=20)


def test_a_stage_begins_when_its_instances_are_ready() -> None:
    waiting = revision(2, strategy=CANARY)
    assert steps.plan_step(look(waiting, ready={1: 4})) is None
    assert steps.plan_step(look(waiting, ready={1: 3, 2: 1})) is None, "the stable version must be whole"
    step = steps.plan_step(look(waiting))
    assert isinstance(step, planner.Advance)
    assert (step.progress.since, step.progress.started, step.progress.stage) == (NOW, NOW, 0)


def watched(stage: int, since: float, **more: Any) -> Revision:
    return revision(2, strategy=CANARY, progress=Progress(stage=stage, since=since, started=since, **more))


def test_a_stage_lasts_its_time_and_needs_its_runs() -> None:
    early = steps.plan_step(look(watched(0, NOW - 30), stable=GOOD, fresh=GOOD))
    assert isinstance(early, planner.Advance)
    assert (early.progress.stage, early.progress.looks, early.message) == (0, 1, "")
    assert steps.plan_step(look(watched(0, NOW - 30, looks=1, looked_at=100), stable=GOOD, fresh=GOOD)) is None
    later = steps.plan_step(look(watched(0, NOW - 60), stable=GOOD, fresh=GOOD))
    assert isinstance(later, planner.Advance)
    assert (later.progress.stage, later.progress.since) == (1, None)
    few = steps.plan_step(look(watched(0, NOW - 600), stable=GOOD, fresh=Sample(runs=5, durations=(0.1,) * 5)))
    assert isinstance(few, planner.Advance)
    assert (few.progress.stage, few.progress.waiting) == (0, "runs")
    last = steps.plan_step(look(watched(2, NOW - 60), stable=GOOD, fresh=GOOD))
    assert isinstance(last, planner.Activate)
    assert last.outcome["by"] == "analysis"


def test_without_leave_to_promote_the_last_stage_waits() -> None:
    target = replace(watched(2, NOW - 60), strategy=replace(CANARY, automatic=False))
    step = steps.plan_step(look(target, stable=GOOD, fresh=GOOD))
    assert isinstance(step, planner.Advance)
    assert (step.waits, step.progress.waiting) == (True, "promotion")


def test_a_broken_canary_does_not_wait_for_the_end_of_its_stage() -> None:
    step = steps.plan_step(look(watched(0, NOW - 1), stable=GOOD, fresh=BROKEN))
    assert isinstance(step, planner.Fail)
    assert (step.back_to, step.problem["code"]) == (1, "rollout.more_errors")
    crashed = steps.plan_step(look(watched(0, NOW - 1), crashes={2: 3}))
    assert isinstance(crashed, planner.Fail)
    assert crashed.problem["code"] == "rollout.crashes"


def test_a_canary_that_swallows_its_runs_is_given_up() -> None:
    target = watched(0, NOW - 30, looks=1, looked_at=0)
    nothing = Sample()
    slow = Sample(runs=100, durations=(4.0,) * 100)
    stuck = steps.plan_step(look(target, stable=GOOD, fresh=nothing, still_s=11, meanwhile=30))
    assert isinstance(stuck, planner.Fail)
    assert stuck.problem["code"] == "rollout.stuck"
    assert steps.plan_step(look(target, stable=GOOD, fresh=nothing, still_s=5, meanwhile=30)) is None
    assert isinstance(steps.plan_step(look(target, stable=GOOD, fresh=nothing, still_s=11, meanwhile=0)), planner.Fail)
    sometimes_long = Sample(runs=100, durations=(0.1,) * 99 + (60.0,))
    assert steps.plan_step(look(target, stable=sometimes_long, fresh=nothing, still_s=100, meanwhile=5)) is None
    assert steps.plan_step(look(target, stable=Sample(runs=3), fresh=nothing, still_s=100, meanwhile=0)) is None
    assert steps.plan_step(look(target, stable=slow, fresh=nothing, still_s=15, meanwhile=30)) is None, (
        "its runs take long anyway"
    )


def test_stillness_begins_anew_with_every_run_that_ends() -> None:
    first = steps.note_stillness(None, 10.0, in_hand=5, stable=GOOD, fresh=Sample())
    assert first == steps.Still(since=10.0, fresh_runs=0, stable_runs=100)
    assert steps.note_stillness(first, 15.0, in_hand=5, stable=GOOD, fresh=Sample()) is first
    moved = steps.note_stillness(first, 20.0, in_hand=5, stable=GOOD, fresh=Sample(runs=1))
    assert moved is not None
    assert moved.since == 20.0
    assert steps.note_stillness(first, 20.0, in_hand=1, stable=GOOD, fresh=Sample()) is None


def test_blue_green_switches_by_itself_or_waits_for_a_word() -> None:
    switch = steps.plan_step(look(revision(2, strategy=BLUE_GREEN)))
    assert isinstance(switch, planner.Activate)
    assert switch.keeps_standby
    by_hand = replace(BLUE_GREEN, automatic=False)
    wait = steps.plan_step(look(revision(2, strategy=by_hand)))
    assert isinstance(wait, planner.Advance)
    assert wait.waits
    assert steps.plan_step(look(revision(2, strategy=by_hand, progress=wait.progress))) is None
    decided = replace(wait.progress, decision="promote", decided_by="key_1")
    promoted = steps.plan_step(look(revision(2, strategy=by_hand, progress=decided)))
    assert isinstance(promoted, planner.Activate)
    assert (promoted.outcome["by"], promoted.keeps_standby) == ("key_1", True)
    assert steps.plan_step(look(revision(2, strategy=by_hand, progress=decided), ready={1: 4, 2: 3})) is None


def test_after_a_switch_breakage_switches_back_while_blue_is_there() -> None:
    switched = revision(
        2, RevisionPhase.ACTIVE, strategy=BLUE_GREEN, progress=Progress(standby=1, standby_until=NOW + 60, since=NOW - 5)
    )
    back = steps.plan_step(look(switched, stable=GOOD, fresh=BROKEN))
    assert isinstance(back, planner.SwitchBack)
    assert steps.plan_step(look(switched, stable=GOOD, fresh=BROKEN, ready={2: 4})) is None, "nothing is there to go back to"
    assert isinstance(steps.plan_step(look(switched, crashes={2: 3})), planner.SwitchBack)
    manual = replace(switched, strategy=replace(BLUE_GREEN, automatic=False))
    assert steps.plan_step(look(manual, stable=GOOD, fresh=BROKEN)) is None


def test_a_test_goes_on_until_somebody_ends_it() -> None:
    started = steps.plan_step(look(revision(2, strategy=AB)))
    assert isinstance(started, planner.Advance)
    assert started.waits
    running = revision(2, strategy=AB, progress=started.progress)
    worse = Sample(runs=100, errors=20)
    assert steps.plan_step(look(running, stable=GOOD, fresh=worse, crashes={2: 9}, still_s=99)) is None, "that is for the report"
    collapsed = steps.plan_step(look(running, stable=GOOD, fresh=BROKEN, fresh_version="9.9"))
    assert isinstance(collapsed, planner.Fail)
    assert "9.9" in collapsed.problem["detail"]
    ended = steps.plan_step(look(replace(running, progress=replace(started.progress, decision="promote", winner=1))))
    assert isinstance(ended, planner.Activate)
    assert (ended.revision, ended.lead) == (1, 2)
