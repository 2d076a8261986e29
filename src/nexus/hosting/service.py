"""Verbs on agents and deployments. Each writes desired state in one transaction, wakes the reconciler and answers at once.

Who calls: `api.agents` and `api.deployments`. `caller` is authenticated; a verb checks what it may do and stays in its tenant.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nexus.core import deployments, environments, errors, ids, instances, names, rollouts
from nexus.core.deployments import Deployment, Revision, Target, Version
from nexus.core.phases import RevisionPhase
from nexus.core.principals import Action, Principal
from nexus.hosting import autoscale, changes, drains, executor, packages, sizing, strategies
from nexus.kit import clock
from nexus.ports import hosting_store, run_samples
from nexus.wire import params, project, project_file

SecretStamp = Callable[[str, str], Awaitable[tuple[str, frozenset[str]]]]
ForgetSecrets = Callable[[str, str], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A deployment with its newest revision first; what a face renders."""

    deployment: Deployment
    revisions: Sequence[Revision]


class HostingService:
    def __init__(
        self,
        *,
        store: hosting_store.HostingStore,
        folder: packages.PackageFolder,
        secret_stamp: SecretStamp,
        forget_secrets: ForgetSecrets,
        clock: clock.Clock,
    ) -> None:
        self.store = store
        self._folder = folder
        self._secret_stamp = secret_stamp
        self._forget_secrets = forget_secrets
        self._clock = clock
        self._packages = asyncio.Lock()  # a package is not dropped between being kept and being named by a version
        self.wake: Callable[[], None] = lambda: None
        self.samples: run_samples.RunSamples | None = None
        self.statuses: Callable[[], Mapping[str, instances.InstanceStatus]] = dict

    def now(self) -> float:
        return self._clock.time()

    async def add_version(self, caller: Principal, agent: str, chunks: AsyncIterator[bytes]) -> tuple[Version, bool]:
        """Store an uploaded package as a version; False when the same version with the same content was there.

        `Invalid` (`name.mismatch`, `config.*`, `package.*`), `Conflict` (`version.content_differs`), `Exhausted` (`storage.*`).
        """
        names.parse_label(agent)
        caller.require(Action.DEPLOY, agent=agent)
        draft = await self._folder.receive(chunks)
        try:
            examined = await self._folder.examine(draft)
            if examined.config.name != agent:
                raise errors.Invalid(
                    f"the package is of agent {examined.config.name!r}, not {agent!r}",
                    code="name.mismatch",
                    cause="`name` in config.yaml is another one",
                    next_step=f"deploy it as {examined.config.name}, or change the name in config.yaml",
                )
            async with self._packages:
                await self._folder.keep(draft, examined.digest)
                return await self._put_version(caller, agent, examined)
        finally:
            draft.unlink(missing_ok=True)

    async def _put_version(self, caller: Principal, agent: str, examined: packages.Examined) -> tuple[Version, bool]:
        # Two uploads without a number may race for the next one; the loser takes the one after it.
        for _ in range(20):
            known = await self.store.versions(caller.tenant, agent)
            if examined.config.version is None and (same := _latest_of(known, examined.digest)) is not None:
                return same, False
            version = Version(
                id=ids.new_id(ids.VERSION),
                tenant=caller.tenant,
                agent=agent,
                version=examined.config.version or next_number(known),
                digest=examined.digest,
                entrypoint=examined.entrypoint,
                size_bytes=examined.size_bytes,
                config={"file": examined.config_text},
                created_at=self._clock.time(),
                created_by=caller.id,
            )
            stored, created = await self.store.put_version(version)
            if created or stored.digest == examined.digest:
                return stored, created
            if examined.config.version is not None:
                break
        if not await self.store.digest_in_use(examined.digest):
            self._folder.drop(examined.digest)
        raise errors.Conflict(
            f"version {version.version} of {agent!r} is there already with other content",
            code="version.content_differs",
            cause="a version never changes once it is stored",
            next_step="raise `version` in config.yaml (or remove it, then versions number themselves) and deploy again",
            extra={"digest": stored.digest},
        )

    async def deploy(self, caller: Principal, asked: params.DeployParams) -> Deployed:
        """Make a version the target of an environment. Deploying what is deployed already changes nothing."""
        names.parse_label(asked.agent)
        require(caller, Action.DEPLOY, asked.agent, asked.environment)
        environments.default_bounds(asked.environment)
        version = await self.store.version(caller.tenant, asked.version_id)
        if version is None or version.agent != asked.agent:
            raise errors.NotFound(
                f"agent {asked.agent!r} has no version {asked.version_id[:64]!r}",
                code="version.not_found",
                next_step="upload it first: nexus ai agent deploy does both",
            )
        config = read_config(version)
        strategy = strategies.plan_strategy(config.hosting.strategy, asked.strategy)
        arms = await self._arms(caller, asked, version, strategy)
        scaling = sizing.plan_scaling(config, asked.environment)
        async with self.store.change(caller.tenant, asked.agent, asked.environment) as change:
            now, before = self._clock.time(), change.deployment
            alive = before is not None and before.target is Target.RUNNING
            current = before.replicas if before is not None and alive else None
            replicas = sizing.plan_replicas(scaling, asked.environment, asked.replicas, current)
            deployment = replace(
                before or _new_deployment(caller.tenant, asked, scaling, now), replicas=replicas, scaling=scaling, updated_at=now
            )
            revisions = await change.revisions()
            deployment = replace(deployment, active_revision=deployment.active_revision if alive else None)
            start = changes.choose_start(deployment, revisions, strategy, arms, version)
            target = changes.find_target(deployment, revisions) if alive else None
            if changes.is_same(target, start):
                await change.put_deployment(deployment)
            else:
                lead = await self._roll(change, deployment, start, "deploy", caller.id)
                for member in changes.plan_members(lead, start.strategy.variants, arms):
                    await change.put_revision(member)
            result = await _deployed(change)
        self.wake()
        return result

    async def _arms(
        self, caller: Principal, asked: params.DeployParams, version: Version, strategy: rollouts.Strategy
    ) -> changes.Arms:
        """What is deployed: the version itself, or every variant of an A/B test, with the settings of each."""
        stamp, present = await self._secret_stamp(caller.tenant, asked.agent)
        wishes = sizing.Asked(replicas=asked.replicas, cpu=asked.cpu, memory=asked.memory, options=asked.options)
        known = {one.version: one for one in await self.store.versions(caller.tenant, asked.agent)} if strategy.variants else {}
        arms: dict[str, tuple[Version, deployments.Settings]] = {}
        for number in [variant.version for variant in strategy.variants] or [version.version]:
            found = version if number == version.version else known.get(number)
            if found is None:
                raise errors.NotFound(
                    f"agent {asked.agent!r} has no version {number!r}",
                    code="version.not_found",
                    cause=f"the versions are {', '.join(list(known)[:20])}",
                    next_step="upload it first: nexus ai agent deploy does both",
                )
            config = read_config(found)
            if missing := [name for name in config.hosting.secrets if name not in present]:
                raise _missing_secrets(asked.agent, missing)
            arms[number] = (found, sizing.plan_settings(found, config, wishes, secrets_stamp=stamp))
        if version.version not in arms:
            raise errors.Invalid(
                f"version {version.version} is deployed and is none of the variants",
                code="strategy.invalid",
                next_step=f"name it as one: --variant treatment={version.version}:50",
            )
        return arms

    async def rollback(self, caller: Principal, agent: str, asked: params.RollbackParams) -> Deployed:
        """Back to the version that ran before, or to a given one, with the settings it had then and today's secrets."""
        environment = await self.environment_of(caller, agent, asked.environment)
        require(caller, Action.DEPLOY, agent, environment)
        stamp, _ = await self._secret_stamp(caller.tenant, agent)
        async with self.store.change(caller.tenant, agent, environment) as change:
            deployment = existing(change.deployment, agent, environment)
            revisions = await change.revisions()
            past = changes.find_rollback(deployment, revisions, asked.version)
            settings = replace(past.settings, secrets_stamp=stamp)
            start = changes.Start(
                version_id=past.version_id,
                version=past.version,
                settings=sizing.with_update(settings, asked.sessions),
                strategy=strategies.as_rolling(past.strategy),
            )
            stood_by = past.settings == start.settings and await executor.switch_back_to(
                change, past, by=caller.id, at=self._clock.time()
            )
            if not stood_by and not changes.is_same(changes.find_target(deployment, revisions), start):
                await self._roll(change, deployment, start, f"rollback to revision {past.number}", caller.id)
            result = await _deployed(change)
        self.wake()
        return result

    async def scale(self, caller: Principal, agent: str, asked: params.ScaleParams) -> Deployed:
        """Replicas within the bounds at once; autoscaling on or off; new sizes per instance as a rolling restart."""
        environment = await self.environment_of(caller, agent, asked.environment)
        require(caller, Action.DEPLOY, agent, environment)
        defaults = (autoscale.DEFAULT_TARGET_CPU, autoscale.DEFAULT_TARGET_MEMORY)
        async with self.store.change(caller.tenant, agent, environment) as change:
            deployment = existing(change.deployment, agent, environment)
            scaling = changes.plan_scaling_change(deployment.scaling, asked, defaults)
            replicas = sizing.plan_replicas(scaling, environment, asked.replicas, deployment.replicas)
            deployment = replace(deployment, scaling=scaling, replicas=replicas, updated_at=self._clock.time())
            await change.put_deployment(deployment)
            if asked.cpu is not None or asked.memory is not None:
                await self._resize(change, deployment, asked, caller.id)
            result = await _deployed(change)
        self.wake()
        return result

    async def _resize(self, change: hosting_store.Change, deployment: Deployment, asked: params.ScaleParams, by: str) -> None:
        target = changes.find_stable(deployment, await change.revisions())
        if target is None:
            raise errors.Conflict(
                f"{deployment.agent} in {deployment.environment} runs no version",
                code="deployment.not_running",
                next_step=f"deploy one: nexus ai agent deploy {deployment.agent} --env {deployment.environment}",
            )
        cpu = target.settings.cpu_millis if asked.cpu is None else sizing.parse_cpu(asked.cpu)
        memory = target.settings.memory_bytes if asked.memory is None else sizing.parse_memory(asked.memory)
        settings = replace(target.settings, cpu_millis=cpu, memory_bytes=memory)
        if settings != target.settings:
            await self._roll(change, deployment, _again(target, settings), "sizes changed", by)

    async def restart(self, tenant: str, agent: str, *, reason: str, by: str = "platform") -> None:
        """A rolling restart of every deployment of an agent, with today's secrets."""
        stamp, _ = await self._secret_stamp(tenant, agent)
        for found in await self.store.deployments_of(tenant, agent):
            async with self.store.change(tenant, agent, found.environment) as change:
                deployment = change.deployment
                if deployment is None or deployment.target is not Target.RUNNING:
                    continue
                target = changes.find_stable(deployment, await change.revisions())
                if target is None or target.settings.secrets_stamp == stamp:
                    continue
                settings = replace(target.settings, secrets_stamp=stamp)
                await self._roll(change, deployment, _again(target, settings), reason, by)
        self.wake()

    async def release_sessions(self, caller: Principal, agent: str, asked: params.MoveSessionsParams) -> Deployed:
        """The sessions of a version that was replaced go on on what serves now, with what is kept of them.

        `Conflict` (`session.version_serves`), `NotFound` (`version.not_found`).
        """
        environment = await self.environment_of(caller, agent, asked.environment)
        require(caller, Action.DEPLOY, agent, environment)
        async with self.store.change(caller.tenant, agent, environment) as change:
            deployment = existing(change.deployment, agent, environment)
            for revision in drains.plan_release(deployment, await change.revisions(), asked.version):
                await change.put_revision(revision)
            result = await _deployed(change)
        self.wake()
        return result

    async def delete(self, caller: Principal, agent: str, environment: str | None) -> bool:
        """Drain and stop an agent's deployments (all, or one environment's); the agent itself goes with its last one.

        True when anything is being stopped, False when there was nothing to stop and the agent was removed at once.
        """
        names.parse_label(agent)
        require(caller, Action.DEPLOY, agent, environment)
        found = [one for one in await self.store.deployments_of(caller.tenant, agent) if _selected(caller, one, environment)]
        if environment is not None:
            environments.default_bounds(environment)
        if (environment is not None and not found) or await self.store.agent(caller.tenant, agent) is None:
            raise no_agent(agent, environment)
        target = Target.REMOVED if environment is None and caller.environment is None else Target.STOPPED
        for one in found:
            async with self.store.change(caller.tenant, agent, one.environment) as change:
                if change.deployment is not None:
                    gone = replace(change.deployment, target=target, updated_at=self._clock.time())
                    await change.put_deployment(gone)
        if target is Target.REMOVED and not found:
            await self.forget_agent(caller.tenant, agent)
        self.wake()
        return bool(found)

    async def forget_agent(self, tenant: str, agent: str) -> None:
        """Remove an agent without deployments: its versions, their packages where nobody else has them, its secrets."""
        async with self._packages:
            versions = await self.store.versions(tenant, agent)
            if not await self.store.drop_agent(tenant, agent):
                return
            await self._forget_secrets(tenant, agent)
            for digest in {version.digest for version in versions}:
                if not await self.store.digest_in_use(digest):
                    self._folder.drop(digest)

    async def get(self, caller: Principal, deployment_id: str) -> Deployed:
        """`NotFound` (code `deployment.not_found`) also when it is another tenant's."""
        deployment = await self.store.deployment(caller.tenant, deployment_id)
        if deployment is None or not caller.may(Action.READ, agent=deployment.agent):
            raise errors.NotFound(
                f"there is no deployment {deployment_id[:64]!r}",
                code="deployment.not_found",
                next_step="see what there is: nexus ai agent list",
            )
        return Deployed(deployment=deployment, revisions=await self.store.revisions(caller.tenant, deployment.id))

    async def agents(self, caller: Principal) -> list[hosting_store.Agent]:
        caller.require(Action.READ)
        return [one for one in await self.store.agents(caller.tenant) if caller.may(Action.READ, agent=one.name)]

    async def agent(self, caller: Principal, name: str) -> hosting_store.Agent:
        names.parse_label(name)
        found = await self.store.agent(caller.tenant, name)
        if found is None or not caller.may(Action.READ, agent=name):
            raise no_agent(name, None)
        return found

    async def history(self, caller: Principal, agent: str, environment: str | None) -> Deployed:
        chosen = await self.environment_of(caller, agent, environment)
        require(caller, Action.READ, agent, chosen)
        for one in await self.store.deployments_of(caller.tenant, agent):
            if one.environment == chosen:
                return Deployed(deployment=one, revisions=await self.store.revisions(caller.tenant, one.id))
        raise no_agent(agent, chosen)

    async def environment_of(self, caller: Principal, agent: str, asked: str | None) -> str:
        """The environment meant: as asked, else the key's, else production when deployed there, else the only one."""
        await self.agent(caller, agent)
        deployed = [one.environment for one in await self.store.deployments_of(caller.tenant, agent)]
        if asked is not None:
            environments.default_bounds(asked)
        chosen = asked or caller.environment
        if chosen is None:
            deployed = [name for name in deployed if not environments.is_scratch(name)]
        if chosen is None and len(deployed) > 1 and "production" not in deployed:
            raise errors.Invalid(
                f"agent {agent!r} is deployed in {' and '.join(deployed)}",
                code="environment.required",
                next_step=f"say which with --env {deployed[0]}",
            )
        if chosen is None and deployed:
            chosen = "production" if "production" in deployed else deployed[0]
        if chosen is None or chosen not in deployed:
            raise no_agent(agent, chosen or "any environment")
        return chosen

    async def _roll(
        self, change: hosting_store.Change, deployment: Deployment, start: changes.Start, reason: str, by: str
    ) -> Revision:
        now = self._clock.time()
        before = await change.revisions()
        made = changes.plan_revision(deployment, before, start, reason=reason, by=by, now=now)
        await change.put_deployment(made.deployment)
        for instance in drains.plan_return(await change.instances(), before, made.revision):
            await change.put_instance(instance)
        for past in made.superseded:
            await change.put_revision(past)
            event = {
                "phase": past.phase.value,
                "message": f"superseded by revision {made.revision.number}",
                "done": True,
                "problem": past.problem,
            }
            await change.add_event(past.number, now, event)
        await change.put_revision(made.revision)
        event = {"phase": RevisionPhase.PENDING.value, "message": f"{reason}: version {start.version}", "done": False}
        await change.add_event(made.revision.number, now, event)
        return made.revision


