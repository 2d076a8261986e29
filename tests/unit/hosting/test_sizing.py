"""Bounds, replicas and sizes from config, environment and what was asked."""

from typing import Any

import pytest

from nexus.core import errors
from nexus.core.deployments import Scaling, Settings, Version
from nexus.core.instances import InstanceStatus, Usage
from nexus.core.phases import InstancePhase
from nexus.hosting import autoscale, load, sizing
from nexus.wire import project_file


def config(text: str = "") -> Any:
    return project_file.parse_project("name: a\n" + text)


@pytest.mark.parametrize(
    ("text", "environment", "bounds"),
    [
        ("", "development", (1, 1)),
        ("", "staging", (1, 3)),
        ("", "production", (2, 10)),
        ("hosting: {replicas: {min: 3, max: 5}}", "production", (3, 5)),
        ("hosting: {replicas: {min: 1, max: 20}}", "production", (1, 20)),
        ("hosting: {replicas: {min: 4}}", "staging", (4, 4)),
        ("hosting: {replicas: {max: 1}}", "production", (1, 1)),
        ("autoscaling: {min_replicas: 2, max_replicas: 20}", "production", (2, 20)),
    ],
)
def test_bounds(text: str, environment: str, bounds: tuple[int, int]) -> None:
    scaling = sizing.plan_scaling(config(text), environment)
    assert (scaling.minimum, scaling.maximum) == bounds


def test_unknown_environment() -> None:
    with pytest.raises(errors.NotFound) as caught:
        sizing.plan_scaling(config(), "moon")
    assert caught.value.code == "environment.unknown"


@pytest.mark.parametrize(("asked", "current", "expected"), [(None, None, 2), (None, 5, 5), (None, 50, 10), (3, 5, 3)])
def test_replicas(asked: int | None, current: int | None, expected: int) -> None:
    assert sizing.plan_replicas(Scaling(minimum=2, maximum=10), "production", asked, current) == expected


@pytest.mark.parametrize("asked", [0, 1, 11, 10**9])
def test_replicas_outside_the_bounds(asked: int) -> None:
    with pytest.raises(errors.Invalid) as caught:
        sizing.plan_replicas(Scaling(minimum=2, maximum=10), "production", asked, None)
    assert caught.value.code == "replicas.out_of_bounds"
    assert "2 to 10" in (caught.value.cause or "")


@pytest.mark.parametrize("value", ["", "-1", "1e400", "0", "5 apples", "1" * 400, "１"])
def test_sizes_that_are_none(value: str) -> None:
    for parse in (sizing.parse_cpu, sizing.parse_memory):
        with pytest.raises(errors.Invalid) as caught:
            parse(value)
        assert caught.value.code == "quantity.invalid"


@pytest.mark.parametrize("text", ["autoscaling: {enabled: true}", "hosting: {autoscaling: {enabled: true}}"])
def test_autoscaling_without_targets_gets_the_usual_ones(text: str) -> None:
    scaling = sizing.plan_scaling(config(text), "production")
    assert (scaling.enabled, scaling.target_cpu, scaling.target_memory) == (True, 70, 80)


SCALING = Scaling(minimum=2, maximum=10, enabled=True, target_cpu=50, target_memory=80, target_queue_depth=10)


@pytest.mark.parametrize(
    ("sample", "current", "expected"),
    [
        ({"cpu": 50.0}, 4, 4),
        ({"cpu": 54.0}, 4, 4),
        ({"cpu": 100.0}, 4, 8),
        ({"cpu": 10.0}, 4, 2),
        ({"cpu": 10.0, "memory": 160.0}, 4, 8),
        ({"queue_depth": 71}, 2, 8),
        ({"cpu": 10.0, "queue_depth": 0}, 5, 2),
        ({"cpu": 900.0}, 9, 10),
        ({}, 4, 4),
    ],
)
def test_one_sample(sample: dict[str, Any], current: int, expected: int) -> None:
    assert autoscale.wish(SCALING, autoscale.Sample(at=0, ready=current, **sample), current) == expected


