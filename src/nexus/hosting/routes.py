"""Render what gateways must know about hosting: deployments, instance tokens, keys. Pure; `api.feed` sends the differences."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from nexus.core.deployments import Deployment, Instance, Revision, Target
from nexus.core.instances import InstanceStatus
from nexus.core.phases import InstancePhase
from nexus.ports import vault
from nexus.wire import feed


def render_deployments(
    deployments: Iterable[Deployment],
    revisions: Mapping[tuple[str, int], Revision],
    instances: Mapping[str, list[Instance]],
    statuses: Mapping[str, InstanceStatus],
) -> dict[str, feed.DeploymentEntry]:
    """One entry for each deployment that is wanted. It lists the instances that may take new runs: wanted, ready, reachable."""
    entries: dict[str, feed.DeploymentEntry] = {}
    for one in deployments:
        if one.target is not Target.RUNNING:
            continue
        mine = instances.get(one.id, [])
        number = one.target_revision or one.active_revision or 0
        settings_of = revisions.get((one.id, number))
        settings = settings_of.settings if settings_of is not None else None
        coming = one.target_revision is not None and one.replicas > 0
        entries[f"deployment/{one.tenant}/{one.agent}/{one.environment}"] = {
            "id": one.id,
            "revision": number,
            "balancer": cast("Any", settings.balancer if settings else "least-connections"),
            "instances": [entry for each in mine if (entry := _render_instance(one, each, revisions, statuses)) is not None],
            "timeout_s": settings.run_timeout_s if settings else 8 * 3600.0,
            "wait_s": settings.wait_s if settings and coming else 0.0,
            "max_concurrency": settings.max_concurrency if settings else None,
            "max_queue": settings.max_queue if settings else 0,
        }
    return entries


def render_tokens(deployments: Iterable[Deployment], instances: Iterable[Instance]) -> dict[str, feed.TokenEntry]:
    """Whose instance a token is; retired instances keep theirs until they are gone."""
    by_id = {one.id: one for one in deployments}
    return {
        f"token/{each.token_hash}": {
            "instance_id": each.id,
            "tenant": each.tenant,
            "agent": owner.agent,
            "environment": owner.environment,
        }
        for each in instances
        if (owner := by_id.get(each.deployment_id)) is not None
    }


def render_keys(rows: Iterable[vault.KeyRow]) -> dict[str, feed.KeyEntry]:
    return {
        f"key/{row.hash}": {
            "id": row.id,
            "tenant": row.tenant,
            "roles": list(row.roles),
            "environment": row.environment,
            "agents": None if row.agents is None else list(row.agents),
            "expires_at": row.expires_at,
            "requests_per_minute": row.requests_per_minute,
        }
        for row in rows
    }


def render_service_key(key_hash: str) -> dict[str, feed.KeyEntry]:
    """The dispatcher's token; only the role `service` may speak for a tenant."""
    return {
        f"key/{key_hash}": {
            "id": "service:dispatcher",
            "tenant": "default",
            "roles": ["service"],
            "environment": None,
            "agents": None,
            "expires_at": None,
            "requests_per_minute": None,
        }
    }


def _render_instance(
    deployment: Deployment,
    instance: Instance,
    revisions: Mapping[tuple[str, int], Revision],
    statuses: Mapping[str, InstanceStatus],
) -> feed.InstanceEntry | None:
    status, revision = statuses.get(instance.id), revisions.get((deployment.id, instance.revision))
    usable = instance.target is Target.RUNNING and status is not None and status.phase is InstancePhase.READY
    if not usable or status is None or status.address is None:
        return None
    return {"id": instance.id, "address": status.address, "version": revision.version if revision is not None else ""}
