"""From nouns to views: what the control API answers. Pure; nothing here holds a secret."""

from collections.abc import Mapping, Sequence
from typing import Any

from nexus.core import deployments, instances
from nexus.core.deployments import Deployment, Instance, Revision, Target
from nexus.core.phases import InstancePhase, RevisionPhase
from nexus.ports import hosting_store, vault
from nexus.wire import views


def render_version(version: deployments.Version, *, created: bool = True) -> views.VersionView:
    return views.VersionView(
        id=version.id,
        agent=version.agent,
        version=version.version,
        digest=version.digest,
        entrypoint=version.entrypoint,
        size_bytes=version.size_bytes,
        created_at=version.created_at,
        created=created,
    )


def render_revision(revision: Revision) -> views.RevisionView:
    return views.RevisionView(
        number=revision.number,
        version=revision.version,
        version_id=revision.version_id,
        phase=revision.phase.value,
        reason=revision.reason,
        replicas=revision.replicas,
        created_at=revision.created_at,
        created_by=revision.created_by,
        ended_at=revision.ended_at,
        problem=dict(revision.problem) if revision.problem is not None else None,
        strategy=revision.strategy.kind.value,
        outcome=dict(revision.progress.outcome) or None,
    )


def render_deployment(
    deployment: Deployment,
    revisions: Sequence[Revision],
    records: Sequence[Instance],
    statuses: Mapping[str, instances.InstanceStatus],
    *,
    origin: str,
) -> views.DeploymentView:
    """`revisions` newest first; the newest gives phase and version (an A/B test's winner, where an older one won),
    `active_version` is what serves meanwhile."""
    newest = revisions[0] if revisions else None
    if newest is not None and newest.phase is RevisionPhase.SUPERSEDED:
        newest = next((one for one in revisions if one.number == deployment.target_revision), newest)
    active = next((one for one in revisions if one.number == deployment.active_revision), None)
    by_number = {one.number: one for one in revisions}
    shown = [_render_instance(one, by_number.get(one.revision), statuses.get(one.id)) for one in records]
    ready = sum(
        one.target is Target.RUNNING and (status := statuses.get(one.id)) is not None and status.phase is InstancePhase.READY
        for one in records
    )
    scaling = deployment.scaling
    settings = newest.settings if newest is not None else None
    stopping = deployment.target is not Target.RUNNING
    return views.DeploymentView(
        id=deployment.id,
        agent=deployment.agent,
        environment=deployment.environment,
        phase="stopping" if stopping else newest.phase.value if newest is not None else "pending",
        revision=newest.number if newest is not None else 0,
        version=newest.version if newest is not None else "",
        version_id=newest.version_id if newest is not None else "",
        replicas=0 if stopping else deployment.replicas,
        ready=ready,
        cpu=_cpu(settings.cpu_millis) if settings is not None else None,
        memory=_memory(settings.memory_bytes) if settings is not None else None,
        autoscale=views.AutoscaleView(
            enabled=scaling.enabled,
            min_replicas=scaling.minimum,
            max_replicas=scaling.maximum,
            target_cpu=scaling.target_cpu,
            target_memory=scaling.target_memory,
            target_queue_depth=scaling.target_queue_depth,
        ),
        url=f"{origin}/agents/{deployment.agent}/run",
        instances=shown,
        problem=dict(newest.problem) if newest is not None and newest.problem is not None else None,
        updated_at=deployment.updated_at,
        **{
            "active_revision": active.number if active is not None else None,
            "active_version": active.version if active is not None else None,
        },
    )


def render_agent(
    agent: hosting_store.Agent, versions: Sequence[deployments.Version], shown: Sequence[views.DeploymentView]
) -> views.AgentView:
    return views.AgentView(
        name=agent.name,
        tenant=agent.tenant,
        created_at=agent.created_at,
        latest_version=versions[0].version if versions else None,
        deployments=list(shown),
        **{"latest_version_id": versions[0].id if versions else None},
    )


def render_secret(row: vault.SecretRow) -> views.SecretView:
    return views.SecretView(
        name=row.name, fingerprint=row.fingerprint, version=row.version, updated_at=row.updated_at, updated_by=row.updated_by
    )


def render_key(row: vault.KeyRow, key: str | None = None) -> views.KeyView:
    return views.KeyView(
        id=row.id,
        name=row.name,
        tenant=row.tenant,
        roles=list(row.roles),
        environment=row.environment,
        agents=None if row.agents is None else list(row.agents),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        key=key,
        **{"requests_per_minute": row.requests_per_minute},
    )


def render_event(stored: hosting_store.StoredEvent) -> dict[str, Any]:
    """A `RolloutEvent` as JSON."""
    return {"at": stored.at, "revision": stored.revision, **stored.event}


def _render_instance(record: Instance, revision: Revision | None, status: instances.InstanceStatus | None) -> views.InstanceView:
    phase = status.phase if status is not None else InstancePhase.PENDING
    if record.target is Target.STOPPED and phase is not InstancePhase.STOPPED:
        phase = InstancePhase.STOPPING
    shown = Target.DRAINING.value if record.target is Target.DRAINING and phase is InstancePhase.READY else phase.value
    view = views.InstanceView(id=record.id, phase=shown, version=revision.version if revision is not None else "")
    if status is None:
        return view
    return view.model_copy(
        update={
            "address": status.address,
            "pid": status.pid,
            "restarts": status.restarts,
            "started_at": status.started_at,
            "step": status.step,
            "detail": status.detail,
            "cpu_s": status.usage.cpu_s,
            "memory_bytes": status.usage.memory_bytes,
            "active_runs": status.usage.active_runs,
            "sessions": status.usage.sessions,
            "saved_sessions": status.usage.saved,
            "last_end": dict(status.last_end) if status.last_end is not None else None,
            "problem": dict(status.problem) if status.problem is not None else None,
        }
    )


def _cpu(millis: int | None) -> str | None:
    return None if millis is None else f"{millis}m"


def _memory(size: int | None) -> str | None:
    if size is None:
        return None
    for unit, power in (("Gi", 1024**3), ("Mi", 1024**2), ("Ki", 1024)):
        if size % power == 0:
            return f"{size // power}{unit}"
    return str(size)
