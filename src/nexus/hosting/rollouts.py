"""Verbs on a rollout: promote it, abort it, say where it is, report how its versions compare. Who calls: `api.rollouts`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nexus.core import errors
from nexus.core.deployments import Deployment, Instance, Revision, Target
from nexus.core.instances import InstanceStatus
from nexus.core.phases import InstancePhase, RevisionPhase
from nexus.core.principals import Action, Principal
from nexus.core.rollouts import StrategyKind
from nexus.hosting import changes, comparison, executor, rollout_looks, service, strategies
from nexus.ports import run_samples
from nexus.wire import views

CONFIDENCE = 0.95
_REPORT_RUNS = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scene:
    """A deployment with everything a view of its rollout needs. `target` is the newest rollout, under way or ended."""

    deployment: Deployment
    revisions: Mapping[int, Revision]
    target: Revision
    stable: Revision | None


class RolloutService:
    """Over the hosting room; `samples` None: runs are not known, and nothing is said about them."""

    def __init__(self, hosting: service.HostingService, samples: run_samples.RunSamples | None) -> None:
        self._hosting = hosting
        self._samples = samples

    async def promote(
        self, caller: Principal, agent: str, environment: str | None, variant: str | None = None
    ) -> service.Deployed:
        """Make the new version (or a variant of an A/B test) the only one, as soon as all its instances are ready."""
        place = await self._hosting.environment_of(caller, agent, environment)
        service.require(caller, Action.DEPLOY, agent, place)
        async with self._hosting.store.change(caller.tenant, agent, place) as change:
            deployment = service.existing(change.deployment, agent, place)
            revisions = await change.revisions()
            target = changes.find_target(deployment, revisions)
            if target is None or target.phase not in changes.IN_HAND or target.strategy.kind is StrategyKind.ROLLING:
                raise errors.Conflict(
                    f"nothing of {agent} in {place} waits to be promoted",
                    code="rollout.nothing_to_promote",
                    cause="a rolling update ends by itself, and no other rollout is under way",
                    next_step=f"see where it is: nexus ai agent rollout status {agent} --env {place}",
                )
            decided = replace(
                target.progress,
                decision=strategies.PROMOTE,
                decided_by=caller.id,
                winner=_winner(target, variant),
                waiting="instances",
            )
            await change.put_revision(replace(target, progress=decided))
            event = {"phase": target.phase.value, "message": f"promoted by {caller.id}", "done": False}
            await change.add_event(target.number, self._hosting.now(), event)
            result = service.Deployed(deployment=deployment, revisions=await change.revisions())
        self._hosting.wake()
        return result

    async def abort(self, caller: Principal, agent: str, environment: str | None) -> service.Deployed:
        """Give a rollout up and leave all traffic to the version before; after a blue-green switch, switch back at once."""
        place = await self._hosting.environment_of(caller, agent, environment)
        service.require(caller, Action.DEPLOY, agent, place)
        async with self._hosting.store.change(caller.tenant, agent, place) as change:
            deployment = service.existing(change.deployment, agent, place)
            now = self._hosting.now()
            target = changes.find_target(deployment, await change.revisions())
            problem = changes.aborted_problem(target, caller.id) if target is not None else {}
            if target is not None and target.phase in changes.IN_HAND:
                await executor.put_failure(change, target, problem=problem, by=caller.id, at=now, said="was aborted")
            elif not await executor.put_switch_back(
                change, reason=f"aborted by {caller.id}", by=caller.id, at=now, problem=problem
            ):
                raise errors.Conflict(
                    f"there is no rollout of {agent} in {place} to abort",
                    code="rollout.nothing_to_abort",
                    cause="the last one has ended, and no old version stands by",
                    next_step=f"go back to the version before: nexus ai agent rollback {agent} --env {place}",
                )
            wanted = change.deployment or deployment
            result = service.Deployed(deployment=wanted, revisions=await change.revisions())
        self._hosting.wake()
        return result

    async def status(self, caller: Principal, agent: str, environment: str | None) -> views.RolloutView:
        """Where the rollout in hand is, or how the last one ended."""
        scene = await self._scene(caller, agent, environment)
        one, target, now = scene.deployment, scene.target, self._hosting.now()
        shares = strategies.plan_shares(one, scene.revisions, now)
        records = await self._hosting.store.instances(one.tenant, one.id)
        samples = await self._samples_of(scene)
        progress, strategy = target.progress, target.strategy
        staged = strategy.kind is StrategyKind.CANARY
        standing_by = progress.standby is not None and now < (progress.standby_until or 0.0)
        timed = staged and target.phase in changes.IN_HAND and progress.since is not None and not progress.waiting
        return views.RolloutView(
            agent=one.agent,
            environment=one.environment,
            deployment_id=one.id,
            revision=target.number,
            version=target.version,
            strategy=strategy.kind.value,
            phase=target.phase.value,
            stage=progress.stage + 1 if staged else 0,
            stages=list(strategy.steps) if staged else [],
            waiting=_waiting(target),
            next_at=(progress.since or 0.0) + strategy.interval_s if timed else None,
            standby_until=progress.standby_until if standing_by else None,
            shares=self._shares(scene, shares, records, samples),
            outcome=dict(progress.outcome) or None,
            problem=dict(target.problem) if target.problem is not None else None,
        )

    async def report(self, caller: Principal, agent: str, environment: str | None) -> views.RolloutReport:
        """How the versions of the newest side-by-side rollout compare, with confidence intervals."""
        scene = await self._scene(caller, agent, environment, compared=True)
        one, target = scene.deployment, scene.target
        if scene.stable is None or target.progress.started is None:
            raise errors.Conflict(
                f"{one.agent} in {one.environment} has no two versions to compare",
                code="rollout.nothing_to_compare",
                cause="no canary, blue-green or A/B rollout has begun to serve",
                next_step="deploy with --strategy canary or --strategy ab",
            )
        arms = _arms(target, scene.stable)
        samples = await self._samples_of(scene, limit=_REPORT_RUNS)
        control = samples.get(arms[0].version, run_samples.Sample())
        return views.RolloutReport(
            agent=one.agent,
            environment=one.environment,
            revision=target.number,
            strategy=target.strategy.kind.value,
            phase=target.phase.value,
            since=target.progress.started,
            until=_ended(target),
            confidence=CONFIDENCE,
            control=arms[0].name,
            variants=[
                render_variant(arm, samples.get(arm.version, run_samples.Sample()), None if at == 0 else control)
                for at, arm in enumerate(arms)
            ],
        )

    async def _scene(self, caller: Principal, agent: str, environment: str | None, *, compared: bool = False) -> _Scene:
        place = await self._hosting.environment_of(caller, agent, environment)
        service.require(caller, Action.READ, agent, place)
        found = await self._hosting.history(caller, agent, place)
        revisions = {one.number: one for one in found.revisions}
        leads = [one for one in found.revisions if one.progress.lead is None]
        target = next((one for one in leads if not compared or (one.progress.started is not None and _is_compared(one))), None)
        if target is None:
            raise errors.Conflict(
                f"{agent} in {place} has no rollout to show",
                code="rollout.nothing_to_compare" if compared else "rollout.none",
                cause="no canary, blue-green or A/B rollout has begun to serve" if compared else "nothing was deployed",
                next_step="deploy with --strategy canary or --strategy ab" if compared else f"nexus ai agent deploy {agent}",
            )
        return _Scene(
            deployment=found.deployment, revisions=revisions, target=target, stable=_stable(found.deployment, target, revisions)
        )

    async def _samples_of(self, scene: _Scene, limit: int = 20_000) -> Mapping[str, run_samples.Sample]:
        """Runs since the rollout began to serve, by what routes call each version."""
        target = scene.target
        if self._samples is None or target.progress.started is None:
            return {}
        window = run_samples.Window(
            tenant=scene.deployment.tenant,
            agent=scene.deployment.agent,
            deployment_id=scene.deployment.id,
            since=target.progress.started,
            until=_ended(target),
            limit=limit,
        )
        return await self._samples.by_version(window)

    def _shares(
        self,
        scene: _Scene,
        shares: tuple[strategies.Share, ...],
        records: Sequence[Instance],
        samples: Mapping[str, run_samples.Sample],
    ) -> list[views.ShareView]:
        statuses = self._hosting.statuses()
        one, target = scene.deployment, scene.target
        planned = {share.revision: share for share in shares}
        running = [each for each in records if each.target is Target.RUNNING]
        resting = [each for each in records if each.target is Target.DRAINING]
        shown = sorted({*planned, *(each.revision for each in (*running, *resting))} & scene.revisions.keys())
        labels = strategies.labels_of(scene.revisions[number] for number in shown)
        ready = {number: sum(_is_ready(each, statuses) for each in running if each.revision == number) for number in shown}
        published = strategies.split_weights(shares, ready, one.active_revision or 0)
        total = sum(ready.values())
        found = []
        for number in shown:
            label = labels[number]
            spread = round(100 * ready[number] / total) if total else 0
            weight = published.get(number, 0) if shares else spread
            share = planned.get(number)
            wanted = share.count if share is not None else one.replicas if number == one.target_revision else 0
            sample = samples.get(label, run_samples.Sample())
            found.append(
                views.ShareView(
                    revision=number,
                    version=label,
                    role=_role(scene.revisions[number], one, target),
                    weight=weight,
                    wanted=wanted,
                    ready=ready[number],
                    **_numbers(sample),
                    **_drained([each for each in resting if each.revision == number], statuses),
                )
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    name: str
    version: str
    weight: int


def render_variant(arm: Arm, sample: run_samples.Sample, control: run_samples.Sample | None) -> views.VariantView:
    """One arm's numbers and, but for the control itself, what sets it apart from the control."""
    view = views.VariantView(name=arm.name, version=arm.version, weight=arm.weight, **_numbers(sample))
    if control is None:
        return view.model_copy(update={"verdict": "control"})
    rates = comparison.compare_rates(control.errors, control.runs, sample.errors, sample.runs, CONFIDENCE)
    shift = comparison.compare_durations(control.durations, sample.durations, CONFIDENCE)
    enough = min(control.runs, sample.runs) > 0
    return view.model_copy(
        update={
            "errors_vs_control": views.RateDifferenceView(difference=rates.difference, low=rates.low, high=rates.high, p=rates.p)
            if enough
            else None,
            "latency_vs_control": views.ShiftView(
                shift_s=shift.shift, low_s=shift.low, high_s=shift.high, p=shift.p, superiority=shift.superiority
            )
            if shift is not None
            else None,
            "verdict": _verdict(rates if enough else None, shift),
        }
    )


