"""What a rollout side by side does next: begin a stage, look, go on, wait, switch, promote or give up. Pure.

waiting for instances ──► stage 1 ──► … ──► last stage ──► promoted
        └───────────────────┴────────────────────┴──► failed: the stable revision has all the traffic again
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nexus.core.deployments import Revision
from nexus.core.phases import RevisionPhase
from nexus.core.rollouts import Progress, StrategyKind
from nexus.hosting import comparison, planner, strategies
from nexus.ports.run_samples import Sample

STUCK_RUNS = 3
STUCK_S = 10.0
STUCK_TIMES = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Still:
    """Since when the new version has not finished a run while it had runs in hand (monotonic), and what was counted then."""

    since: float
    fresh_runs: int
    stable_runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at a rollout. `ready` and `crashes` count by revision. `stable` and `fresh` are None when not asked for.

    `still_s` is for how long the new version finished nothing of what it has in hand, `meanwhile` what the stable one did.
    """

    target: Revision
    active: Revision | None
    shares: Sequence[strategies.Share]
    ready: Mapping[int, int]
    now: float
    crashes: Mapping[int, int] = field(default_factory=dict)
    stable: Sample | None = None
    fresh: Sample | None = None
    fresh_version: str = ""
    still_s: float = 0.0
    meanwhile: int = 0


def plan_step(look: Look) -> planner.Action | None:
    """The next step, or None to wait."""
    if not look.shares:
        return None
    if look.target.phase is RevisionPhase.ACTIVE:
        return _plan_after_switch(look)
    if (problem := _find_breakage(look)) is not None:
        return _give_up(look, problem)
    progress = look.target.progress
    if progress.decision == strategies.PROMOTE:
        return _plan_promotion(look)
    if progress.since is None:
        return _plan_entry(look)
    if look.stable is None or look.fresh is None:
        return None
    if look.target.strategy.kind is StrategyKind.CANARY:
        return _plan_canary(look, look.stable, look.fresh)
    if look.target.strategy.kind is StrategyKind.AB and (finding := comparison.find_collapse(look.stable, look.fresh)):
        return _give_up(look, _render_finding(look, finding))
    return None


def wants_samples(target: Revision, shares: Sequence[strategies.Share]) -> bool:
    """Whether runs decide anything at the moment."""
    if not shares:
        return False
    if target.phase is RevisionPhase.ACTIVE:
        return target.progress.standby is not None
    return target.strategy.kind in (StrategyKind.CANARY, StrategyKind.AB) and target.progress.since is not None


def note_stillness(before: Still | None, now: float, *, in_hand: int, stable: Sample, fresh: Sample) -> Still | None:
    """What to remember from look to look: a new version that swallows runs leaves no record to be judged by."""
    if in_hand < STUCK_RUNS:
        return None
    if before is None or before.fresh_runs != fresh.runs:
        return Still(since=now, fresh_runs=fresh.runs, stable_runs=stable.runs)
    return before


def render_numbers(stable: Sample, fresh: Sample, stable_version: str, fresh_version: str) -> dict[str, Any]:
    """What a decision was made on."""
    return {"stable": _render_sample(stable, stable_version), "new": _render_sample(fresh, fresh_version)}


def _render_sample(sample: Sample, version: str) -> dict[str, Any]:
    return {
        "version": version,
        "runs": sample.runs,
        "errors": sample.errors,
        "error_rate": round(sample.errors / sample.runs, 6) if sample.runs else 0.0,
        "p50_s": round(comparison.quantile_of(sample.durations, 0.5), 6),
        "p95_s": round(comparison.quantile_of(sample.durations, 0.95), 6),
    }


def _plan_entry(look: Look) -> planner.Action | None:
    """Traffic moves when every instance of the stage is ready, those of the old revision too."""
    if any(look.ready.get(share.revision, 0) < share.count for share in look.shares):
        return None
    target, strategy = look.target, look.target.strategy
    progress = replace(target.progress, since=look.now, started=target.progress.started or look.now, waiting="")
    if strategy.kind is StrategyKind.BLUE_GREEN:
        if strategy.automatic:
            return _switch(look, "all its instances are ready", by="automatic")
        message = f"version {target.version} is ready beside the old one and gets no traffic yet"
        return planner.Advance(
            revision=target.number, progress=replace(progress, waiting="promotion"), message=message, waits=True
        )
    if strategy.kind is StrategyKind.AB:
        told = ", ".join(f"{one.name} ({one.version}) {one.weight} %" for one in strategy.variants)
        waiting = replace(progress, waiting="promotion")
        return planner.Advance(revision=target.number, progress=waiting, message=f"the test runs: {told}", waits=True)
    share = strategy.steps[progress.stage]
    message = f"stage {progress.stage + 1} of {len(strategy.steps)}: {share} % of the traffic to version {target.version}"
    return planner.Advance(revision=target.number, progress=progress, message=message)


def _plan_canary(look: Look, stable: Sample, fresh: Sample) -> planner.Action | None:
    target, strategy, progress = look.target, look.target.strategy, look.target.progress
    looks, looked_at = progress.looks, progress.looked_at
    if fresh_look := comparison.deserves_look(fresh.runs, looked_at):
        looks, looked_at = looks + 1, fresh.runs
        finding = comparison.find_worse(stable, fresh, strategy.analysis, look=looks)
        if finding is not None:
            back_to = look.active.number if look.active is not None else None
            problem = _render_finding(look, finding)
            return planner.Fail(revision=target.number, back_to=back_to, instance_id=None, problem=problem)
    seen = replace(progress, looks=looks, looked_at=looked_at, numbers=_numbers(look))
    if look.now - (progress.since or look.now) >= strategy.interval_s:
        last = progress.stage + 1 >= len(strategy.steps)
        if fresh.runs < strategy.analysis.samples:
            return _wait(look, seen, "runs", f"waiting for {strategy.analysis.samples} runs to judge by, {fresh.runs} so far")
        if not last:
            following = replace(seen, stage=progress.stage + 1, since=None, waiting="")
            message = f"nothing is worse after {fresh.runs} runs; preparing {strategy.steps[following.stage]} %"
            return planner.Advance(revision=target.number, progress=following, message=message)
        if strategy.automatic:
            return _switch(look, f"nothing was worse in {fresh.runs} runs", by="analysis")
        return _wait(look, seen, "promotion", "nothing is worse; waiting to be promoted")
    return planner.Advance(revision=target.number, progress=seen) if fresh_look else None