def _again(target: Revision, settings: deployments.Settings) -> changes.Start:
    """The same version with other settings, as a rolling restart."""
    return changes.Start(
        version_id=target.version_id,
        version=target.version,
        settings=settings,
        strategy=strategies.as_rolling(target.strategy),
    )


def _missing_secrets(agent: str, missing: list[str]) -> errors.Conflict:
    return errors.Conflict(
        f"agent {agent!r} needs the secret {missing[0]}, which is not set",
        code="secret.missing",
        cause=f"config.yaml names {', '.join(missing)} under hosting.secrets",
        next_step=f"nexus ai agent secret set {agent} {missing[0]}",
        extra={"missing": missing},
    )


def require(caller: Principal, action: Action, agent: str, environment: str | None) -> None:
    """Nothing, or `Forbidden`, for this agent and, when the key is bound to one, this environment."""
    caller.require(action, agent=agent)
    if caller.environment is not None and environment != caller.environment:
        raise errors.Forbidden(
            f"key {caller.id} is bound to {caller.environment}",
            cause=f"this concerns {environment or 'every environment'}",
            next_step=f"name --env {caller.environment}, or use another key",
        )


def no_agent(agent: str, environment: str | None) -> errors.NotFound:
    where = f" in {environment}" if environment else ""
    return errors.NotFound(
        f"there is no agent {agent[:64]!r}{where}",
        code="agent.not_found",
        next_step="see what there is: nexus ai agent list",
    )


