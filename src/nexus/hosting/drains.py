"""Whose sessions stay where they began after a rollout: which revisions still keep theirs, and until when. Pure.

A revision that was replaced keeps its sessions until `drain` is over (`hosting.session.drain`, else `max_lifetime`), unless

- it was found wanting: what failed is out at once, for its own sessions too;
- the same version serves again: its sessions go on there, and lose nothing that belongs to the version;
- secrets changed since: no instance goes on with the old ones;
- it lies too many revisions back (`REMEMBERED`), so that frequent deploys leave a bounded number of old versions running;
- a later version took its sessions along (`on_update: move`), or somebody told them to move (`Progress.released`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nexus.core import errors
from nexus.core.deployments import Deployment, Instance, Revision, Target
from nexus.core.phases import RevisionPhase
from nexus.hosting import strategies
from nexus.ports import hosting_store

MOVE = "move"
_MAX_LIFETIME_S = 8 * 3600.0
_STOP_AFTER_S = 900.0


def find_keeping(one: Deployment, revisions: Mapping[int, Revision], now: float) -> frozenset[int]:
    """The revisions whose sessions stay on them when something else takes the new ones. `now`: seconds since the epoch."""
    target = revisions.get(one.target_revision or 0)
    if target is None or one.target is not Target.RUNNING or one.replicas == 0:
        return frozenset()
    serving = [each for each in revisions.values() if each.phase is RevisionPhase.ACTIVE]
    here = {each.version_id: each.number for each in serving}
    moved = max((each.number for each in revisions.values() if _takes_along(each, target)), default=0)
    oldest = max(moved, (one.active_revision or target.number) - hosting_store.REMEMBERED)
    return frozenset(
        number
        for number, each in revisions.items()
        if number != target.number
        and number >= oldest
        and not _is_wanting(each)
        and here.get(each.version_id, number) == number
        and each.settings.secrets_stamp == target.settings.secrets_stamp
        and not each.progress.released
        and (each.ended_at is None or now < each.ended_at + drain_s(each))
    )


def find_wakeable(one: Deployment, revisions: Mapping[int, Revision], now: float) -> frozenset[int]:
    """Those of them that have been replaced, of each version the newest: an instance may be started for a session of theirs."""
    gone = sorted(number for number in find_keeping(one, revisions, now) if revisions[number].phase is RevisionPhase.SUPERSEDED)
    return frozenset({revisions[number].version: number for number in gone}.values())


def plan_release(one: Deployment, revisions: Sequence[Revision], version: str) -> list[Revision]:
    """The old revisions of a version, letting go of their sessions.

    `Conflict` (`session.version_serves`) when that version takes new sessions, `NotFound` (`version.not_found`) when it did
    never run.
    """
    place = f"{one.agent} in {one.environment}"
    mine = [each for each in revisions if each.version == version]
    if not mine:
        raise errors.NotFound(
            f"version {version[:64]!r} never ran as {place}",
            code="version.not_found",
            next_step=f"see the versions: nexus ai agent history {one.agent} --env {one.environment}",
        )
    if any(each.number in (one.target_revision, one.active_revision) for each in mine):
        raise errors.Conflict(
            f"version {version} is the one that {place} serves",
            code="session.version_serves",
            cause="there is no other version that its sessions could go on on",
            next_step="name the version before, or stop a session by its id",
        )
    return [replace(each, progress=replace(each.progress, released=True)) for each in mine if not each.progress.released]


def plan_return(instances: Sequence[Instance], revisions: Sequence[Revision], made: Revision) -> list[Instance]:
    """Draining instances that are what a new revision wants: they become its own, with the sessions they have, and the planner
    lets them take new ones again."""
    alike = {each.number for each in revisions if each.version_id == made.version_id and each.settings == made.settings}
    return [replace(one, revision=made.number) for one in instances if one.target is Target.DRAINING and one.revision in alike]


def drain_s(revision: Revision) -> float:
    """How long its sessions may go on once it is replaced."""
    session = _session(revision)
    return _number(session.get("drain_s"), _number(session.get("max_lifetime_s"), _MAX_LIFETIME_S))


def stop_after_s(revision: Revision) -> float:
    """For how long a session of it must be idle to need no worker."""
    return _number(_session(revision).get("stop_after_s"), _STOP_AFTER_S)


def _takes_along(each: Revision, target: Revision) -> bool:
    served = each.phase is RevisionPhase.ACTIVE or (each.phase is RevisionPhase.SUPERSEDED and each.problem is None)
    return _session(each).get("on_update") == MOVE and (served or each.number == target.number)


def _is_wanting(each: Revision) -> bool:
    code = each.problem.get("code") if each.problem is not None else None
    return each.phase is RevisionPhase.FAILED or code not in (None, strategies.NOT_CHOSEN, strategies.OVERTAKEN)


def _session(revision: Revision) -> Mapping[str, Any]:
    given = revision.settings.options.get("session")
    return given if isinstance(given, Mapping) else {}


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default
