"""What each verb makes of a deployment: pure functions from what is stored to what is stored next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nexus.core import errors
from nexus.core.deployments import Deployment, Instance, Revision, Scaling, Settings, Target, Version
from nexus.core.phases import RevisionPhase
from nexus.core.rollouts import Progress, Strategy, StrategyKind, Variant
from nexus.hosting import strategies
from nexus.wire import params

IN_HAND = strategies.IN_HAND


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRevision:
    """The revision to store, those in hand that it supersedes, and the deployment that wants it."""

    deployment: Deployment
    revision: Revision
    superseded: Sequence[Revision]


Arms = Mapping[str, tuple[Version, Settings]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a new revision is made of and how it takes over. `number`: where further variants come before it."""

    version_id: str
    version: str
    settings: Settings
    strategy: Strategy = field(default_factory=Strategy)
    number: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Switched:
    """Back on the colour that stood by: a new revision of it that is active at once and has its instances."""

    deployment: Deployment
    revision: Revision
    ended: Revision
    adopted: Sequence[Instance]


def is_same(current: Revision | None, start: Start) -> bool:
    """Whether a deployment already wants, or runs, exactly this; then there is nothing to roll. While it is on its way it must
    go the same way, too."""
    return (
        current is not None
        and current.phase in (*IN_HAND, RevisionPhase.ACTIVE)
        and current.version_id == start.version_id
        and current.settings == start.settings
        and (current.phase not in IN_HAND or strategies.is_same(current.strategy, start.strategy))
    )


def find_stable(deployment: Deployment, revisions: Sequence[Revision]) -> Revision | None:
    """The revision a restart or a resize starts from: the target, but not one that is still being tried beside another."""
    target = find_target(deployment, revisions)
    if target is None or target.phase not in IN_HAND or target.strategy.kind is StrategyKind.ROLLING:
        return target
    return next((one for one in revisions if one.number == deployment.active_revision), None)


def find_target(deployment: Deployment, revisions: Sequence[Revision]) -> Revision | None:
    return next((one for one in revisions if one.number == deployment.target_revision), None)


def plan_revision(
    deployment: Deployment, revisions: Sequence[Revision], start: Start, *, reason: str, by: str, now: float
) -> NewRevision:
    """A new revision becomes the target; what was on its way is superseded (the last deploy wins)."""
    number = start.number or max((one.number for one in revisions), default=0) + 1
    revision = Revision(
        deployment_id=deployment.id,
        number=number,
        tenant=deployment.tenant,
        version_id=start.version_id,
        version=start.version,
        phase=RevisionPhase.PENDING,
        reason=reason,
        replicas=deployment.replicas,
        settings=start.settings,
        created_at=now,
        created_by=by,
        strategy=start.strategy,
    )
    superseded = [
        replace(one, phase=RevisionPhase.SUPERSEDED, ended_at=now, problem=superseded_problem(one.number, number))
        for one in revisions
        if one.phase in IN_HAND
    ]
    wanted = replace(deployment, target=Target.RUNNING, target_revision=number, updated_at=now)
    return NewRevision(deployment=wanted, revision=revision, superseded=superseded)


def choose_start(
    deployment: Deployment, revisions: Sequence[Revision], strategy: Strategy, arms: Arms, version: Version
) -> Start:
    """Where nothing serves yet there is nothing to stand beside: the strategy becomes a plain rolling one, and an A/B test is
    refused (`Conflict`, `rollout.control_missing`)."""
    active = next((one for one in revisions if one.number == deployment.active_revision), None)
    if strategy.kind is not StrategyKind.AB:
        alone = active is None or deployment.replicas == 0
        chosen, settings = arms[version.version]
        fitting = strategies.as_rolling(strategy) if alone else strategy
        return Start(version_id=chosen.id, version=chosen.version, settings=settings, strategy=fitting)
    if active is None or deployment.replicas == 0:
        raise errors.Conflict(
            f"no version of {deployment.agent} serves in {deployment.environment} yet",
            code="rollout.control_missing",
            cause="an A/B test compares new versions with the one that is active",
            next_step=f"deploy the control first: nexus ai agent deploy {deployment.agent} --env {deployment.environment}",
        )
    numbered = number_variants(strategy, active, max(one.number for one in revisions) + 1)
    lead = max(numbered.variants, key=lambda variant: variant.revision)
    chosen, settings = arms[lead.version]
    return Start(version_id=chosen.id, version=chosen.version, settings=settings, strategy=numbered, number=lead.revision)


