"""From a version's config, an environment and what the caller asked for, to settings, bounds and a number of replicas. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pydantic

from nexus.core import environments, errors
from nexus.core.deployments import Scaling, Settings, Version
from nexus.core.instances import HealthCheck
from nexus.hosting import autoscale
from nexus.kit import quantity
from nexus.wire import project, project_box

MOST_REPLICAS = 100
LEAST_MEMORY = 16 * 1024**2
EDGE = "gateway"
UPDATES = ("keep", "move")
BALANCERS = ("round-robin", "least-connections", "sticky", "health-based")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a caller said beside the config. None: nothing."""

    replicas: int | None = None
    cpu: str | None = None
    memory: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def plan_scaling(config: project.ProjectConfig, environment: str) -> Scaling:
    """The environment's bounds, replaced where the config names its own, and the metrics that move the number."""
    bounds = environments.default_bounds(environment)
    replicas, scaling = config.hosting.replicas, config.scaling
    low = _first(scaling.min_replicas if scaling else None, replicas.min)
    high = _first(scaling.max_replicas if scaling else None, replicas.max)
    # A bound the config does not name gives way to the one it names.
    minimum = low if low is not None else min(bounds.minimum, high) if high is not None else bounds.minimum
    maximum = high if high is not None else max(bounds.maximum, minimum)
    if minimum > maximum:
        raise errors.Invalid(
            f"the config asks for at least {minimum} and at most {maximum} replicas",
            code="config.invalid",
            cause="hosting.replicas and autoscaling contradict each other",
            next_step="name the bounds in one place",
        )
    targets = {metric: scaling.target(metric) if scaling else None for metric in ("cpu", "memory", "queue_depth")}
    enabled = scaling is not None and scaling.enabled
    if enabled and not any(targets.values()):
        targets |= {"cpu": autoscale.DEFAULT_TARGET_CPU, "memory": autoscale.DEFAULT_TARGET_MEMORY}
    return Scaling(
        minimum=minimum,
        maximum=min(maximum, MOST_REPLICAS),
        enabled=enabled,
        target_cpu=targets["cpu"],
        target_memory=targets["memory"],
        target_queue_depth=targets["queue_depth"],
    )


def plan_replicas(scaling: Scaling, environment: str, asked: int | None, current: int | None) -> int:
    """What was asked for, or what there is, or the least; `Invalid` (code `replicas.out_of_bounds`) outside the bounds."""
    if asked is None:
        return scaling.bounds.clamp(current if current is not None else scaling.minimum)
    if scaling.minimum <= asked <= scaling.maximum:
        return asked
    raise errors.Invalid(
        f"{asked} replicas are outside what {environment} allows",
        code="replicas.out_of_bounds",
        cause=f"this deployment may have {scaling.minimum} to {scaling.maximum} replicas",
        next_step="choose a number within, or write hosting.replicas.min and max into config.yaml and deploy again",
        extra={"minimum": scaling.minimum, "maximum": scaling.maximum},
    )


def plan_settings(version: Version, config: project.ProjectConfig, asked: Asked, *, secrets_stamp: str) -> Settings:
    hosting, options = config.hosting, _parse_options(asked.options)
    kept: dict[str, Any] = {"isolation": hosting.isolation, "session": plan_session(hosting.session)}
    if hosting.python is not None:
        kept["python"] = hosting.python
    if hosting.concurrency is not None:
        kept["concurrency"] = hosting.concurrency
    if (update := options.pop("sessions", None)) is not None:
        kept["session"] = change_update(kept["session"], update)
    kept |= plan_isolation(hosting, options)
    if hosting.budget is not None:
        kept["budget"] = hosting.budget.plan()
    if edge := plan_edge(hosting, options):
        kept[EDGE] = edge
    return Settings(
        entrypoint=version.entrypoint,
        package_digest=version.digest,
        cpu_millis=parse_cpu(asked.cpu) if asked.cpu is not None else hosting.cpu,
        memory_bytes=parse_memory(asked.memory) if asked.memory is not None else hosting.memory,
        env=dict(hosting.env),
        secrets_stamp=secrets_stamp,
        health=HealthCheck(
            path=hosting.health.path,
            interval_s=hosting.health.interval,
            timeout_s=hosting.health.timeout,
            retries=hosting.health.retries,
        ),
        run_timeout_s=hosting.timeout,
        start_timeout_s=hosting.start_timeout,
        balancer=options.pop("load_balancer", hosting.load_balancer),
        max_concurrency=options.pop("max_concurrency", hosting.concurrency),
        max_queue=options.pop("max_queue", 1000),
        wait_s=options.pop("wait_s", 30.0),
        options=kept,
    )


def plan_edge(hosting: project.Hosting, options: dict[str, Any]) -> dict[str, Any]:
    """What the gateway does for this deployment beyond routing; its part of `options` is taken out of them."""
    edge: dict[str, Any] = {}
    if hosting.cache is not None and hosting.cache.enabled:
        edge |= {"cache_responses": True, "cache_ttl": hosting.cache.ttl, "cache_size": hosting.cache.size}
        edge |= {"cache_headers": list(hosting.cache.headers)} if hosting.cache.headers else {}
    if hosting.circuit_breaker is not None and hosting.circuit_breaker.enabled:
        edge |= {"circuit_breaker": True, "failure_threshold": hosting.circuit_breaker.failure_threshold}
    if hosting.requests_per_minute is not None:
        edge["requests_per_minute"] = hosting.requests_per_minute
    if hosting.models is not None and (models := hosting.models.plan()):
        edge["models"] = models
    edge |= {name: options.pop(name) for name in _EDGE_OPTIONS if name in options}
    for name, parse in (("cache_ttl", quantity.parse_duration), ("cache_size", quantity.parse_bytes)):
        if isinstance(edge.get(name), str):
            edge[name] = parse(edge[name])
    return edge


