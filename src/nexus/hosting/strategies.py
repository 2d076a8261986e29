"""A strategy as data: from what was asked and how far it is, to each revision's share of traffic and number of instances. Pure.

A rollout goes *side by side* when old and new serve (or stand ready) together with fixed numbers: blue-green, canary, A/B.
Plain rolling has no shares: every ready instance serves, and `planner` exchanges one for another.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from nexus.core import errors
from nexus.core.deployments import Deployment, Revision
from nexus.core.phases import RevisionPhase
from nexus.core.rollouts import Analysis, Strategy, StrategyKind, Variant
from nexus.wire import project

IN_HAND = (RevisionPhase.PENDING, RevisionPhase.ROLLING)
PROMOTE = "promote"
NOT_CHOSEN = "rollout.not_chosen"
OVERTAKEN = "deployment.superseded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one revision has at this moment of a rollout: per cent of new sessions, and instances. An old one without a share
    stays in the routes, for the sessions that began on it."""

    revision: int
    weight: int
    count: int
    is_old: bool = False

    @property
    def serves(self) -> bool:
        return self.is_old or self.weight > 0


def plan_strategy(section: project.Strategy, asked: project.Strategy | None) -> Strategy:
    """The config's strategy with what the caller said in place of it. `Invalid` (`strategy.invalid`) when they contradict."""
    given = _merge(section, asked) if asked is not None else section
    kind = StrategyKind(given.type)
    if kind is StrategyKind.AB and len(given.variants) < 2:
        raise errors.Invalid(
            "an A/B test needs two variants or more",
            code="strategy.invalid",
            next_step="name them: --variant control=1.0.0:50 --variant treatment=1.1.0:50",
        )
    if kind is not StrategyKind.AB and given.variants:
        raise errors.Invalid(
            f"variants belong to an A/B test, not to {kind.value}",
            code="strategy.invalid",
            next_step="add --strategy ab, or leave the variants out",
        )
    return Strategy(
        kind=kind,
        max_surge=str(given.max_surge),
        max_unavailable=str(given.max_unavailable),
        automatic=given.auto_promote,
        keep_s=given.keep,
        steps=tuple(given.steps),
        interval_s=given.interval,
        split_by=given.split_by,
        variants=tuple(Variant(name=one.name, version=one.version, weight=one.weight) for one in given.variants),
        analysis=Analysis(
            alpha=given.analysis.alpha,
            samples=given.analysis.samples,
            error_margin=given.analysis.error_margin,
            latency_ratio=given.analysis.latency_ratio,
            latency_margin_s=given.analysis.latency_margin,
        ),
    )


def _merge(section: project.Strategy, asked: project.Strategy) -> project.Strategy:
    said = {name: getattr(asked, name) for name in asked.model_fields_set}
    if "analysis" in said:
        rules = {name: getattr(asked.analysis, name) for name in asked.analysis.model_fields_set}
        said["analysis"] = section.analysis.model_copy(update=rules)
    if said.get("type", "ab") != "ab" and "variants" not in said:
        said["variants"] = []
    return section.model_copy(update=said)


def as_rolling(strategy: Strategy) -> Strategy:
    """The same bounds without the rest: for restarts, rollbacks and first deployments, which have nothing to be compared."""
    return replace(strategy, kind=StrategyKind.ROLLING, variants=())


def is_same(one: Strategy, other: Strategy) -> bool:
    """Whether two strategies ask for the same; which revisions serve the variants does not count."""
    return _unnumbered(one) == _unnumbered(other)


def _unnumbered(strategy: Strategy) -> Strategy:
    return replace(strategy, variants=tuple(replace(variant, revision=0) for variant in strategy.variants))