def _verdict(rates: comparison.RateDifference | None, shift: comparison.Shift | None) -> str:
    words = []
    if rates is not None and rates.p < 1 - CONFIDENCE:
        words.append("fails more often" if rates.difference > 0 else "fails less often")
    if shift is not None and shift.p < 1 - CONFIDENCE:
        words.append("slower" if shift.shift > 0 else "faster")
    if words:
        return " and ".join(words)
    return "no difference shown" if rates is not None else "no runs to compare yet"


def _numbers(sample: run_samples.Sample) -> dict[str, Any]:
    return {
        "runs": sample.runs,
        "errors": sample.errors,
        "error_rate": sample.errors / sample.runs if sample.runs else 0.0,
        "p50_s": comparison.quantile_of(sample.durations, 0.5),
        "p95_s": comparison.quantile_of(sample.durations, 0.95),
    }


def _winner(target: Revision, variant: str | None) -> int | None:
    if variant is None:
        return None
    found = next((one for one in target.strategy.variants if one.name == variant), None)
    if found is None:
        known = ", ".join(one.name for one in target.strategy.variants)
        raise errors.NotFound(
            f"this rollout has no variant {variant[:64]!r}",
            code="rollout.no_such_variant",
            cause=f"its variants are {known}" if known else "it is no A/B test",
            next_step="name one of them, or leave --variant out",
        )
    return found.revision


