"""Do what the planner said: store first, then ask the driver. Every action is idempotent and looks again under the lock, so a
plan made from an old picture does no harm."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nexus.core import deployments, errors, ids, instances
from nexus.core.deployments import Deployment, Instance, Revision, Target
from nexus.core.phases import RevisionPhase
from nexus.hosting import changes, drains, planner, strategies
from nexus.kit import clock
from nexus.ports import driver, hosting_store

_LOG = logging.getLogger(__name__)
_LOG_LINES = 20
SecretValues = Callable[[str, str], Awaitable[Mapping[str, str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Of an instance: the token itself and the form that is stored."""

    derive: Callable[[str], str]
    hash: Callable[[str], str]


class Executor:
    def __init__(
        self,
        *,
        store: hosting_store.HostingStore,
        driver: driver.Driver,
        secret_values: SecretValues,
        tokens: Tokens,
        door_of: Callable[[str], str],
        forget_agent: Callable[[str, str], Awaitable[None]],
        forget_sessions: Callable[[str, str, str], Awaitable[None]],
        clock: clock.Clock,
        traces: bool = False,
    ) -> None:
        self._store = store
        self._driver = driver
        self._traces = traces
        self._secret_values = secret_values
        self._tokens = tokens
        self._door_of = door_of
        self._forget_agent, self._forget_sessions = forget_agent, forget_sessions
        self._clock = clock

    async def apply(self, deployment: Deployment, action: planner.Action, revisions: Mapping[int, Revision]) -> None:
        """Perform one action of a plan for this deployment."""
        match action:
            case planner.Mint():
                await self._mint(deployment, action.revision, draining=action.draining)
            case planner.Start():
                await self._start_again(deployment, action.instance_id, revisions)
            case planner.Retire():
                await self._retire(deployment, action.instance_id)
            case planner.Drain() | planner.Resume():
                await self._retarget(deployment, action, revisions)
            case planner.Stop():
                await self._driver.stop(action.instance_id, grace_s=action.grace_s)
            case planner.Forget():
                await self._forget(deployment, action.instance_id)
            case planner.Remove():
                await self._remove(deployment)
            case _:
                await self._apply_to_rollout(deployment, action)

    async def _apply_to_rollout(self, deployment: Deployment, action: planner.RolloutAction) -> None:
        match action:
            case planner.Begin():
                await self._begin(deployment, action.revision)
            case planner.Activate():
                await self._activate(deployment, action)
            case planner.Advance():
                await self._advance(deployment, action)
            case planner.SwitchBack():
                await self._switch_back(deployment, action)
            case planner.Fail():
                await self._fail(deployment, action)

    async def note(self, deployment: Deployment, revision: int, status: instances.InstanceStatus) -> None:
        """Write an instance's step into the rollout's events, and remember when it was ready first."""
        async with self._change(deployment) as change:
            if change.deployment is None:
                return
            event = {
                "phase": status.phase.value,
                "message": f"instance {status.phase.value}",
                "instance_id": status.id,
                "step": status.step,
                "detail": status.detail,
                "done": False,
            }
            await change.add_event(revision, self._clock.time(), event)

    async def rescale(self, deployment: Deployment, replicas: int) -> None:
        """The autoscaler's wish becomes desired state, unless a person changed the deployment meanwhile."""
        async with self._change(deployment) as change:
            now = change.deployment
            if now is None or not now.scaling.enabled or now.replicas != deployment.replicas:
                return
            await change.put_deployment(replace(now, replicas=replicas, updated_at=self._clock.time()))
        _LOG.info("%s in %s goes from %d to %d replicas", deployment.agent, deployment.environment, deployment.replicas, replicas)

    def _change(self, deployment: Deployment) -> Any:
        return self._store.change(deployment.tenant, deployment.agent, deployment.environment)

    async def _begin(self, deployment: Deployment, number: int) -> None:
        async with self._change(deployment) as change:
            revision = await _in_hand(change, deployment, number)
            if revision is None or revision.phase is not RevisionPhase.PENDING:
                return
            await change.put_revision(replace(revision, phase=RevisionPhase.ROLLING))
            for one in await change.revisions():
                if one.progress.lead == number and one.phase is RevisionPhase.PENDING:
                    await change.put_revision(replace(one, phase=RevisionPhase.ROLLING))
            wanted = f"{change.deployment.replicas} instance{'s' if change.deployment.replicas != 1 else ''}"
            event = {"phase": RevisionPhase.ROLLING.value, "message": f"starting {wanted}", "done": False}
            await change.add_event(number, self._clock.time(), event)

    async def _mint(self, deployment: Deployment, number: int, *, draining: bool) -> None:
        async with self._change(deployment) as change:
            now = change.deployment
            if now is None or now.target is not Target.RUNNING:
                return
            revisions = {one.number: one for one in await change.revisions()}
            wanted = {now.target_revision, *(share.revision for share in self._shares(now, revisions))}
            if draining:
                wanted = set(drains.find_keeping(now, revisions, self._clock.time()))
            revision = revisions.get(number)
            if revision is None or number not in wanted:
                return
            instance_id = ids.new_id(ids.INSTANCE)
            minted = Instance(
                id=instance_id,
                deployment_id=now.id,
                tenant=now.tenant,
                revision=number,
                target=Target.DRAINING if draining else Target.RUNNING,
                token_hash=self._tokens.hash(self._tokens.derive(instance_id)),
                created_at=self._clock.time(),
            )
            await change.put_instance(minted)
        await self._driver.start(await self._spec(deployment, revision, instance_id, draining=draining))

    def _shares(self, deployment: Deployment, revisions: Mapping[int, Revision]) -> tuple[strategies.Share, ...]:
        return strategies.plan_shares(deployment, revisions, self._clock.time())

    async def _start_again(self, deployment: Deployment, instance_id: str, revisions: Mapping[int, Revision]) -> None:
        for one in await self._store.instances(deployment.tenant, deployment.id):
            if one.id == instance_id and one.target is not Target.STOPPED and one.revision in revisions:
                draining = one.target is Target.DRAINING
                await self._driver.start(await self._spec(deployment, revisions[one.revision], instance_id, draining=draining))

    async def _retarget(
        self, deployment: Deployment, action: planner.Drain | planner.Resume, revisions: Mapping[int, Revision]
    ) -> None:
        """The node hears of it too: an instance that drains needs no workers in reserve."""
        draining = isinstance(action, planner.Drain)
        before, after = (Target.RUNNING, Target.DRAINING) if draining else (Target.DRAINING, Target.RUNNING)
        async with self._change(deployment) as change:
            mine = [one for one in await change.instances() if one.id == action.instance_id and one.target is before]
            for one in mine:
                await change.put_instance(replace(one, target=after))
        for one in mine:
            if one.revision in revisions:
                await self._driver.start(await self._spec(deployment, revisions[one.revision], one.id, draining=draining))

    async def _spec(
        self, deployment: Deployment, revision: Revision, instance_id: str, *, draining: bool = False
    ) -> instances.InstanceSpec:
        settings = revision.settings
        options = {**settings.options, "traces": True} if self._traces else settings.options
        if draining and isinstance(session := options.get("session"), Mapping):
            options = {**options, "session": {**session, "warm": 0}}
        return instances.InstanceSpec(
            id=instance_id,
            tenant=deployment.tenant,
            agent=deployment.agent,
            environment=deployment.environment,
            deployment_id=deployment.id,
            version_id=revision.version_id,
            version=revision.version,
            package_digest=settings.package_digest,
            entrypoint=settings.entrypoint,
            token=self._tokens.derive(instance_id),
            door=self._door_of(instance_id),
            env=settings.env,
            secrets=await self._secret_values(deployment.tenant, deployment.agent),
            memory_bytes=settings.memory_bytes,
            cpu_millis=settings.cpu_millis,
            health=settings.health,
            start_timeout_s=settings.start_timeout_s,
            run_timeout_s=settings.run_timeout_s,
            options=options,
        )

    async def _retire(self, deployment: Deployment, instance_id: str) -> None:
        async with self._change(deployment) as change:
            for one in await change.instances():
                if one.id == instance_id:
                    await change.put_instance(replace(one, target=Target.STOPPED))

    async def _forget(self, deployment: Deployment, instance_id: str) -> None:
        async with self._change(deployment) as change:
            if change.deployment is not None:
                await change.drop_instance(instance_id)

    async def _activate(self, deployment: Deployment, action: planner.Activate) -> None:
        lead = action.lead or action.revision
        async with self._change(deployment) as change:
            target = await _in_hand(change, deployment, lead)
            if target is None:
                return
            now = self._clock.time()
            revisions = await change.revisions()
            winner = next((one for one in revisions if one.number == action.revision), None)
            if winner is None:
                return
            outcome = dict(action.outcome)
            for past in revisions:
                if past.number != winner.number and past.phase is RevisionPhase.ACTIVE:
                    await change.put_revision(replace(past, phase=RevisionPhase.SUPERSEDED, ended_at=now))
                elif past.number != winner.number and lead in (past.number, past.progress.lead) and past.phase in changes.IN_HAND:
                    await change.put_revision(_not_chosen(past, winner, outcome, now))
            standby = change.deployment.active_revision if action.keeps_standby else None
            progress = replace(
                winner.progress,
                outcome=outcome,
                waiting="",
                lead=None,
                looks=0,
                looked_at=0,
                started=winner.progress.started or now,
                since=now,
                standby=standby,
                standby_until=now + winner.strategy.keep_s if standby is not None else None,
            )
            await change.put_revision(replace(winner, phase=RevisionPhase.ACTIVE, progress=progress))
            await change.put_deployment(
                replace(change.deployment, active_revision=winner.number, target_revision=winner.number, updated_at=now)
            )
            why = f": {outcome['reason']}" if outcome.get("reason") else ""
            event = {
                "phase": RevisionPhase.ACTIVE.value,
                "message": f"version {winner.version} is active{why}",
                "done": True,
                "outcome": outcome,
            }
            await change.add_event(lead, now, event)

    async def _advance(self, deployment: Deployment, action: planner.Advance) -> None:
        async with self._change(deployment) as change:
            now = change.deployment
            if now is None or now.target is not Target.RUNNING or now.target_revision != action.revision:
                return
            revision = next((one for one in await change.revisions() if one.number == action.revision), None)
            if revision is None or revision.progress.decision != action.progress.decision:
                return  # somebody decided meanwhile; the next plan knows of it
            await change.put_revision(replace(revision, progress=action.progress))
            if action.message:
                event = {
                    "phase": revision.phase.value,
                    "message": action.message,
                    "done": False,
                    "waits": action.waits,
                    "stage": action.progress.stage,
                }
                await change.add_event(action.revision, self._clock.time(), event)

    async def _switch_back(self, deployment: Deployment, action: planner.SwitchBack) -> None:
        problem = dict(action.problem)
        problem.setdefault("next_step", f"mend it and deploy again; its log: nexus ai agent logs {deployment.agent}")
        async with self._change(deployment) as change:
            now = change.deployment
            if now is None or now.target is not Target.RUNNING or now.target_revision != action.revision:
                return
            await put_switch_back(
                change, reason=str(problem.get("detail")), by="analysis", at=self._clock.time(), problem=problem
            )

    async def _fail(self, deployment: Deployment, action: planner.Fail) -> None:
        problem = dict(action.problem)
        if action.instance_id is not None and not problem.get("log_tail"):
            problem["log_tail"] = await self._log_tail(action.instance_id)
        problem.setdefault("next_step", f"mend it and deploy again; its log: nexus ai agent logs {deployment.agent}")
        async with self._change(deployment) as change:
            revision = await _in_hand(change, deployment, action.revision)
            if revision is None:
                return
            started = action.instance_id is None
            said, by = ("was rolled back", "analysis") if started else ("did not start", "platform")
            await put_failure(
                change, revision, problem=problem, by=by, at=self._clock.time(), said=said, instance_id=action.instance_id
            )

    async def _log_tail(self, instance_id: str) -> list[str]:
        try:
            return list(await self._driver.log_tail(instance_id, lines=_LOG_LINES))
        except errors.NexusError:
            return []

    async def _remove(self, deployment: Deployment) -> None:
        """What its sessions kept goes first: should that fail, the deployment is still there, and this is planned again."""
        async with self._change(deployment) as change:
            if await _find_gone(change) is None:
                return
        await self._forget_sessions(deployment.tenant, deployment.agent, deployment.environment)
        async with self._change(deployment) as change:
            now = await _find_gone(change)
            if now is None:
                return
            await change.drop_deployment()
        if now.target is Target.REMOVED:
            await self._forget_agent(deployment.tenant, deployment.agent)