def plan_members(lead: Revision, variants: Sequence[Variant], arms: Arms) -> list[Revision]:
    """The further revisions of an A/B test: one for each variant that neither runs already nor is the lead itself. They are
    numbered before the lead, which so is the newest revision."""
    running = min((variant.revision for variant in variants), default=0)
    members = []
    for variant in variants:
        if variant.revision in (running, lead.number):
            continue
        version, settings = arms[variant.version]
        members.append(
            replace(
                lead,
                number=variant.revision,
                version_id=version.id,
                version=version.version,
                settings=settings,
                reason=f"variant {variant.name} of revision {lead.number}",
                progress=Progress(lead=lead.number),
            )
        )
    return members


def number_variants(strategy: Strategy, active: Revision, first: int) -> Strategy:
    """Say which revision serves each variant: the active one its own version, the others new ones from `first` on, the first of
    them the newest.

    `Conflict` (`rollout.control_missing`) when no variant is the version that runs now.
    """
    if all(variant.version != active.version for variant in strategy.variants):
        raise errors.Conflict(
            f"none of the variants is version {active.version}, which runs now",
            code="rollout.control_missing",
            cause="an A/B test compares new versions with the one that is active",
            next_step=f"name it: --variant control={active.version}:50",
        )
    numbers = iter(range(first + len(strategy.variants) - 2, first - 1, -1))
    numbered = tuple(
        replace(variant, revision=active.number if variant.version == active.version else next(numbers))
        for variant in strategy.variants
    )
    return replace(strategy, variants=numbered)


def superseded_problem(number: int, by: int) -> dict[str, Any]:
    return {
        "type": "urn:nexus:problem:deployment.superseded",
        "title": "deployment superseded",
        "status": 409,
        "code": strategies.OVERTAKEN,
        "kind": "conflict",
        "detail": f"revision {number} was superseded by revision {by} before it was active",
        "next_step": "look at what is deployed now: nexus ai agent history",
    }


def plan_switch_back(
    deployment: Deployment,
    revisions: Sequence[Revision],
    instances: Sequence[Instance],
    *,
    reason: str,
    by: str,
    now: float,
    problem: dict[str, Any],
) -> Switched | None:
    """The colour that stands by takes over at once, with its instances; None when nothing stands by (any more)."""
    current = find_target(deployment, revisions)
    if current is None or current.phase is not RevisionPhase.ACTIVE or now >= (current.progress.standby_until or 0.0):
        return None
    past = next((one for one in revisions if one.number == current.progress.standby), None)
    if past is None:
        return None
    number = max(one.number for one in revisions) + 1
    adopted = [replace(one, revision=number) for one in instances if one.revision == past.number and one.target is Target.RUNNING]
    if not adopted:
        return None
    outcome = {"decision": "switched back", "by": by, "reason": reason, "numbers": dict(problem.get("numbers") or {})}
    revision = replace(
        past,
        number=number,
        phase=RevisionPhase.ACTIVE,
        reason=f"switch back to revision {past.number}",
        replicas=deployment.replicas,
        created_at=now,
        created_by=by,
        ended_at=None,
        problem=None,
        strategy=strategies.as_rolling(past.strategy),
        progress=Progress(outcome=outcome),
    )
    ended = replace(
        current,
        phase=RevisionPhase.SUPERSEDED,
        ended_at=now,
        problem=problem,
        progress=replace(current.progress, standby=None, standby_until=None, outcome={**outcome, "decision": "rolled back"}),
    )
    wanted = replace(deployment, target_revision=number, active_revision=number, updated_at=now)
    return Switched(deployment=wanted, revision=revision, ended=ended, adopted=adopted)


def plan_failure(
    revisions: Sequence[Revision], target: Revision, *, problem: dict[str, Any], by: str, now: float
) -> list[Revision]:
    """A rollout given up: the target and what belongs to it have failed."""
    outcome = {
        "decision": "rolled back",
        "by": by,
        "reason": problem.get("cause") or problem.get("detail"),
        "numbers": dict(problem.get("numbers") or target.progress.numbers),
    }
    failed = [one for one in revisions if one.phase in IN_HAND and target.number in (one.number, one.progress.lead)]
    return [
        replace(
            one,
            phase=RevisionPhase.FAILED,
            ended_at=now,
            problem=problem,
            progress=replace(one.progress, outcome=outcome),
        )
        for one in failed
    ]


def aborted_problem(target: Revision, by: str) -> dict[str, Any]:
    return {
        "type": "urn:nexus:problem:rollout.aborted",
        "title": "rollout aborted",
        "status": 409,
        "code": "rollout.aborted",
        "kind": "conflict",
        "phase": "rollout",
        "detail": f"the rollout of version {target.version} was aborted by {by}",
        "numbers": dict(target.progress.numbers),
        "next_step": "mend it and deploy again",
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