def _give_up(look: Look, problem: dict[str, Any]) -> planner.Fail:
    back_to = look.active.number if look.active is not None else None
    return planner.Fail(revision=look.target.number, back_to=back_to, instance_id=None, problem=problem)


def _wait(look: Look, seen: Progress, reason: str, message: str) -> planner.Action | None:
    if look.target.progress.waiting == reason:
        return planner.Advance(revision=look.target.number, progress=seen) if seen.looks > look.target.progress.looks else None
    waiting = replace(seen, waiting=reason)
    return planner.Advance(revision=look.target.number, progress=waiting, message=message, waits=reason == "promotion")


def _plan_promotion(look: Look) -> planner.Action | None:
    progress = look.target.progress
    winner = progress.winner or look.target.number
    count = next((share.count for share in look.shares if share.revision == winner), 0)
    if look.ready.get(winner, 0) < count:
        return None
    return _switch(look, "promoted by hand", by=progress.decided_by or "a person", winner=winner)


def _switch(look: Look, reason: str, *, by: str, winner: int | None = None) -> planner.Activate:
    outcome = {"decision": "promoted", "reason": reason, "by": by, "numbers": _numbers(look)}
    keeps = look.target.strategy.kind is StrategyKind.BLUE_GREEN and look.target.strategy.keep_s > 0
    return planner.Activate(revision=winner or look.target.number, lead=look.target.number, outcome=outcome, keeps_standby=keeps)


def _plan_after_switch(look: Look) -> planner.Action | None:
    """While the old colour stands by, a new one that turns out broken is switched back by itself."""
    standby, progress, strategy = look.target.progress.standby, look.target.progress, look.target.strategy
    if standby is None or not strategy.automatic:
        return None
    if look.ready.get(standby, 0) == 0:
        return None
    if look.crashes.get(look.target.number, 0) >= planner.CRASHES:
        return planner.SwitchBack(revision=look.target.number, problem=_render_crashes(look))
    if look.stable is None or look.fresh is None or not comparison.deserves_look(look.fresh.runs, progress.looked_at):
        return None
    looks = progress.looks + 1
    finding = comparison.find_worse(look.stable, look.fresh, strategy.analysis, look=looks)
    if finding is not None:
        return planner.SwitchBack(revision=look.target.number, problem=_render_finding(look, finding))
    seen = replace(progress, looks=looks, looked_at=look.fresh.runs, numbers=_numbers(look))
    return planner.Advance(revision=look.target.number, progress=seen)


def _find_breakage(look: Look) -> dict[str, Any] | None:
    """What needs no statistics: instances that end again and again, and runs that never come back."""
    if look.target.strategy.kind is not StrategyKind.AB and look.crashes.get(look.target.number, 0) >= planner.CRASHES:
        return _render_crashes(look)
    if look.stable is None or look.fresh is None or look.target.strategy.kind is not StrategyKind.CANARY:
        return None
    if _is_stuck(look, look.stable):
        detail = f"version {look.target.version} ended none of its runs for {look.still_s:.0f} s"
        slowest = max(look.stable.durations, default=0.0)
        cause = f"the old version ended {look.meanwhile} meanwhile, and its slowest took {slowest:.1f} s"
        return _problem(look, "rollout.stuck", detail, cause)
    return None


def _is_stuck(look: Look, stable: Sample) -> bool:
    """Nothing came back for long, judged by what the old version ends meanwhile; or, when callers wait for the new version and
    so call the old one no more, for longer than the old one ever took."""
    enough = look.target.strategy.analysis.samples
    if look.meanwhile >= enough:
        return look.still_s >= max(STUCK_S, STUCK_TIMES * comparison.quantile_of(stable.durations, 0.95))
    return stable.runs >= enough and look.still_s >= max(STUCK_S, 2 * max(stable.durations, default=0.0))


def _render_crashes(look: Look) -> dict[str, Any]:
    count = look.crashes.get(look.target.number, 0)
    return _problem(look, "rollout.crashes", f"version {look.target.version} ended by itself {count} times", None)


def _render_finding(look: Look, finding: comparison.Finding) -> dict[str, Any]:
    words = "fails more often" if finding.code == "rollout.more_errors" else "is slower"
    version = look.fresh_version or look.target.version
    return _problem(look, finding.code, f"version {version} {words} than the one before", finding.detail)


def _problem(look: Look, code: str, detail: str, cause: str | None) -> dict[str, Any]:
    problem: dict[str, Any] = {
        "type": f"urn:nexus:problem:{code}",
        "title": code.replace(".", " ").replace("_", " "),
        "status": 502,
        "code": code,
        "kind": "agent_failed",
        "phase": "rollout",
        "detail": detail,
        "numbers": _numbers(look),
    }
    return problem if cause is None else problem | {"cause": cause}


def _numbers(look: Look) -> dict[str, Any]:
    if look.stable is None or look.fresh is None:
        return dict(look.target.progress.numbers)
    old = look.active.version if look.active is not None else ""
    return render_numbers(look.stable, look.fresh, old, look.fresh_version or look.target.version)