def _ended(target: Revision) -> float | None:
    """When its versions stopped serving side by side; a switched colour is compared with the runs after the switch."""
    if target.phase is RevisionPhase.ACTIVE and target.strategy.kind in (StrategyKind.CANARY, StrategyKind.AB):
        return target.progress.since
    return target.ended_at


def _is_compared(one: Revision) -> bool:
    return one.strategy.kind in (StrategyKind.CANARY, StrategyKind.AB, StrategyKind.BLUE_GREEN)


def _stable(one: Deployment, target: Revision, revisions: Mapping[int, Revision]) -> Revision | None:
    """What a rollout is or was compared with: for one that ended, the newest earlier revision that served."""
    if target.phase in changes.IN_HAND or target.progress.standby is not None:
        return rollout_looks.stable_of(target, revisions, one)
    served = (RevisionPhase.ACTIVE, RevisionPhase.SUPERSEDED)
    before = [one for number, one in revisions.items() if number < target.number and one.phase in served and one.problem is None]
    return max(before, key=lambda one: one.number, default=None)


def _arms(target: Revision, stable: Revision) -> list[Arm]:
    """The control first. A variant that ran before is called by its version, a second revision of one version by both."""
    if target.strategy.kind is StrategyKind.AB:
        arms = [Arm(name=one.name, version=one.version, weight=one.weight) for one in target.strategy.variants]
        return sorted(arms, key=lambda arm: arm.version != stable.version)
    labels = strategies.labels_of((stable, target))
    weight = target.strategy.steps[min(target.progress.stage, len(target.strategy.steps) - 1)]
    share = weight if target.strategy.kind is StrategyKind.CANARY else 100
    return [
        Arm(name="stable", version=labels[stable.number], weight=100 - share),
        Arm(name="new", version=labels[target.number], weight=share),
    ]


def _waiting(target: Revision) -> str:
    if target.phase not in changes.IN_HAND:
        return ""
    return target.progress.waiting or ("instances" if target.progress.since is None else "")


def _role(revision: Revision, one: Deployment, target: Revision) -> str:
    variant = next((each.name for each in target.strategy.variants if each.revision == revision.number), None)
    if variant is not None:
        return variant
    if revision.number == target.progress.standby:
        return "standby"
    if revision.number == target.number:
        return "new" if target.phase in changes.IN_HAND else "active"
    return "stable" if revision.number == one.active_revision else "leaving"


def _drained(resting: Sequence[Instance], statuses: Mapping[str, InstanceStatus]) -> dict[str, Any]:
    counts = [status.usage.sessions for each in resting if (status := statuses.get(each.id)) is not None]
    known = [count for count in counts if count is not None]
    return {"draining": len(resting), "sessions": sum(known) if known else None}


def _is_ready(each: Instance, statuses: Mapping[str, InstanceStatus]) -> bool:
    status = statuses.get(each.id)
    return status is not None and status.phase is InstancePhase.READY
