"""What each verb makes of a deployment: pure functions from what is stored to what is stored next."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nexus.core import errors
from nexus.core.deployments import Deployment, Revision, Scaling, Settings, Target
from nexus.core.phases import RevisionPhase
from nexus.wire import params

IN_HAND = (RevisionPhase.PENDING, RevisionPhase.ROLLING)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRevision:
    """The revision to store, the one in hand that it supersedes, and the deployment that wants it."""

    deployment: Deployment
    revision: Revision
    superseded: Revision | None


def is_same(current: Revision | None, version_id: str, settings: Settings) -> bool:
    """Whether a deployment already wants, or runs, exactly this; then there is nothing to roll."""
    return (
        current is not None
        and current.phase in (*IN_HAND, RevisionPhase.ACTIVE)
        and current.version_id == version_id
        and current.settings == settings
    )


def find_target(deployment: Deployment, revisions: Sequence[Revision]) -> Revision | None:
    return next((one for one in revisions if one.number == deployment.target_revision), None)


def plan_revision(
    deployment: Deployment,
    revisions: Sequence[Revision],
    *,
    version_id: str,
    version: str,
    settings: Settings,
    reason: str,
    by: str,
    now: float,
) -> NewRevision:
    """A new revision becomes the target; one that was on its way is superseded (the last deploy wins)."""
    number = max((one.number for one in revisions), default=0) + 1
    revision = Revision(
        deployment_id=deployment.id,
        number=number,
        tenant=deployment.tenant,
        version_id=version_id,
        version=version,
        phase=RevisionPhase.PENDING,
        reason=reason,
        replicas=deployment.replicas,
        settings=settings,
        created_at=now,
        created_by=by,
    )
    in_hand = next((one for one in revisions if one.phase in IN_HAND), None)
    superseded = None
    if in_hand is not None:
        superseded = replace(
            in_hand, phase=RevisionPhase.SUPERSEDED, ended_at=now, problem=superseded_problem(in_hand.number, number)
        )
    wanted = replace(deployment, target=Target.RUNNING, target_revision=number, updated_at=now)
    return NewRevision(deployment=wanted, revision=revision, superseded=superseded)


def superseded_problem(number: int, by: int) -> dict[str, Any]:
    return {
        "type": "urn:nexus:problem:deployment.superseded",
        "title": "deployment superseded",
        "status": 409,
        "code": "deployment.superseded",
        "kind": "conflict",
        "detail": f"revision {number} was superseded by revision {by} before it was active",
        "next_step": "look at what is deployed now: nexus ai agent history",
    }


def find_rollback(deployment: Deployment, revisions: Sequence[Revision], version: str | None) -> Revision:
    """The revision to go back to: the last one of `version`, or the last other one that was active.

    `Conflict` (`rollback.no_history`) or `NotFound` (`version.not_found`) when there is none.
    """
    served = [one for one in revisions if one.phase in (RevisionPhase.ACTIVE, RevisionPhase.SUPERSEDED) and one.problem is None]
    current = find_target(deployment, revisions)
    running = current.version_id if current is not None else None
    where = f"{deployment.agent} in {deployment.environment}"
    if version is not None:
        if found := next((one for one in served if one.version == version), None):
            return found
        raise errors.NotFound(
            f"version {version[:64]!r} never ran as {where}",
            code="version.not_found",
            cause=f"those that did: {', '.join(dict.fromkeys(one.version for one in served)) or 'none'}",
            next_step=f"see them: nexus ai agent history {deployment.agent} --env {deployment.environment}",
        )
    if found := next((one for one in served if one.version_id != running), None):
        return found
    raise errors.Conflict(
        f"there is nothing to roll {where} back to",
        code="rollback.no_history",
        cause="no other version was ever active there",
        next_step=f"see the history: nexus ai agent history {deployment.agent} --env {deployment.environment}",
    )


def plan_scaling_change(scaling: Scaling, asked: params.ScaleParams, defaults: tuple[int, int]) -> Scaling:
    """Bounds and targets as asked. Switching autoscaling on without any target takes the default CPU and memory targets."""
    changed = replace(
        scaling,
        minimum=_or(asked.min_replicas, scaling.minimum),
        maximum=_or(asked.max_replicas, scaling.maximum),
        enabled=scaling.enabled if asked.autoscale is None else asked.autoscale,
        target_cpu=asked.target_cpu or scaling.target_cpu,
        target_memory=asked.target_memory or scaling.target_memory,
    )
    if changed.minimum > changed.maximum:
        raise errors.Invalid(
            f"at least {changed.minimum} and at most {changed.maximum} replicas contradict each other",
            code="replicas.out_of_bounds",
            next_step="choose a minimum that is not above the maximum",
        )
    if changed.enabled and not (changed.target_cpu or changed.target_memory or changed.target_queue_depth):
        changed = replace(changed, target_cpu=defaults[0], target_memory=defaults[1])
    return changed


def _or(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value
