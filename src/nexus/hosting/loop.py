"""The reconciler: look at what is wanted and what is, plan, act, publish the routes; for ever, and safe to kill at any point.

Woken by writes of the API and by the driver's status changes; otherwise it looks every two seconds. The order of looking matters:
the node first, then the store, so that an instance the node knows is in the store unless nobody wants it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nexus.core import errors
from nexus.core.deployments import Deployment, Instance, Revision, Target
from nexus.core.instances import InstanceStatus
from nexus.core.phases import InstancePhase
from nexus.hosting import changes, drains, executor, load, planner, rollout_looks, strategies
from nexus.kit import clock
from nexus.ports import driver, hosting_store

_LOG = logging.getLogger(__name__)
IDLE_S = 2.0
BUSY_S = 0.1
COALESCE_S = 0.005
ACTION_TIMEOUT_S = 60.0
STRAY_GRACE_S = 10.0
CALLED_S = 10.0
BARRED_S = 60.0
_AT_ONCE = 16
_MOST_CALLS = 1000

QueueDepth = Callable[[str, str, str], Awaitable[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What one round saw. `barred` are old revisions (with their deployment) of which no instance can be started for now."""

    deployments: Sequence[Deployment] = ()
    revisions: Mapping[tuple[str, int], Revision] = field(default_factory=dict)
    instances: Mapping[str, list[Instance]] = field(default_factory=dict)
    statuses: Mapping[str, InstanceStatus] = field(default_factory=dict)
    barred: frozenset[tuple[str, int]] = frozenset()


