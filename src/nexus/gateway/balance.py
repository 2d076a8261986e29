"""Which instance serves a run: pure choices over what this process knows. Called by the stage `choose_instance`."""

import hashlib
from collections.abc import Callable, Collection, Sequence

from nexus.gateway import mint, routes, splits

LATENCY_WEIGHT = 0.2
_LONGEST_OUT_S = 10.0
_MOST_NOTED = 20_000


def decide_instance(
    deployment: routes.Deployment,
    *,
    session_id: str | None,
    now: float,
    without: Collection[str] = (),
    version: str | None = None,
) -> routes.Instance | None:
    """The instance for a run, or None when none can take it now. `without` are instances that this run has tried, `version` is
    the only one it may run on (None: any).

    A session goes to the instance it was minted for while that is listed, else to its rendezvous winner among the
    usable ones; so every gateway process agrees without talking. Without a session the deployment's balancer decides.
    """
    listed = deployment.instances if version is None else _instances_of(deployment, version)
    threshold, limit = deployment.options.threshold, deployment.max_concurrency
    if session_id is not None and version is None and threshold is None and not without:
        known = deployment.homes.get(session_id)
        if known is not None and deployment.outage.until <= now:
            return _with_room(known, limit)
    usable = [instance for instance in listed if instance.out_until <= now and instance.id not in without]
    if threshold is not None:
        usable = [instance for instance in usable if instance.circuit.may_pass(threshold, now)]
    if not usable:
        return None
    if session_id is not None:
        chosen = _home_of(session_id, deployment, usable)
        if version is None and len(usable) == len(listed):
            _note_home(deployment, session_id, chosen)
        return _with_room(chosen, limit)
    if limit is not None:
        usable = [instance for instance in usable if instance.active < limit]
        if not usable:
            return None
    if len(usable) == 1:
        return usable[0]
    start = deployment.turn.take() % len(usable)
    if deployment.balancer == "round-robin":
        return usable[start]
    around = usable[start:] + usable[:start]
    if deployment.balancer == "health-based":
        return min([one for one in around if one.watch is None or one.watch.out_until <= now] or around, key=_burden)
    return min(around, key=_active)


def _instances_of(deployment: routes.Deployment, version: str) -> tuple[routes.Instance, ...]:
    for rows in (deployment.versions, deployment.idle, deployment.draining):
        if version in rows:
            return rows[version]
    return ()


def _with_room(instance: routes.Instance, limit: int | None) -> routes.Instance | None:
    return instance if limit is None or instance.active < limit else None


def _note_home(deployment: routes.Deployment, session_id: str, instance: routes.Instance) -> None:
    if len(deployment.homes) >= _MOST_NOTED:
        deployment.homes.clear()
    deployment.homes[session_id] = instance


def decide_version(
    deployment: routes.Deployment, *, session_id: str | None, user: str, pins: splits.Pins, draw: Callable[[], float]
) -> str | None:
    """Which of several versions a run goes to; None leaves it to the balancer (also when there is only one version).

    A session keeps the version it began on while that has instances, or may be woken. Else the split decides: by user, by
    session, or by drawing when the run has no session yet.
    """
    versions, kept = deployment.versions, deployment.kept
    several = len(versions) > 1
    if not several and not kept:
        return None
    if session_id is not None:
        began = pins.find(deployment.id, session_id, (*versions, *kept) if kept else versions)
        tag = mint.session_tag(session_id) if began is None else None
        if tag is not None and tag in deployment.tags:
            began = deployment.tags[tag].version
        if began is not None:
            return began if several or began not in versions else None
    split = deployment.options.split
    if split is None or not several:
        return None
    key = user if split.by == "user" and user else session_id or f"{draw():.17f}"
    return splits.assign(split, deployment.id, key, versions)


def note_session(
    deployment: routes.Deployment, session_id: str, instance: routes.Instance, pins: splits.Pins, wall: float
) -> None:
    """Remember on which version a session runs, once for each table."""
    pinned = deployment.pinned
    if session_id in pinned:
        return
    if len(pinned) >= _MOST_NOTED:
        pinned.clear()
    pinned.add(session_id)
    pins.put(deployment.id, session_id, instance.version, wall)


def _home_of(session_id: str, deployment: routes.Deployment, usable: Sequence[routes.Instance]) -> routes.Instance:
    if len(usable) == 1:
        return usable[0]
    tag = mint.session_tag(session_id)
    if tag is not None:
        tagged = deployment.tags.get(tag)
        if tagged is not None and tagged in usable:
            return tagged
    return rendezvous(session_id, usable)


def rendezvous(session_id: str, instances: Sequence[routes.Instance]) -> routes.Instance:
    """Highest random weight: the instance whose SHA-256 of (session, instance) is greatest.

    Source: Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous" (1996).
    """
    session = session_id.encode("utf-8", "surrogateescape")
    return max(instances, key=lambda instance: hashlib.sha256(session + b"\0" + instance.id.encode()).digest())


def _active(instance: routes.Instance) -> int:
    return instance.active


def _burden(instance: routes.Instance) -> float:
    """Expected wait: latency so far, with its tail, times the runs in hand; far worse after failures."""
    tail_s = 0.0 if instance.watch is None else instance.watch.tail_s
    return (instance.latency_s + tail_s + 0.001) * (instance.active + 1) * 4.0 ** min(instance.failures, 8)


def note_unreachable(instance: routes.Instance, now: float) -> None:
    """Take an instance out for a moment that grows with every refused connection in a row."""
    instance.refused += 1
    instance.failures += 1
    instance.out_until = now + min(_LONGEST_OUT_S, 0.5 * 2.0 ** min(instance.refused - 1, 6))
    instance.outage.until = max(instance.outage.until, instance.out_until)


def note_answer(instance: routes.Instance, *, latency_s: float, failed: bool) -> None:
    """Remember how a run went. A 5xx of the agent counts against it in `health-based` only, and never takes it out."""
    instance.refused = 0
    instance.failures = instance.failures + 1 if failed else 0
    if instance.watch is not None:
        instance.watch.note(latency_s)
    instance.latency_s += LATENCY_WEIGHT * (latency_s - instance.latency_s)
