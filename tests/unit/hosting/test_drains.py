"""Which versions keep their sessions after they were replaced, case by case."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from nexus.core import errors
from nexus.core.deployments import Deployment, Revision, Scaling, Settings, Target
from nexus.core.phases import RevisionPhase
from nexus.core.rollouts import Progress
from nexus.hosting import drains

ACTIVE, FAILED, ROLLING, SUPERSEDED = (
    RevisionPhase.ACTIVE,
    RevisionPhase.FAILED,
    RevisionPhase.ROLLING,
    RevisionPhase.SUPERSEDED,
)
NOW = 1_000_000.0


def deployment(target: int, active: int | None, **more: Any) -> Deployment:
    given = Deployment(
        id="dep", tenant="t", agent="a", environment="production", target=Target.RUNNING, target_revision=target,
        active_revision=active, replicas=1, scaling=Scaling(minimum=1, maximum=2), created_at=0.0, updated_at=0.0,
    )  # fmt: skip
    return replace(given, **more)


def revision(
    number: int, phase: RevisionPhase, version: str = "", *, ago: float = 60.0, stamp: str = "s", **more: Any
) -> Revision:
    version = version or f"{number}.0.0"
    session = more.pop("session", {})
    return Revision(
        deployment_id="dep", number=number, tenant="t", version_id=f"ver_{version}", version=version, phase=phase, reason="",
        replicas=1, created_at=0.0, created_by="", ended_at=NOW - ago if phase is SUPERSEDED else None,
        settings=Settings(entrypoint="", package_digest="", secrets_stamp=stamp, options={"session": session}), **more,
    )  # fmt: skip


def find(one: Deployment, *revisions: Revision) -> set[int]:
    return set(drains.find_keeping(one, {each.number: each for each in revisions}, NOW))


V1, V2 = revision(1, SUPERSEDED), revision(2, ACTIVE)
CASES: Mapping[str, tuple[Deployment, list[Revision], set[int]]] = {
    "what was replaced": (deployment(2, 2), [V1, V2], {1}),
    "what is being replaced": (deployment(2, 1), [revision(1, ACTIVE), revision(2, ROLLING)], {1}),
    "not for ever": (deployment(2, 2), [revision(1, SUPERSEDED, ago=9 * 3600), V2], set()),
    "as long as it says": (deployment(2, 2), [revision(1, SUPERSEDED, ago=90, session={"drain_s": 80}), V2], set()),
    "by default as long as its sessions may live": (
        deployment(2, 2),
        [revision(1, SUPERSEDED, ago=90, session={"max_lifetime_s": 80}), V2],
        set(),
    ),
    "not what failed": (deployment(3, 3), [V1, revision(2, FAILED), revision(3, ACTIVE)], {1}),
    "not what was switched back from": (
        deployment(3, 3),
        [revision(2, SUPERSEDED, problem={"code": "rollout.more_errors"}), revision(3, ACTIVE)],
        set(),
    ),
    "an arm that was not chosen": (
        deployment(2, 2),
        [revision(1, SUPERSEDED, problem={"code": "rollout.not_chosen"}), V2],
        {1},
    ),
    "not where the same version serves": (deployment(3, 3), [V1, revision(3, ACTIVE, "1.0.0")], set()),
    "but until it does": (deployment(3, 2), [V1, V2, revision(3, ROLLING, "1.0.0")], {1, 2}),
    "not with old secrets": (deployment(2, 2), [V1, revision(2, ACTIVE, stamp="new")], set()),
    "not what a later version took along": (
        deployment(3, 3),
        [V1, revision(2, SUPERSEDED, session={"on_update": "move"}), revision(3, ACTIVE)],
        {2},
    ),
    "not beside a version that takes all along": (
        deployment(2, 1),
        [revision(1, ACTIVE), revision(2, ROLLING, session={"on_update": "move"})],
        set(),
    ),
    "though one that failed takes nobody along": (
        deployment(3, 3),
        [V1, revision(2, FAILED, session={"on_update": "move"}), revision(3, ACTIVE)],
        {1},
    ),
    "not what let go": (deployment(2, 2), [replace(V1, progress=Progress(released=True)), V2], set()),
    "not what lies far back": (
        deployment(20, 20),
        [*(revision(number, SUPERSEDED) for number in range(1, 20)), revision(20, ACTIVE)],
        set(range(12, 20)),
    ),
    "nothing when nothing is to run": (deployment(2, 2, replicas=0), [V1, V2], set()),
}


@pytest.mark.parametrize("case", CASES)
def test_which_keep_their_sessions(case: str) -> None:
    one, revisions, expected = CASES[case]
    assert find(one, *revisions) == expected


def test_of_each_version_the_newest_is_woken_and_none_that_still_serves() -> None:
    revisions = [V1, revision(2, SUPERSEDED, "1.0.0"), revision(3, ACTIVE), revision(4, ROLLING)]
    assert drains.find_wakeable(deployment(4, 3), {one.number: one for one in revisions}, NOW) == {2}


def test_a_version_lets_go_of_its_sessions_unless_it_serves() -> None:
    (gone,) = drains.plan_release(deployment(2, 2), [V2, V1], "1.0.0")
    assert (gone.number, gone.progress.released) == (1, True)
    assert drains.plan_release(deployment(2, 2), [V2, gone], "1.0.0") == []
    with pytest.raises(errors.Conflict) as serves:
        drains.plan_release(deployment(2, 2), [V2, V1], "2.0.0")
    with pytest.raises(errors.NotFound) as absent:
        drains.plan_release(deployment(2, 2), [V2, V1], "9.9.9")
    assert (serves.value.code, absent.value.code) == ("session.version_serves", "version.not_found")
