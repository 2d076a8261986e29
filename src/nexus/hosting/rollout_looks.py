"""Feeds `steps` with what it decides on: how the runs of old and new went, crashes, and runs that never end.

Called by `loop` each round; `samples` is set by the composition root. Asked at most once a second for each rollout.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nexus.core import errors
from nexus.core.deployments import Deployment, Instance, Revision, Target
from nexus.core.instances import InstanceStatus
from nexus.core.phases import InstancePhase, RevisionPhase
from nexus.core.rollouts import StrategyKind
from nexus.hosting import planner, steps, strategies
from nexus.kit import clock
from nexus.ports import run_samples

_LOG = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0
LOOK_BACK_S = 3600.0

Status = tuple[Instance, InstanceStatus | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Runs of the stable version and of the new one; of an A/B test the arm that fails most."""

    stable: run_samples.Sample
    fresh: run_samples.Sample
    fresh_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Of one rollout, at `at` (monotonic)."""

    at: float
    revision: int
    pair: Pair


class Looks:
    """What is known of the rollouts in hand, by deployment."""

    def __init__(self, *, clock: clock.Clock) -> None:
        self._clock = clock
        self.samples: run_samples.RunSamples | None = None
        self._seen: dict[str, Seen] = {}
        self._still: dict[str, steps.Still] = {}

    async def refresh(self, deployments: Iterable[Deployment], revisions: Mapping[tuple[str, int], Revision]) -> None:
        """Read how the runs go, for every rollout that is decided by them. What cannot be read now is read next time."""
        now = self._clock.monotonic()
        for one in deployments:
            target = revisions.get((one.id, one.target_revision or 0))
            if self.samples is None or target is None or one.target is not Target.RUNNING:
                continue
            mine = {number: revision for (owner, number), revision in revisions.items() if owner == one.id}
            shares = strategies.plan_shares(one, mine, self._clock.time())
            before = self._seen.get(one.id)
            due = before is None or before.revision != target.number or now - before.at >= LOOK_EVERY_S
            stable = stable_of(target, mine, one)
            if not due or stable is None or not steps.wants_samples(target, shares):
                continue
            try:
                pair = await read_pair(self.samples, one, target, stable)
            except errors.Unavailable as error:
                _LOG.warning("the runs of %s cannot be compared at the moment: %s", one.agent, error.message)
                continue
            self._seen[one.id] = Seen(at=now, revision=target.number, pair=pair)

    def plan(
        self,
        one: Deployment,
        target: Revision,
        revisions: Mapping[int, Revision],
        shares: Sequence[strategies.Share],
        statuses: Sequence[Status],
    ) -> planner.Action | None:
        seen = self._seen.get(one.id)
        if seen is not None and seen.revision != target.number:
            seen = None
        stable = seen.pair.stable if seen is not None else None
        still = self._note_stillness(one.id, target, statuses, seen)
        ready: dict[int, int] = {}
        crashes: dict[int, int] = {}
        for each, status in statuses:
            if status is None or each.target is not Target.RUNNING:
                continue
            ready[each.revision] = ready.get(each.revision, 0) + (status.phase is InstancePhase.READY)
            crashes[each.revision] = crashes.get(each.revision, 0) + status.restarts
        return steps.plan_step(
            steps.Look(
                target=target,
                active=stable_of(target, revisions, one),
                shares=shares,
                ready=ready,
                crashes=crashes,
                now=self._clock.time(),
                stable=stable,
                fresh=seen.pair.fresh if seen is not None else None,
                fresh_version=seen.pair.fresh_version if seen is not None else target.version,
                still_s=self._clock.monotonic() - still.since if still is not None else 0.0,
                meanwhile=stable.runs - still.stable_runs if still is not None and stable is not None else 0,
            )
        )

    def forget(self, known: Collection[str]) -> None:
        """Drop what is remembered of deployments that are gone."""
        self._seen = {key: seen for key, seen in self._seen.items() if key in known}
        self._still = {key: still for key, still in self._still.items() if key in known}

    def _note_stillness(
        self, deployment_id: str, target: Revision, statuses: Sequence[Status], seen: Seen | None
    ) -> steps.Still | None:
        if seen is None:
            self._still.pop(deployment_id, None)
            return None
        in_hand = sum(
            status.usage.active_runs for each, status in statuses if status is not None and each.revision == target.number
        )
        still = steps.note_stillness(
            self._still.get(deployment_id),
            self._clock.monotonic(),
            in_hand=in_hand,
            stable=seen.pair.stable,
            fresh=seen.pair.fresh,
        )
        if still is None:
            self._still.pop(deployment_id, None)
        else:
            self._still[deployment_id] = still
        return still


def stable_of(target: Revision, revisions: Mapping[int, Revision], one: Deployment) -> Revision | None:
    """What a new revision is compared with: the one that stands by after a switch, else the active one."""
    number = target.progress.standby if target.phase is RevisionPhase.ACTIVE else one.active_revision
    found = revisions.get(number or 0)
    return found if found is not None and found.number != target.number else None


async def read_pair(samples: run_samples.RunSamples, one: Deployment, target: Revision, stable: Revision) -> Pair:
    """Runs of the stable and of the new revision since the new one began to serve. Where the stable one has too few of that
    time (it had no traffic left), its runs of the hour before stand in."""
    switched = target.phase is RevisionPhase.ACTIVE
    began = target.progress.since if switched else target.progress.started
    began = began if began is not None else target.created_at
    labels = strategies.labels_of((stable, target))
    together = await samples.by_version(_window(one, began))
    nothing = run_samples.Sample()
    if target.strategy.kind is StrategyKind.AB:
        arms = [variant.version for variant in target.strategy.variants if variant.revision != stable.number]
        worst = max(arms, key=lambda version: _error_rate(together.get(version, nothing)))
        return Pair(stable=together.get(stable.version, nothing), fresh=together.get(worst, nothing), fresh_version=worst)
    old, new = together.get(labels[stable.number], nothing), together.get(labels[target.number], nothing)
    if old.runs < target.strategy.analysis.samples:
        before = await samples.by_version(_window(one, began - LOOK_BACK_S, began))
        earlier = before.get(stable.version, nothing)
        old = earlier if earlier.runs > old.runs else old
    return Pair(stable=old, fresh=new, fresh_version=target.version)


def _error_rate(sample: run_samples.Sample) -> float:
    return sample.errors / sample.runs if sample.runs else 0.0


def _window(one: Deployment, since: float, until: float | None = None) -> run_samples.Window:
    return run_samples.Window(tenant=one.tenant, agent=one.agent, deployment_id=one.id, since=since, until=until)