async def _find_gone(change: hosting_store.Change) -> Deployment | None:
    """The deployment, when it is to be removed and nothing of it is left running."""
    now = change.deployment
    return None if now is None or now.target is Target.RUNNING or await change.instances() else now


async def put_failure(
    change: hosting_store.Change,
    target: Revision,
    *,
    problem: dict[str, Any],
    by: str,
    at: float,
    said: str,
    instance_id: str | None = None,
) -> None:
    """Give a rollout up: what belongs to it has failed, and the active revision is wanted again."""
    if change.deployment is None:
        return
    back_to = change.deployment.active_revision if change.deployment.active_revision != target.number else None
    for failed in changes.plan_failure(await change.revisions(), target, problem=problem, by=by, now=at):
        await change.put_revision(failed)
    await change.put_deployment(replace(change.deployment, target_revision=back_to, updated_at=at))
    kept = f"; revision {back_to} goes on serving" if back_to is not None else ""
    event = {
        "phase": RevisionPhase.FAILED.value,
        "message": f"version {target.version} {said}{kept}",
        "instance_id": instance_id,
        "done": True,
        "problem": problem,
    }
    await change.add_event(target.number, at, event)


async def put_switch_back(
    change: hosting_store.Change, *, reason: str, by: str, at: float, problem: dict[str, Any]
) -> Revision | None:
    """Let the colour that stands by serve again, in this transaction; the new revision, or None when nothing stands by."""
    if change.deployment is None:
        return None
    switched = changes.plan_switch_back(
        change.deployment,
        await change.revisions(),
        await change.instances(),
        reason=reason,
        by=by,
        now=at,
        problem=problem,
    )
    if switched is None:
        return None
    await change.put_revision(switched.ended)
    await change.put_revision(switched.revision)
    for instance in switched.adopted:
        await change.put_instance(instance)
    await change.put_deployment(switched.deployment)
    message = f"switched back to version {switched.revision.version}: {reason}"
    event = {"phase": RevisionPhase.ACTIVE.value, "message": message, "done": True}
    await change.add_event(switched.revision.number, at, event)
    return switched.revision


