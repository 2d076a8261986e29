"""Render what gateways must know about hosting: deployments, instance tokens, keys. Pure; `api.feed` sends the differences."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from nexus.core.deployments import Deployment, Instance, Revision, Target
from nexus.core.instances import InstanceStatus
from nexus.core.phases import InstancePhase, RevisionPhase
from nexus.hosting import drains, sizing, strategies
from nexus.ports import vault
from nexus.wire import feed


def render_deployments(
    deployments: Iterable[Deployment],
    revisions: Mapping[tuple[str, int], Revision],
    instances: Mapping[str, list[Instance]],
    statuses: Mapping[str, InstanceStatus],
    now: float = 0.0,
    barred: Collection[tuple[str, int]] = (),
) -> dict[str, feed.DeploymentEntry]:
    """One entry for each deployment that is wanted. It lists the instances that may take new runs: wanted, ready, reachable, and
    of a revision that has a share of the traffic; apart from them those that keep the sessions they have. `now` (seconds since
    the epoch) ends the time a colour stands by. `barred` are revisions that cannot be started for their sessions."""
    entries: dict[str, feed.DeploymentEntry] = {}
    for one in deployments:
        if one.target is not Target.RUNNING:
            continue
        mine = {number: revision for (owner, number), revision in revisions.items() if owner == one.id}
        reachable = [each for each in instances.get(one.id, []) if _address_of(each, statuses) is not None]
        ready = [each for each in reachable if each.target is Target.RUNNING]
        traffic = _plan_traffic(one, mine, ready, now)

        def listed(chosen: Iterable[Instance], labels: Mapping[int, str] = traffic.labels) -> list[feed.InstanceEntry]:
            return [
                {"id": each.id, "address": _address_of(each, statuses) or "", "version": labels.get(each.revision, "")}
                for each in chosen
            ]

        number = one.target_revision or one.active_revision or 0
        settings = mine[number].settings if number in mine else None
        coming = one.target_revision is not None and one.replicas > 0
        entry: feed.DeploymentEntry = {
            "id": one.id,
            "revision": number,
            "balancer": cast("Any", settings.balancer if settings else "least-connections"),
            "instances": listed([each for each in ready if each.revision not in traffic.without]),
            "timeout_s": settings.run_timeout_s if settings else 8 * 3600.0,
            "wait_s": settings.wait_s if settings and coming else 0.0,
            "max_concurrency": settings.max_concurrency if settings else None,
            "max_queue": settings.max_queue if settings else 0,
        }
        edge = dict(settings.options.get(sizing.EDGE) or {}) if settings is not None else {}
        if settings is not None and settings.options.get("isolation") == "session":
            edge["isolation"] = "session"
        if options := edge | (traffic.split or {}):
            entry["options"] = options
        if idle := [each for each in ready if each.revision in traffic.idle]:
            entry["idle"] = listed(idle)
        keeping = drains.find_keeping(one, mine, now)
        if draining := [each for each in reachable if each.target is Target.DRAINING and each.revision in keeping]:
            entry["draining"] = listed(draining)
        there = {each.revision for each in draining}
        wakeable = {number for number in drains.find_wakeable(one, mine, now) if (one.id, number) not in barred}
        if asleep := sorted({mine[number].version for number in wakeable - there}):
            entry["asleep"] = asleep
        entries[f"deployment/{one.tenant}/{one.agent}/{one.environment}"] = entry
    return entries


@dataclass(frozen=True, slots=True, kw_only=True)
class _Traffic:
    """What serves: revisions `without` traffic, those of them that are `idle` by plan (prepared, or standing by), what each is
    called, and the split between them (None: none)."""

    without: frozenset[int]
    labels: Mapping[int, str]
    split: dict[str, Any] | None
    idle: frozenset[int] = frozenset()


def _plan_traffic(one: Deployment, mine: Mapping[int, Revision], ready: Iterable[Instance], now: float) -> _Traffic:
    """Before a split and after it everything serves but what is only being prepared, stands by, or was found wanting."""
    counts = Counter(each.revision for each in ready)
    shares = strategies.plan_shares(one, mine, now)
    out = strategies.find_out(mine, shares)
    target = mine.get(one.target_revision or 0)
    stable = target.number if target is not None and target.phase is RevisionPhase.ACTIVE else one.active_revision or 0
    weights = strategies.split_weights(shares, counts, stable)
    idle = {share.revision for share in shares if share.revision not in weights}
    labels = {number: revision.version for number, revision in mine.items()}
    if shares:
        labels |= strategies.labels_of(mine[share.revision] for share in shares)
    if len(weights) < 2 or target is None:
        return _Traffic(without=frozenset(out | idle), labels=labels, split=None, idle=frozenset(idle - set(out)))
    split = {
        "split": [{"version": labels[number], "weight": weight} for number, weight in weights.items()],
        "split_by": target.strategy.split_by,
        "name": f"{one.id}/{target.number}",
    }
    others = counts.keys() - weights.keys()
    return _Traffic(without=frozenset(out | idle | others), labels=labels, split=split, idle=frozenset(idle - set(out)))


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


def _address_of(instance: Instance, statuses: Mapping[str, InstanceStatus]) -> str | None:
    """Where a ready instance is reached that is wanted, or drains; None for any other."""
    status = statuses.get(instance.id)
    if instance.target is Target.STOPPED or status is None or status.phase is not InstancePhase.READY:
        return None
    return status.address