def plan_session(session: project.Session) -> dict[str, Any]:
    """How sessions live, as a driver reads it: durations in seconds, sizes in bytes."""
    return {
        "persist": session.persist,
        "max_lifetime_s": session.max_lifetime,
        "on_message": session.on_message,
        "freeze_after_s": session.freeze_after,
        "stop_after_s": session.stop_after,
        "work_bytes": session.work_size,
        "retention_s": session.retention,
        **({"on_update": session.on_update} if session.on_update != "keep" else {}),
        **({"drain_s": session.drain} if session.drain is not None else {}),
        **({"warm": session.warm} if session.warm is not None else {}),
        **({"most": session.most} if session.most is not None else {}),
    }


def with_update(settings: Settings, update: str | None) -> Settings:
    """The same settings, with another word on what sessions do (None: the same)."""
    if update is None:
        return settings
    session = change_update(settings.options.get("session") or {}, update)
    return replace(settings, options={**settings.options, "session": session})


def change_update(session: Mapping[str, Any], update: str) -> dict[str, Any]:
    """The same plan with another word on what sessions do when this version takes over (`keep` or `move`)."""
    others = {name: value for name, value in session.items() if name != "on_update"}
    return others | ({"on_update": update} if update != "keep" else {})


def plan_isolation(hosting: project.Hosting, options: dict[str, Any]) -> dict[str, Any]:
    """What config and caller say of the box, where it differs from the box everybody gets; its part of `options` is taken out."""
    fields = project_box.Box.model_fields
    given = {name: getattr(hosting, name) for name in fields if name in hosting.model_fields_set}
    asked = {name: options.pop(name) for name in fields if name in options}
    if asked.get("network", project_box.WAY_OUT) != project_box.WAY_OUT:  # what belongs to a way out goes with it
        given = {name: value for name, value in given.items() if name not in ("egress", "network_limit")}
    elif "network_limit" in asked and given.get("network", "host") == "host":
        given.pop("network", None)
    try:
        box = project_box.Box.model_validate(given | asked)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise errors.Invalid(
            f"{'.'.join(map(str, first['loc'])) or 'the isolation'} cannot be so: {first['msg']}",
            code="options.invalid",
            next_step="see the settings under hosting in the documentation of config.yaml",
        ) from None
    shown = box.model_dump()
    return {name: shown[name] for name, field in fields.items() if shown[name] != field.get_default(call_default_factory=True)}


def parse_cpu(value: str) -> int:
    try:
        millis = quantity.parse_cpu(value)
    except ValueError as error:
        raise errors.Invalid(str(error), code="quantity.invalid", next_step="write it as 500m or 2") from error
    if not 10 <= millis <= 1_000_000:
        raise errors.Invalid(
            f"{value} of CPU is out of range", code="quantity.invalid", cause="it must be 10m to 1000", next_step="try 500m"
        )
    return millis


def parse_memory(value: str) -> int:
    try:
        size = quantity.parse_bytes(value)
    except ValueError as error:
        raise errors.Invalid(str(error), code="quantity.invalid", next_step="write it as 512Mi or 2GB") from error
    if not LEAST_MEMORY <= size < 2**50:
        raise errors.Invalid(
            f"{value} of memory is out of range", code="quantity.invalid", cause="it must be at least 16Mi", next_step="try 512Mi"
        )
    return size


def _parse_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Only options that do something are taken, so that a misspelt one is an error and not silence."""
    valid: dict[str, Callable[[Any], bool]] = {
        "load_balancer": lambda value: value in BALANCERS,
        "sessions": lambda value: value in UPDATES,
        "max_concurrency": lambda value: _is_count(value, 1, 1_000_000),
        "max_queue": lambda value: _is_count(value, 0, 1_000_000),
        "wait_s": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 600,
    }
    valid |= _EDGE_OPTIONS
    valid |= dict.fromkeys(project_box.Box.model_fields, _is_anything)  # judged together, by `plan_isolation`
    for name, value in options.items():
        if name not in valid:
            raise errors.Invalid(
                f"there is no deployment option {name[:64]!r}",
                code="options.unknown",
                cause=f"the options are {', '.join(valid)}",
                next_step="leave it out, or use one of them",
            )
        if not valid[name](value):
            raise errors.Invalid(
                f"{name} cannot be {str(value)[:64]!r}",
                code="options.invalid",
                next_step=f"one of {', '.join(_WORDS[name])}" if name in _WORDS else "give a number within reason",
            )
    return dict(options)


_WORDS = {"load_balancer": BALANCERS, "sessions": UPDATES}


def _is_anything(value: object) -> bool:
    return True


def _is_text_of(value: object, parse: Callable[[Any], float], most: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    try:
        return 0 < parse(value) <= most
    except (ValueError, OverflowError):
        return False


def _is_count(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


# What `nexus.gateway.wishes` reads, and what is a legal value of it.
_EDGE_OPTIONS: dict[str, Callable[[Any], bool]] = {
    "cache_responses": lambda value: isinstance(value, bool),
    "cache_ttl": lambda value: _is_text_of(value, quantity.parse_duration, 30 * 86400),
    "cache_size": lambda value: _is_text_of(value, quantity.parse_bytes, 64 * 1024**3),
    "circuit_breaker": lambda value: isinstance(value, bool),
    "failure_threshold": lambda value: _is_count(value, 1, 1000),
    "requests_per_minute": lambda value: _is_count(value, 1, 10_000_000),
}


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