async def switch_back_to(change: hosting_store.Change, past: Revision, *, by: str, at: float) -> bool:
    """Switch back at once when it is this revision that stands by; False when it is not."""
    if change.deployment is None:
        return False
    current = changes.find_target(change.deployment, await change.revisions())
    if current is None or current.progress.standby != past.number:
        return False
    problem = changes.aborted_problem(current, by)
    return await put_switch_back(change, reason=f"asked for by {by}", by=by, at=at, problem=problem) is not None


def _not_chosen(past: Revision, winner: Revision, outcome: dict[str, Any], at: float) -> Revision:
    problem = {
        "code": strategies.NOT_CHOSEN,
        "kind": "conflict",
        "status": 409,
        "detail": f"version {winner.version} was chosen instead",
    }
    ended = replace(past.progress, outcome={**outcome, "decision": "not chosen"})
    return replace(past, phase=RevisionPhase.SUPERSEDED, ended_at=at, problem=problem, progress=ended)


async def _in_hand(change: hosting_store.Change, deployment: Deployment, number: int) -> deployments.Revision | None:
    """The target revision, if it is still this one and still on its way."""
    now = change.deployment
    if now is None or now.id != deployment.id or now.target_revision != number:
        return None
    return next((one for one in await change.revisions() if one.number == number and one.phase in changes.IN_HAND), None)
