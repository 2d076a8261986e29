"""The planner, row by row, and driven to its end by a small model of a node."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.core.deployments import Target
from nexus.core.phases import InstancePhase, RevisionPhase
from nexus.hosting import planner
from nexus.hosting.planner import (
    Activate,
    Begin,
    Drain,
    Fail,
    Forget,
    Mint,
    Remove,
    Resume,
    Retire,
    Seen,
    Start,
    Stop,
    Wanted,
)

READY, FAILED, STARTING, STOPPING = InstancePhase.READY, InstancePhase.FAILED, InstancePhase.STARTING, InstancePhase.STOPPING


def want(**changes: Any) -> Wanted:
    given: dict[str, Any] = {
        "deployment_id": "dep",
        "target": Target.RUNNING,
        "replicas": 2,
        "revision": 2,
        "phase": RevisionPhase.ROLLING,
        "active": 1,
        "grace_s": {1: 60.0},
    }
    return Wanted(**{**given, **changes})


def see(name: str, revision: int, phase: InstancePhase | None, **more: Any) -> Seen:
    return Seen(**{"id": name, "revision": revision, "target": Target.RUNNING, "phase": phase, **more})


def retired(name: str, revision: int, phase: InstancePhase | None, **more: Any) -> Seen:
    return see(name, revision, phase, target=Target.STOPPED, **more)


def draining(name: str, revision: int, phase: InstancePhase | None = READY, **more: Any) -> Seen:
    return see(name, revision, phase, target=Target.DRAINING, **{"sessions": 1, **more})


SERVED = want(phase=RevisionPhase.ACTIVE, active=2, replicas=1, keeps=frozenset({1}), stop_after_s={1: 900.0})
NEW = see("n", 2, READY)
ROWS = {
    "an old one that keeps its sessions leaves the routes for new ones": (
        want(keeps=frozenset({1})),
        [see("a", 1, READY, sessions=1), see("b", 1, READY, sessions=1), see("c", 2, READY)],
        [Drain(instance_id="b")],
    ),
    "one that never was ready keeps nothing": (
        want(keeps=frozenset({1})),
        [see("a", 1, READY), see("b", 1, STARTING, sessions=0), see("c", 2, READY)],
        [Retire(instance_id="b")],
    ),
    "a revision that is out drains where it keeps its sessions": (
        replace(SERVED, out=frozenset({1})),
        [NEW, see("a", 1, READY)],
        [Drain(instance_id="a")],
    ),
    "a draining one stays while it has sessions": (SERVED, [NEW, draining("a", 1)], []),
    "and a little longer": (SERVED, [NEW, draining("a", 1, sessions=0, quiet_for_s=1)], []),
    "and goes without": (SERVED, [NEW, draining("a", 1, sessions=0, quiet_for_s=4)], [Retire(instance_id="a")]),
    "one that failed goes": (SERVED, [NEW, draining("a", 1, FAILED)], [Retire(instance_id="a")]),
    "one that is lost is asked for again": (SERVED, [NEW, draining("a", 1, None)], [Start(instance_id="a")]),
    "all go when their time is over": (
        replace(SERVED, keeps=frozenset()),
        [NEW, draining("a", 1), draining("b", 1)],
        [Retire(instance_id="a"), Retire(instance_id="b")],
    ),
    "of those that serve sessions together one waits for them": (
        SERVED,
        [NEW, *(draining(name, 1, sessions=None, served=True, quiet_for_s=idle) for name, idle in (("a", 70), ("b", 61)))],
        [Retire(instance_id="a")],
    ),
    "until they are idle": (
        SERVED,
        [NEW, draining("b", 1, sessions=None, served=True, quiet_for_s=901)],
        [Retire(instance_id="b")],
    ),
    "a version is woken once": (replace(SERVED, woken=frozenset({1})), [NEW], [Mint(revision=1, draining=True)]),
    "and not again": (replace(SERVED, woken=frozenset({1})), [NEW, draining("a", 1, STARTING)], []),
    "nor when it keeps nothing any more": (replace(SERVED, woken=frozenset({1}), keeps=frozenset()), [NEW], []),
    "what drains comes back when it is wanted again": (
        want(revision=1, phase=RevisionPhase.ACTIVE, active=1),
        [draining("a", 1), draining("b", 1), draining("c", 1)],
        [Resume(instance_id="a"), Resume(instance_id="b"), Retire(instance_id="c")],
    ),
    "deleting retires what drains": (want(target=Target.STOPPED), [draining("a", 1)], [Retire(instance_id="a")]),
    "a first deployment starts all its replicas": (
        want(active=None, phase=RevisionPhase.PENDING),
        [],
        [Begin(revision=2), Mint(revision=2), Mint(revision=2)],
    ),
    "a rollout starts one more than wanted": (want(), [see("a", 1, READY), see("b", 1, READY)], [Mint(revision=2)]),
    "nothing is taken away while the new one starts": (
        want(),
        [see("a", 1, READY), see("b", 1, READY), see("c", 2, STARTING)],
        [],
    ),
    "a ready new one lets an old one go": (
        want(),
        [see("a", 1, READY), see("b", 1, READY), see("c", 2, READY)],
        [Retire(instance_id="b")],
    ),
    "enough new ones let the last old one go": (
        want(),
        [see("b", 1, READY), see("c", 2, READY), see("d", 2, READY)],
        [Retire(instance_id="b")],
    ),
    "the rollout has ended once no old one is routed": (
        want(),
        [see("c", 2, READY), see("d", 2, READY), retired("b", 1, READY, unrouted_for_s=0.2)],
        [Activate(revision=2)],
    ),
    "a retired one drains before it is stopped": (
        want(phase=RevisionPhase.ACTIVE, active=2),
        [see("c", 2, READY), see("d", 2, READY), retired("b", 1, READY, unrouted_for_s=0.2)],
        [],
    ),
    "a drained one is stopped with its own patience": (
        want(phase=RevisionPhase.ACTIVE, active=2),
        [see("c", 2, READY), see("d", 2, READY), retired("b", 1, READY, unrouted_for_s=2)],
        [Stop(instance_id="b", grace_s=60.0)],
    ),
    "one that is stopping is left alone": (
        want(phase=RevisionPhase.ACTIVE, active=2),
        [see("c", 2, READY), see("d", 2, READY), retired("b", 1, STOPPING, unrouted_for_s=9)],
        [],
    ),
    "one that is gone is forgotten": (
        want(phase=RevisionPhase.ACTIVE, active=2),
        [see("c", 2, READY), see("d", 2, READY), retired("b", 1, None)],
        [Forget(instance_id="b")],
    ),
    "a lost instance is asked for again": (
        want(phase=RevisionPhase.ACTIVE, active=2),
        [see("c", 2, READY), see("d", 2, None)],
        [Start(instance_id="d")],
    ),
    "a failure for good ends the rollout": (
        want(),
        [see("a", 1, READY), see("b", 1, READY), see("c", 2, FAILED, problem={"code": "import.failed"})],
        [Fail(revision=2, back_to=1, instance_id="c", problem={"code": "import.failed"})],
    ),
    "with nothing to go back to, nothing is wanted": (
        want(active=None),
        [see("c", 2, FAILED, problem={"code": "x"})],
        [Fail(revision=2, back_to=None, instance_id="c", problem={"code": "x"})],
    ),
    "after a failure its instances go": (
        want(revision=None, phase=None, active=None),
        [see("c", 2, FAILED)],
        [Retire(instance_id="c")],
    ),
    "a failed instance of an active revision is not replaced at once": (
        want(phase=RevisionPhase.ACTIVE, active=2),
        [see("c", 2, READY), see("d", 2, FAILED, failed_for_s=1)],
        [],
    ),
    "but later": (
        want(phase=RevisionPhase.ACTIVE, active=2),
        [see("c", 2, READY), see("d", 2, FAILED, failed_for_s=30)],
        [Retire(instance_id="d"), Mint(revision=2)],
    ),
    "scaling up": (want(phase=RevisionPhase.ACTIVE, active=2, replicas=2), [see("c", 2, READY)], [Mint(revision=2)]),
    "scaling down lets the idle one go": (
        want(phase=RevisionPhase.ACTIVE, active=2, replicas=1),
        [see("c", 2, READY), see("d", 2, READY, active_runs=3)],
        [Retire(instance_id="c")],
    ),
    "scaling to nothing": (
        want(phase=RevisionPhase.ACTIVE, active=2, replicas=0),
        [see("c", 2, READY)],
        [Retire(instance_id="c")],
    ),
    "a superseded start makes room": (
        want(revision=3, active=1),
        [see("a", 1, READY), see("b", 1, READY), see("c", 2, STARTING)],
        [Retire(instance_id="c")],
    ),
    "a larger surge starts more at once": (
        want(replicas=3, surge=2),
        [see("a", 1, READY), see("b", 1, READY), see("c", 1, READY)],
        [Mint(revision=2), Mint(revision=2)],
    ),
    "without surge one goes first": (
        want(surge=0, unavailable=1),
        [see("a", 1, READY), see("b", 1, READY)],
        [Retire(instance_id="b")],
    ),
    "and is replaced": (want(surge=0, unavailable=1), [see("a", 1, READY), retired("b", 1, READY)], [Mint(revision=2)]),
    "side by side each revision has its number": (
        want(counts={1: 2, 2: 1}),
        [see("a", 1, READY), see("b", 1, READY)],
        [Mint(revision=2)],
    ),
    "side by side nothing is exchanged when the new one is ready": (
        want(counts={1: 2, 2: 1}),
        [see("a", 1, READY), see("b", 1, READY), see("c", 2, READY)],
        [],
    ),
    "side by side a lost stable instance is replaced": (
        want(counts={1: 2, 2: 1}),
        [see("a", 1, READY), see("c", 2, READY)],
        [Mint(revision=1)],
    ),
    "what is left of others stays until the stable revision is whole": (
        want(revision=3, counts={1: 2, 3: 1}),
        [see("a", 1, READY), see("b", 1, STARTING), see("c", 2, READY), see("d", 3, READY)],
        [],
    ),
    "and goes then": (
        want(revision=3, counts={1: 2, 3: 1}),
        [see("a", 1, READY), see("b", 1, READY), see("c", 2, READY), see("d", 3, READY)],
        [Retire(instance_id="c")],
    ),
    "a failed variant fails the whole test": (
        want(revision=3, counts={1: 1, 2: 1, 3: 1}),
        [see("a", 1, READY), see("b", 2, FAILED, problem={"code": "x"}), see("c", 3, READY)],
        [Fail(revision=3, back_to=1, instance_id="b", problem={"code": "x"})],
    ),
    "what was found wanting goes at once": (
        want(revision=1, phase=RevisionPhase.ACTIVE, active=1, out=frozenset({2})),
        [see("a", 1, READY), see("c", 2, READY)],
        [Retire(instance_id="c"), Mint(revision=1)],
    ),
    "deleting retires everything": (
        want(target=Target.STOPPED),
        [see("a", 1, READY), retired("b", 1, READY, unrouted_for_s=5)],
        [Stop(instance_id="b", grace_s=planner.STOP_ON_DELETE_S), Retire(instance_id="a")],
    ),
    "and ends in nothing": (want(target=Target.REMOVED), [], [Remove()]),
}


@pytest.mark.parametrize("name", ROWS)
def test_plan(name: str) -> None:
    wanted, seen, expected = ROWS[name]
    assert planner.plan(wanted, seen) == expected


def test_a_rolling_update_whose_instances_end_again_and_again_fails() -> None:
    crashing = [see("a", 1, READY), see("b", 1, READY), see("c", 2, STARTING, restarts=3)]
    (failure,) = planner.plan(want(), crashing)
    assert isinstance(failure, Fail)
    assert (failure.back_to, failure.problem["code"]) == (1, "rollout.crashes")
    assert planner.plan(want(active=None), crashing[2:]) != [], "a first version has nothing to go back to"
    assert not any(isinstance(action, Fail) for action in planner.plan(want(active=None), crashing[2:]))
    assert not any(isinstance(action, Fail) for action in planner.plan(want(phase=RevisionPhase.ACTIVE, active=2), crashing))


def test_a_rollout_that_never_ends_fails() -> None:
    (failure,) = planner.plan(want(rolling_for_s=planner.LONGEST_ROLLOUT_S + 1), [see("c", 2, STARTING)])
    assert isinstance(failure, Fail)
    assert failure.problem["code"] == "rollout.timeout"


class Node:
    """Applies plans to a picture: started instances become ready (or fail), stopped ones vanish, one step a turn."""

    def __init__(self, wanted: Wanted, seen: list[Seen], bad: frozenset[int]) -> None:
        self.wanted, self.seen, self.bad, self.minted = wanted, seen, bad, 0
        self.least_ready, self.most_alive = 1000, 0

    def _change(self, name: str, **changes: Any) -> None:
        self.seen = [replace(one, **changes) if one.id == name else one for one in self.seen]

    def turn(self) -> list[planner.Action]:
        actions = planner.plan(self.wanted, self.seen)
        for action in actions:
            self._apply(action)
        for one in self.seen:
            if one.target is Target.STOPPED:
                self._change(one.id, unrouted_for_s=one.unrouted_for_s + 2)
            elif one.phase is STARTING:
                self._change(one.id, phase=FAILED if one.revision in self.bad else READY)
        serving = [one for one in self.seen if one.is_ready]
        self.least_ready = min(self.least_ready, len(serving))
        self.most_alive = max(self.most_alive, sum(one.is_live for one in self.seen))
        return actions

    def _apply(self, action: planner.Action) -> None:
        match action:
            case Mint():
                self.minted += 1
                self.seen.append(see(f"new{self.minted:03}", action.revision, STARTING))
            case Start():
                self._change(action.instance_id, phase=STARTING)
            case Retire():
                self._change(action.instance_id, target=Target.STOPPED)
            case Drain():
                self._change(action.instance_id, target=Target.DRAINING)
            case Resume():
                self._change(action.instance_id, target=Target.RUNNING)
            case Stop():
                self._change(action.instance_id, phase=None)
            case Forget():
                self.seen = [one for one in self.seen if one.id != action.instance_id]
            case Begin():
                self.wanted = replace(self.wanted, phase=RevisionPhase.ROLLING)
            case Activate():
                self.wanted = replace(self.wanted, phase=RevisionPhase.ACTIVE, active=action.revision)
            case Fail():
                self.wanted = replace(self.wanted, revision=action.back_to, phase=RevisionPhase.ACTIVE)
            case Remove():
                pass


BOUNDS = st.tuples(st.integers(0, 4), st.integers(0, 3)).filter(any)


@given(sessions=st.lists(st.integers(0, 2), min_size=1, max_size=5), replicas=st.integers(1, 5), is_bad=st.booleans())
def test_no_rollout_takes_an_instance_from_its_sessions(sessions: list[int], replicas: int, is_bad: bool) -> None:
    node = Node(
        want(replicas=replicas, phase=RevisionPhase.PENDING, keeps=frozenset({1})),
        [see(f"old{number}", 1, READY, sessions=count, quiet_for_s=0 if count else 9) for number, count in enumerate(sessions)],
        frozenset({2}) if is_bad else frozenset(),
    )
    turns = 0
    while node.turn() or any(one.target is Target.STOPPED for one in node.seen):
        turns += 1
        assert turns < 200
    running = [one for one in node.seen if one.target is Target.RUNNING]
    assert ({one.revision for one in running}, len(running)) == ({1 if is_bad else 2}, replicas)
    if not is_bad:
        kept = {one.id for one in node.seen if one.target is Target.DRAINING}
        assert kept == {f"old{number}" for number, count in enumerate(sessions) if count}


@given(old=st.integers(1, 6), replicas=st.integers(1, 6), is_bad=st.booleans(), bounds=BOUNDS)
def test_every_rollout_ends_and_never_serves_with_less(old: int, replicas: int, is_bad: bool, bounds: tuple[int, int]) -> None:
    surge, unavailable = bounds
    node = Node(
        want(replicas=replicas, phase=RevisionPhase.PENDING, surge=surge, unavailable=unavailable),
        [see(f"old{number}", 1, READY) for number in range(old)],
        frozenset({2}) if is_bad else frozenset(),
    )
    turns = 0
    while node.turn():
        turns += 1
        assert turns < 200
    while any(one.target is Target.STOPPED for one in node.seen):
        node.turn()
    assert planner.plan(node.wanted, node.seen) == []
    assert {one.revision for one in node.seen} == {1 if is_bad else 2}
    assert len(node.seen) == replicas
    assert node.least_ready >= min(old, replicas - unavailable)
    assert node.most_alive <= max(old, replicas + surge)


@given(old=st.integers(0, 6), stable=st.integers(1, 6), fresh=st.integers(0, 6))
def test_side_by_side_comes_to_rest_with_exactly_its_numbers(old: int, stable: int, fresh: int) -> None:
    node = Node(
        want(revision=3, replicas=stable, counts={1: stable, 3: fresh}),
        [see(f"old{number}", 1, READY) for number in range(old)] + [see("stray", 2, READY)],
        frozenset(),
    )
    turns = 0
    while node.turn() or any(one.target is Target.STOPPED for one in node.seen):
        turns += 1
        assert turns < 200
    assert sum(one.revision == 1 for one in node.seen) == stable
    assert sum(one.revision == 3 for one in node.seen) == fresh
    assert len(node.seen) == stable + fresh
    assert node.least_ready >= min(old + 1, stable)