def read_config(version: Version) -> project.ProjectConfig:
    return project_file.parse_project(str(version.config["file"]), "config.yaml")


def next_number(known: Sequence[Version]) -> str:
    """`0.0.N` above every version that was numbered before."""
    taken = [int(one.version[4:]) for one in known if one.version.startswith("0.0.") and one.version[4:].isdecimal()]
    return f"0.0.{max(taken, default=0) + 1}"


def _latest_of(known: Sequence[Version], digest: str) -> Version | None:
    return next((one for one in known if one.digest == digest), None)


def _selected(caller: Principal, deployment: Deployment, environment: str | None) -> bool:
    return environment in (None, deployment.environment) and caller.environment in (None, deployment.environment)


def existing(deployment: Deployment | None, agent: str, environment: str) -> Deployment:
    if deployment is None or deployment.target is not Target.RUNNING:
        raise no_agent(agent, environment)
    return deployment


def _new_deployment(tenant: str, asked: params.DeployParams, scaling: deployments.Scaling, now: float) -> Deployment:
    return Deployment(
        id=ids.new_id(ids.DEPLOYMENT),
        tenant=tenant,
        agent=asked.agent,
        environment=asked.environment,
        target=Target.RUNNING,
        target_revision=None,
        active_revision=None,
        replicas=scaling.minimum,
        scaling=scaling,
        created_at=now,
        updated_at=now,
    )


async def _deployed(change: hosting_store.Change) -> Deployed:
    if change.deployment is None:
        raise errors.Internal("a deployment vanished while it was changed")
    return Deployed(deployment=change.deployment, revisions=await change.revisions())