def plan_shares(deployment: Deployment, revisions: Mapping[int, Revision], now: float) -> tuple[Share, ...]:
    """The shares of a rollout side by side, the old revision first; none while every ready instance serves alike."""
    target = revisions.get(deployment.target_revision or 0)
    if target is None or deployment.replicas == 0:
        return ()
    if target.phase is RevisionPhase.ACTIVE:
        return _standing_by(target, revisions, deployment.replicas, now)
    active = revisions.get(deployment.active_revision or 0)
    if target.phase not in IN_HAND or active is None or active.number == target.number:
        return ()
    if target.strategy.kind is StrategyKind.ROLLING:
        return ()
    if target.strategy.kind is StrategyKind.AB:
        return _variants(target, active, revisions, deployment.replicas)
    weight = _weight(target)
    old = Share(revision=active.number, weight=100 - weight, count=deployment.replicas, is_old=True)
    return old, Share(revision=target.number, weight=weight, count=_count(target, deployment.replicas))


def _weight(target: Revision) -> int:
    """A stage's share is given once its instances are ready; until then the last stage's holds."""
    if target.strategy.kind is not StrategyKind.CANARY:
        return 0
    stage = target.progress.stage if target.progress.since is not None else target.progress.stage - 1
    return target.strategy.steps[min(stage, len(target.strategy.steps) - 1)] if stage >= 0 else 0


def _count(target: Revision, replicas: int) -> int:
    if target.strategy.kind is not StrategyKind.CANARY or target.progress.decision == PROMOTE:
        return replicas
    return part_of(replicas, target.strategy.steps[min(target.progress.stage, len(target.strategy.steps) - 1)])


def _standing_by(target: Revision, revisions: Mapping[int, Revision], replicas: int, now: float) -> tuple[Share, ...]:
    standby = revisions.get(target.progress.standby or 0)
    if standby is None or now >= (target.progress.standby_until or 0.0):
        return ()
    return (
        Share(revision=standby.number, weight=0, count=replicas, is_old=True),
        Share(revision=target.number, weight=100, count=replicas),
    )


def _variants(target: Revision, active: Revision, revisions: Mapping[int, Revision], replicas: int) -> tuple[Share, ...]:
    progress, shares = target.progress, []
    serving = progress.since is not None
    winner = (progress.winner or target.number) if progress.decision == PROMOTE else None
    for variant in target.strategy.variants:
        if variant.revision not in revisions:
            continue
        is_old = variant.revision == active.number
        whole = variant.revision == winner or (is_old and not serving)
        share = Share(
            revision=variant.revision,
            weight=variant.weight if serving else 100 if is_old else 0,
            count=replicas if whole else part_of(replicas, variant.weight),
            is_old=is_old,
        )
        shares.append(share)
    return tuple(shares)


def part_of(replicas: int, percent: int) -> int:
    """Instances for a share of the traffic: rounded up, at least one."""
    return max(1, math.ceil(replicas * percent / 100))


def find_out(revisions: Mapping[int, Revision], shares: Iterable[Share]) -> frozenset[int]:
    """The revisions that serve nothing any more, at once: what was tried beside another and did not stay, and what has been
    replaced by something that serves. A rolling update that was overtaken half-way is not among them: its instances carry."""
    shared = {share.revision for share in shares}
    return frozenset(number for number, one in revisions.items() if number not in shared and _is_out(one))


def _is_out(one: Revision) -> bool:
    if one.phase is RevisionPhase.SUPERSEDED:
        return one.problem is None or one.strategy.kind is not StrategyKind.ROLLING
    return one.phase is RevisionPhase.FAILED and one.strategy.kind is not StrategyKind.ROLLING


def labels_of(revisions: Iterable[Revision]) -> dict[int, str]:
    """What routes and run records call each revision: its version, told apart (`1.0.0+r7`) where an older one has the same."""
    labels: dict[int, str] = {}
    for one in sorted(revisions, key=lambda revision: revision.number):
        labels[one.number] = f"{one.version}+r{one.number}" if one.version in labels.values() else one.version
    return labels


def split_weights(shares: Iterable[Share], ready: Mapping[int, int], stable: int) -> dict[int, int]:
    """Weights to publish for every revision that serves, summing to 100. A new revision without a ready instance lends its share
    to the stable one."""
    weights = {share.revision: share.weight for share in shares if share.serves}
    for number in [number for number, weight in weights.items() if number != stable and weight and not ready.get(number)]:
        if ready.get(stable):
            weights[stable] = weights.get(stable, 0) + weights.pop(number)
    return weights