class Reconciler:
    """`picture` is the last one, also for those who show instances; `published` is called with each new one."""

    def __init__(
        self,
        *,
        store: hosting_store.HostingStore,
        driver: driver.Driver,
        executor: executor.Executor,
        clock: clock.Clock,
    ) -> None:
        self._store = store
        self._driver = driver
        self._executor = executor
        self._clock = clock
        self.queue_depth: QueueDepth | None = None
        self.looks = rollout_looks.Looks(clock=clock)
        self._woken = asyncio.Event()
        self._announce = True
        self._missing: str | None = None
        self._since: dict[tuple[str, ...], float] = {}
        self._noted: dict[str, tuple[str, ...]] = {}
        self._loads: dict[str, load.History] = {}
        self._called: dict[tuple[str, str], float] = {}
        self._barred: dict[tuple[str, int], float] = {}
        self.picture = Picture()
        self.published: Callable[[Picture], Awaitable[None]] | None = None

    def wake(self) -> None:
        self._woken.set()

    def call_version(self, deployment_id: str, version: str) -> None:
        """A session waits for a version that was replaced, and of which no instance runs."""
        if len(self._called) < _MOST_CALLS:
            self._called[deployment_id, version] = self._clock.monotonic()
            self.wake()

    async def run(self) -> None:
        """Round after round; a guarded loop restarts it if it raises."""
        while True:
            self._woken.clear()
            try:
                busy = await self.round()
            except errors.Unavailable as error:
                busy = True
                if self._missing != error.code:
                    _LOG.warning("nothing can be repaired until this is mended: %s", error.message)
                self._missing = error.code
            else:
                self._missing = None
            try:
                async with asyncio.timeout(BUSY_S if busy else IDLE_S):
                    await self._woken.wait()
                await asyncio.sleep(COALESCE_S)
            except TimeoutError:
                pass

    async def watch(self) -> None:
        """Turn the driver's status changes into wake-ups. After any break the node may be a new one: announce everything."""
        while True:
            self._announce = True
            self.wake()
            try:
                async for _ in self._driver.watch():
                    self.wake()
            except errors.NexusError as error:
                _LOG.debug("the node's changes cannot be watched at the moment: %s", error.message)
            await asyncio.sleep(0.2)

    async def round(self) -> bool:
        """One look and what follows from it. True when more is to be done soon."""
        announce, self._announce = self._announce, False
        try:
            statuses = {status.id: status for status in await self._driver.statuses()}
            snapshot = await self._store.snapshot()
        except BaseException:
            self._announce = self._announce or announce
            raise
        picture = self._bar(_arrange(snapshot, statuses))
        await self._publish(picture)
        await self.looks.refresh(picture.deployments, picture.revisions)
        plans = [(one, self._plan(one, picture, announce=announce)) for one in picture.deployments]
        self._forget_ages(picture)
        await self._note_steps(picture)
        await self._act(picture, [(one, actions) for one, actions in plans if actions])
        await self._stop_strays(picture)
        await self._autoscale(picture)
        return any(actions for _, actions in plans) or self._is_unsettled(picture)

    async def _publish(self, picture: Picture) -> None:
        self.picture = picture
        if self.published is not None:
            await self.published(picture)

    def _plan(self, one: Deployment, picture: Picture, *, announce: bool) -> list[planner.Action]:
        revisions = {number: revision for (owner, number), revision in picture.revisions.items() if owner == one.id}
        target = revisions.get(one.target_revision) if one.target_revision is not None else None
        seen = [self._see(each, picture.statuses.get(each.id)) for each in picture.instances.get(one.id, [])]
        rolling = target is not None and target.phase in changes.IN_HAND and target.progress.since is None
        shares = strategies.plan_shares(one, revisions, self._clock.time())
        keeps = drains.find_keeping(one, revisions, self._clock.time())
        wanted = planner.Wanted(
            deployment_id=one.id,
            target=one.target,
            replicas=one.replicas,
            revision=one.target_revision if target is not None else None,
            phase=target.phase if target is not None else None,
            active=one.active_revision,
            rolling_for_s=self._age(rolling, "rolling", one.id, str(one.target_revision)),
            grace_s={number: revision.settings.run_timeout_s for number, revision in revisions.items()},
            surge=target.strategy.surge(one.replicas) if target is not None else planner.SURGE,
            unavailable=target.strategy.unavailable(one.replicas) if target is not None else 0,
            counts={share.revision: share.count for share in shares},
            out=strategies.find_out(revisions, shares),
            keeps=keeps,
            woken=self._find_called(one, revisions, picture),
            stop_after_s={number: drains.stop_after_s(revisions[number]) for number in keeps},
        )
        actions = planner.plan(wanted, seen)
        trying = shares and one.target is Target.RUNNING
        if trying and target is not None and not any(isinstance(action, planner.Fail) for action in actions):
            statuses = [(each, picture.statuses.get(each.id)) for each in picture.instances.get(one.id, [])]
            if (step := self.looks.plan(one, target, revisions, shares, statuses)) is not None:
                actions.append(step)
        if announce and one.target is Target.RUNNING:
            actions += [planner.Start(instance_id=each.id) for each in seen if _deserves_announcing(each, wanted)]
        return actions

    def _find_called(self, one: Deployment, revisions: Mapping[int, Revision], picture: Picture) -> frozenset[int]:
        now = self._clock.monotonic()
        self._called = {key: at for key, at in self._called.items() if now - at < CALLED_S}
        return frozenset(
            number
            for number in drains.find_wakeable(one, revisions, self._clock.time())
            if (one.id, revisions[number].version) in self._called and (one.id, number) not in picture.barred
        )

    def _bar(self, picture: Picture) -> Picture:
        """Note the old revisions whose instances do not start: their sessions had better go elsewhere for a while."""
        now = self._clock.monotonic()
        for owner, mine in picture.instances.items():
            for each in mine:
                status = picture.statuses.get(each.id)
                if each.target is Target.DRAINING and status is not None and status.phase is InstancePhase.FAILED:
                    self._barred[owner, each.revision] = now
        self._barred = {key: at for key, at in self._barred.items() if now - at < BARRED_S}
        return replace(picture, barred=frozenset(self._barred))

    def _quiet_for_s(self, one: Instance, status: InstanceStatus | None) -> float:
        """For how long it has been ready without any session or run; the last run as it says itself, if it serves them all."""
        usage = status.usage if status is not None else None
        idle = usage is not None and not usage.active_runs and not usage.sessions
        ready = status is not None and status.phase is InstancePhase.READY
        seen_s = self._age(idle and ready, "quiet", one.id)
        if seen_s and usage is not None and usage.sessions is None and usage.last_active_at is not None:
            return max(seen_s, self._clock.time() - usage.last_active_at)
        return seen_s

    def _see(self, one: Instance, status: InstanceStatus | None) -> planner.Seen:
        phase = status.phase if status is not None else None
        usage = status.usage if status is not None else None
        return planner.Seen(
            id=one.id,
            revision=one.revision,
            target=one.target,
            phase=phase,
            sessions=usage.sessions if usage is not None else None,
            quiet_for_s=self._quiet_for_s(one, status) if one.target is Target.DRAINING else 0.0,
            served=usage is not None and usage.last_active_at is not None,
            unrouted_for_s=self._age(one.target is Target.STOPPED, "unrouted", one.id),
            failed_for_s=self._age(phase is InstancePhase.FAILED, "failed", one.id),
            active_runs=status.usage.active_runs if status is not None else 0,
            restarts=status.restarts if status is not None else 0,
            problem=status.problem if status is not None else None,
        )

    def _age(self, is_so: bool, *key: str) -> float:
        """For how long this process has seen something to be so; ages do not survive a restart, which only makes us patient."""
        if not is_so:
            self._since.pop(key, None)
            return 0.0
        now = self._clock.monotonic()
        return now - self._since.setdefault(key, now)

    def _forget_ages(self, picture: Picture) -> None:
        known = {one.id for one in picture.deployments} | {each.id for mine in picture.instances.values() for each in mine}
        self._since = {key: at for key, at in self._since.items() if key[1] in known}
        self._noted = {key: step for key, step in self._noted.items() if key in known}
        self._loads = {key: history for key, history in self._loads.items() if key in known}
        self.looks.forget(known)

    async def _note_steps(self, picture: Picture) -> None:
        for one in picture.deployments:
            for each in picture.instances.get(one.id, []):
                status = picture.statuses.get(each.id)
                revision = picture.revisions.get((one.id, each.revision))
                if status is None or revision is None or revision.phase not in changes.IN_HAND:
                    continue
                step = (status.phase.value, status.step, status.detail)
                if self._noted.get(each.id) != step:
                    self._noted[each.id] = step
                    await self._executor.note(one, each.revision, status)

    async def _act(self, picture: Picture, plans: Sequence[tuple[Deployment, list[planner.Action]]]) -> None:
        """Deployments side by side, the actions of one in order."""
        room = asyncio.Semaphore(_AT_ONCE)

        async def act(one: Deployment, actions: list[planner.Action]) -> None:
            revisions = {number: revision for (owner, number), revision in picture.revisions.items() if owner == one.id}
            async with room:
                for action in actions:
                    try:
                        async with asyncio.timeout(ACTION_TIMEOUT_S):
                            await self._executor.apply(one, action, revisions)
                    except (errors.NexusError, TimeoutError) as error:
                        _LOG.warning("%s of %s/%s did not work: %s", action, one.tenant, one.agent, error)
                        # An announcement that did not arrive is made again; other actions are planned again by themselves.
                        self._announce = self._announce or isinstance(action, planner.Start)

        async with asyncio.TaskGroup() as group:
            for one, actions in plans:
                group.create_task(act(one, actions))

    async def _stop_strays(self, picture: Picture) -> None:
        """Instances the node runs and nobody wants: their records are gone."""
        known = {each.id for mine in picture.instances.values() for each in mine}
        for status in picture.statuses.values():
            if status.id not in known and status.phase is not InstancePhase.STOPPING:
                _LOG.warning("instance %s belongs to nothing here; stopping it", status.id)
                await self._driver.stop(status.id, grace_s=STRAY_GRACE_S)

    async def _autoscale(self, picture: Picture) -> None:
        now = self._clock.monotonic()
        for one in picture.deployments:
            revision = picture.revisions.get((one.id, one.target_revision or 0))
            history = self._loads.setdefault(one.id, load.History())
            serving = revision is not None and (one.target_revision == one.active_revision or revision.progress.since is not None)
            settled = one.target is Target.RUNNING and serving
            if not one.scaling.enabled or revision is None or not settled or not history.is_due(now):
                continue
            serving_now = [each for each in picture.instances.get(one.id, []) if each.target is Target.RUNNING]
            mine = [picture.statuses.get(each.id) for each in serving_now]
            ready = [status for status in mine if status is not None and status.phase is InstancePhase.READY]
            depth = await self.queue_depth(one.tenant, one.agent, one.environment) if self.queue_depth else None
            sample = history.look(now, revision.settings, ready, depth)
            replicas = history.decide(now, one.scaling, sample, one.replicas)
            if replicas != one.replicas:
                await self._executor.rescale(one, replicas)
                self.wake()

    def _is_unsettled(self, picture: Picture) -> bool:
        retired = any(each.target is Target.STOPPED for mine in picture.instances.values() for each in mine)
        return retired or any(
            (revision := picture.revisions.get((one.id, one.target_revision or 0))) is not None
            and revision.phase in changes.IN_HAND
            and (revision.progress.since is None or bool(revision.progress.decision))
            for one in picture.deployments
        )


def _deserves_announcing(one: planner.Seen, wanted: planner.Wanted) -> bool:
    """A node that came back needs every spec again, since it keeps no secrets; not those whose failure is being judged."""
    judged = one.phase is InstancePhase.FAILED and one.revision == wanted.revision and wanted.phase in changes.IN_HAND
    return one.target is not Target.STOPPED and one.phase is not None and not judged


def _arrange(snapshot: hosting_store.Snapshot, statuses: Mapping[str, InstanceStatus]) -> Picture:
    instances: dict[str, list[Instance]] = {}
    for one in snapshot.instances:
        instances.setdefault(one.deployment_id, []).append(one)
    return Picture(
        deployments=snapshot.deployments,
        revisions={(one.deployment_id, one.number): one for one in snapshot.revisions},
        instances=instances,
        statuses=statuses,
    )