def test_up_at_once_down_after_five_quiet_minutes() -> None:
    wishes = [autoscale.Wish(at=0.0, replicas=8)]
    assert autoscale.decide_replicas(0.0, SCALING, wishes, 3) == 7
    wishes = [autoscale.Wish(at=0.0, replicas=6), *(autoscale.Wish(at=float(at), replicas=2) for at in range(5, 400, 5))]
    assert autoscale.decide_replicas(200.0, SCALING, wishes[:40], 6) == 6
    late = [one for one in wishes if one.at >= 95]
    assert autoscale.decide_replicas(395.0, SCALING, late, 6) == 2


def test_a_number_outside_the_bounds_comes_back_inside() -> None:
    assert autoscale.decide_replicas(0.0, SCALING, [], 1) == 2
    assert autoscale.decide_replicas(0.0, SCALING, [], 50) == 10


def test_samples_are_shares_of_the_limits() -> None:
    def status(name: str, cpu_s: float, memory: int) -> InstanceStatus:
        return InstanceStatus(id=name, phase=InstancePhase.READY, usage=Usage(cpu_s=cpu_s, memory_bytes=memory))

    settings = Settings(entrypoint="a", package_digest="d", cpu_millis=500, memory_bytes=1000)
    history = load.History()
    first = history.look(100.0, settings, [status("a", 10.0, 500)], None)
    assert (first.cpu, first.memory) == (None, 50.0)
    second = history.look(110.0, settings, [status("a", 12.5, 250), status("b", 99.0, 750)], 4)
    assert (second.cpu, second.memory, second.ready, second.queue_depth) == (50.0, 50.0, 2, 4)
    restarted = history.look(120.0, settings, [status("a", 0.1, 0)], None)
    assert restarted.cpu is None


def settings_of(text: str = "", **options: Any) -> Settings:
    version = Version(
        id="ver_1", tenant="t", agent="a", version="1", digest="d", entrypoint="a:b", size_bytes=1, config={}, created_at=0.0,
        created_by="k",
    )  # fmt: skip
    return sizing.plan_settings(version, config(text), sizing.Asked(options=options), secrets_stamp="")


def test_what_the_gateway_does_besides_comes_from_the_file_or_the_caller() -> None:
    text = "hosting: {cache: {ttl: 5m, headers: [Accept-Language]}, circuit_breaker: {}, requests_per_minute: 60}"
    assert settings_of(text).options[sizing.EDGE] == {
        "cache_responses": True, "cache_ttl": 300.0, "cache_size": 64 * 1024**2, "cache_headers": ["Accept-Language"],
        "circuit_breaker": True, "failure_threshold": 5, "requests_per_minute": 60,
    }  # fmt: skip
    said = settings_of(text, cache_ttl="10s", cache_size="1MB", circuit_breaker=False).options[sizing.EDGE]
    assert (said["cache_ttl"], said["cache_size"], said["circuit_breaker"]) == (10.0, 1_000_000, False)
    assert sizing.EDGE not in settings_of("hosting: {cache: {enabled: false}}").options


@pytest.mark.parametrize(
    "options",
    [{"cache_ttl": "soon"}, {"cache_ttl": 0}, {"cache_size": "-1"}, {"failure_threshold": 0}, {"cache_responses": "yes"}],
    ids=str,
)
def test_gateway_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(errors.Invalid) as caught:
        settings_of(**options)
    assert caught.value.code == "options.invalid"


def test_where_sessions_run_and_how_they_live_reach_the_driver():
    kept = settings_of("hosting: {isolation: instance, session: {freeze_after: 5s, on_message: reject}}").options
    assert kept["isolation"] == "instance"
    assert kept["session"]["freeze_after_s"] == 5.0
    assert kept["session"]["on_message"] == "reject"
    assert settings_of().options["isolation"] == "session"
