"""Compare one deployment's desired state with what is, and say what to do next. Pure: ages are handed in, nothing is read.

A rolling update starts `surge` instances more than wanted, routes them when ready, takes old ones out of the routes, lets them
drain, stops them. Of a revision that `keeps` its sessions an instance leaves the routes for new sessions only, and goes when none
of its own needs it. With `counts` (blue-green, canary, A/B: `strategies`) each revision has its own number of instances, and
`steps` decides when it ends. A revision whose instance fails for good before it is active fails; the last active one, which kept
serving, is wanted again.

    pending ──► rolling ──► active ──► superseded
       └───────────┴──► failed, superseded
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nexus.core.deployments import Target
from nexus.core.phases import InstancePhase, RevisionPhase
from nexus.core.rollouts import Progress

SURGE = 1
UNROUTED_S = 1.0
RETRY_FAILED_S = 20.0
LONGEST_ROLLOUT_S = 3600.0
CRASHES = 3
STOP_ON_DELETE_S = 30.0
QUIET_S = 3.0
REST_S = 60.0
_GONE = frozenset({InstancePhase.STOPPED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One deployment. `phase` is the target revision's; `rolling_for_s` is how long it has been on its way without serving.

    `surge` and `unavailable` bound a rolling update. `counts` (empty: rolling) is how many instances each revision has side by
    side. `out` are revisions that serve nothing any more: their instances go at once, unless the revision `keeps` its sessions.
    `woken` are those of them that a session waits for; `stop_after_s` says how long idle sessions of each need an instance that
    serves them all itself.
    """

    deployment_id: str
    target: Target
    replicas: int
    revision: int | None
    phase: RevisionPhase | None
    active: int | None
    rolling_for_s: float = 0.0
    grace_s: Mapping[int, float] = field(default_factory=dict)
    surge: int = SURGE
    unavailable: int = 0
    counts: Mapping[int, int] = field(default_factory=dict)
    out: frozenset[int] = frozenset()
    keeps: frozenset[int] = frozenset()
    woken: frozenset[int] = frozenset()
    stop_after_s: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One instance record beside what its node says. `phase` None: the node does not know it.

    `sessions` have a worker of their own now (None: it serves all itself). `quiet_for_s`: ready without sessions or runs;
    `served`: it had any before.
    """

    id: str
    revision: int
    target: Target
    phase: InstancePhase | None
    unrouted_for_s: float = 0.0
    failed_for_s: float = 0.0
    active_runs: int = 0
    restarts: int = 0
    problem: Mapping[str, Any] | None = None
    sessions: int | None = None
    quiet_for_s: float = 0.0
    served: bool = False

    @property
    def is_live(self) -> bool:
        """Wanted, and not failed for good."""
        return self.target is Target.RUNNING and self.phase is not InstancePhase.FAILED

    @property
    def is_ready(self) -> bool:
        return self.is_live and self.phase is InstancePhase.READY


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """The target revision is on its way now."""

    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mint:
    """Store a new instance of this revision, then start it. `draining`: for sessions that began on the revision alone."""

    revision: int
    draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Ask the node (again) for an instance that is stored but unknown to it."""

    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """Take an instance out of the routes for good; it is stopped a moment later."""

    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """No new sessions for this instance; it keeps those it has."""

    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Its revision is wanted again: it takes new sessions as before."""

    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    instance_id: str
    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """The node no longer knows a retired instance: drop its record."""

    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Activate:
    """This revision is what runs now. `lead` is the revision whose rollout ends thereby (itself, but for an A/B test), `outcome`
    why; with `keeps_standby` the one before stays ready for a while."""

    revision: int
    lead: int | None = None
    outcome: Mapping[str, Any] = field(default_factory=dict)
    keeps_standby: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """The target revision's rollout is this far now. Watchers are told `message`; `waits`: nothing more comes by itself."""

    revision: int
    progress: Progress
    message: str = ""
    waits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchBack:
    """The revision that was switched to is broken: the one standing by serves again."""

    revision: int
    problem: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """The target revision did not make it; `back_to` is the revision that is wanted again."""

    revision: int
    back_to: int | None
    instance_id: str | None
    problem: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Nothing is left of a deleted deployment."""


RolloutAction = Begin | Activate | Advance | SwitchBack | Fail
Action = RolloutAction | Mint | Start | Retire | Drain | Resume | Stop | Forget | Remove


def plan(wanted: Wanted, seen: Sequence[Seen]) -> list[Action]:
    """The next actions, in order. Applying them and planning again ends in no actions."""
    actions = [action for one in seen if one.target is Target.STOPPED for action in _plan_retired(wanted, one)]
    if wanted.target is not Target.RUNNING:
        actions += [Retire(instance_id=one.id) for one in seen if one.target is not Target.STOPPED]
        return actions or ([] if seen else [Remove()])
    if wanted.revision is None:
        return actions + [Retire(instance_id=one.id) for one in seen if one.target is not Target.STOPPED]
    if (failure := _find_failure(wanted, seen)) is not None:
        return [*actions, failure]
    actions += [Start(instance_id=one.id) for one in seen if one.target is not Target.STOPPED and one.phase is None]
    if wanted.phase is RevisionPhase.PENDING:
        actions.append(Begin(revision=wanted.revision))
    actions += _plan_draining(wanted, seen)
    leaving = [one for one in seen if one.revision in wanted.out and one.target is Target.RUNNING]
    actions += [_let_go(wanted, one) for one in leaving]
    kept = [one for one in seen if one.revision not in wanted.out]
    if wanted.counts:
        return actions + _plan_side_by_side(wanted, kept)
    return actions + _plan_replicas(wanted, wanted.revision, kept)


def _plan_retired(wanted: Wanted, one: Seen) -> list[Action]:
    if one.phase is None or one.phase in _GONE:
        return [Forget(instance_id=one.id)]
    if one.phase is InstancePhase.STOPPING or one.unrouted_for_s < UNROUTED_S:
        return []
    longest = STOP_ON_DELETE_S if wanted.target is not Target.RUNNING else wanted.grace_s.get(one.revision, STOP_ON_DELETE_S)
    return [Stop(instance_id=one.id, grace_s=longest)]


def _find_failure(wanted: Wanted, seen: Sequence[Seen]) -> Fail | None:
    if wanted.revision is None or wanted.phase not in (RevisionPhase.PENDING, RevisionPhase.ROLLING):
        return None
    back_to = wanted.active if wanted.active != wanted.revision else None
    fresh = {wanted.revision, *wanted.counts} - {wanted.active}
    for one in seen:
        if one.revision in fresh and one.target is Target.RUNNING and one.phase is InstancePhase.FAILED:
            problem = one.problem or {"code": "instance.failed", "kind": "agent_failed", "detail": "an instance failed"}
            return Fail(revision=wanted.revision, back_to=back_to, instance_id=one.id, problem=problem)
    crashes = sum(one.restarts for one in seen if one.revision == wanted.revision and one.target is Target.RUNNING)
    if crashes >= CRASHES and back_to is not None and not wanted.counts:
        return Fail(revision=wanted.revision, back_to=back_to, instance_id=None, problem=_render_crashes(crashes))
    if wanted.rolling_for_s > LONGEST_ROLLOUT_S:
        return Fail(revision=wanted.revision, back_to=back_to, instance_id=None, problem=_TOO_SLOW)
    return None


def _render_crashes(count: int) -> Mapping[str, Any]:
    return {
        "code": "rollout.crashes",
        "kind": "agent_failed",
        "phase": "rollout",
        "detail": f"instances of the new version ended by themselves {count} times",
        "next_step": "see what they said: nexus ai agent logs",
    }


_TOO_SLOW: Mapping[str, Any] = {
    "code": "rollout.timeout",
    "kind": "agent_failed",
    "phase": "start",
    "detail": f"the revision was not ready within {LONGEST_ROLLOUT_S / 60:.0f} minutes",
    "next_step": "see what its instances say: nexus ai agent logs",
}


def _plan_replicas(wanted: Wanted, revision: int, seen: Sequence[Seen]) -> list[Action]:
    fresh = [one for one in seen if one.revision == revision and one.target is Target.RUNNING]
    old = [one for one in seen if one.revision != revision and one.target is Target.RUNNING]
    live, ready = [one for one in fresh if one.is_live], [one for one in fresh if one.is_ready]
    room = wanted.replicas + wanted.surge - sum(one.is_live for one in old) - len(live) if old else None
    actions = _plan_count(revision, wanted.replicas, fresh, room, resting=_resting(seen, revision))
    if len(ready) >= wanted.replicas:
        actions += [_let_go(wanted, one) for one in old]
        if not old and wanted.phase in (RevisionPhase.PENDING, RevisionPhase.ROLLING):
            actions.append(Activate(revision=revision))  # said only once the old ones are out of the routes
        return actions
    ready_old = [one for one in old if one.is_ready]
    hopeless = [one for one in old if not one.is_ready and (ready or ready_old or one.revision != wanted.active)]
    spare = _superfluous(ready_old, len(ready_old) + len(ready) - (wanted.replicas - wanted.unavailable))
    return actions + [_let_go(wanted, one) for one in (*hopeless, *spare)]


def _let_go(wanted: Wanted, one: Seen) -> Action:
    """Out of the routes: for good, or for new sessions only where it may have some that stay."""
    has_any = one.is_ready or bool(one.sessions) or (one.sessions is None and one.served)
    stays = one.revision in wanted.keeps and one.is_live and has_any
    return Drain(instance_id=one.id) if stays else Retire(instance_id=one.id)


def _resting(seen: Sequence[Seen], revision: int) -> list[Seen]:
    """Draining instances of a revision that is wanted again."""
    return [one for one in seen if one.revision == revision and one.target is Target.DRAINING]


def _plan_draining(wanted: Wanted, seen: Sequence[Seen]) -> list[Action]:
    """Let draining instances go that no session needs, and start one for a session that waits for a version without any."""
    actions: list[Action] = []
    served = {wanted.revision, *wanted.counts}
    for revision in sorted({one.revision for one in seen if one.target is Target.DRAINING} - served):
        mine = [one for one in seen if one.revision == revision and one.target is Target.DRAINING]
        if revision not in wanted.keeps:
            actions += [Retire(instance_id=one.id) for one in mine]
            continue
        failed = [one for one in mine if one.phase is InstancePhase.FAILED]
        alive = sorted((one for one in mine if one not in failed), key=lambda one: (one.active_runs, -one.quiet_for_s))
        last = alive[-1] if alive else None
        done = [one for one in alive if one.quiet_for_s >= _patience_s(wanted, one, is_last=one is last)]
        actions += [Retire(instance_id=one.id) for one in (*failed, *done)]
    there = {one.revision for one in seen if one.target is not Target.STOPPED}
    return actions + [Mint(revision=one, draining=True) for one in sorted(wanted.woken & wanted.keeps - there - served)]


def _patience_s(wanted: Wanted, one: Seen, *, is_last: bool) -> float:
    """How long a quiet instance waits for its sessions. With workers of their own they need it while they have one; else the last
    instance of a version waits for them all, and the others hand theirs to it."""
    if one.sessions is not None or not one.served:
        return QUIET_S
    return wanted.stop_after_s.get(one.revision, REST_S) if is_last else REST_S


def _plan_count(
    revision: int, count: int, mine: Sequence[Seen], room: int | None, *, resting: Sequence[Seen] = ()
) -> list[Action]:
    """Bring a revision to its number of instances; those that failed for good are exchanged after a while, and those that are
    `resting` come first."""
    live = [one for one in mine if one.is_live]
    failed = [one for one in mine if not one.is_live]
    actions: list[Action] = [Retire(instance_id=one.id) for one in failed if one.failed_for_s >= RETRY_FAILED_S]
    missing = count - len(live) - (len(failed) - len(actions))
    back = [one for one in resting if one.phase is InstancePhase.READY][: max(0, missing)]
    actions += [Resume(instance_id=one.id) for one in back]
    actions += [Retire(instance_id=one.id) for one in resting if one not in back]
    missing -= len(back)
    actions += [Mint(revision=revision) for _ in range(missing if room is None else min(missing, room))]
    return actions + [Retire(instance_id=one.id) for one in _superfluous(live, len(live) - count)]


def _plan_side_by_side(wanted: Wanted, seen: Sequence[Seen]) -> list[Action]:
    """Each revision its number. What is left of others goes once the stable revision can carry everything."""
    actions: list[Action] = []
    running = [one for one in seen if one.target is Target.RUNNING]
    for revision, count in wanted.counts.items():
        mine = [one for one in running if one.revision == revision]
        actions += _plan_count(revision, count, mine, None, resting=_resting(seen, revision))
    stable = wanted.active if wanted.active in wanted.counts else wanted.revision
    carrying = sum(one.is_ready for one in running if one.revision == stable)
    if stable is not None and carrying >= wanted.counts.get(stable, 0):
        actions += [_let_go(wanted, one) for one in running if one.revision not in wanted.counts]
    return actions


def _superfluous(live: Sequence[Seen], count: int) -> list[Seen]:
    """Those to let go first: not ready, then least busy, then youngest (ids grow with time)."""
    by_age = sorted(live, key=lambda one: one.id, reverse=True)
    ranked = sorted(by_age, key=lambda one: (one.is_ready, one.active_runs))
    return ranked[: max(0, count)]
