"""`hosting.strategy` in all its forms, and what is said about a wrong one."""

import pytest

from nexus.core import errors
from nexus.wire import project, project_file


def parse(strategy: str) -> project.Strategy:
    return project_file.parse_project(f"name: a\nhosting:\n  strategy: {strategy}\n").hosting.strategy


def test_the_default_is_rolling_with_one_more() -> None:
    found = project_file.parse_project("name: a").hosting.strategy
    assert (found.type, found.max_surge, found.max_unavailable) == ("rolling", 1, 0)


def test_short_and_kubernetes_forms() -> None:
    assert parse("canary").type == "canary"
    found = parse("{type: RollingUpdate, rollingUpdate: {maxSurge: 2, maxUnavailable: 25%}}")
    assert (found.type, found.max_surge, found.max_unavailable) == ("rolling", 2, "25%")
    assert parse("{type: RollingUpdate}").max_surge == 1


def test_all_that_can_be_said_of_a_canary() -> None:
    found = parse(
        "{type: canary, steps: [5, 25], interval: 2m, auto_promote: false, analysis: {samples: 50, latency_margin: 200ms}}"
    )
    assert (found.steps, found.interval, found.auto_promote) == ([5, 25], 120.0, False)
    assert (found.analysis.samples, found.analysis.latency_margin, found.analysis.alpha) == (50, 0.2, 0.01)


@pytest.mark.parametrize(
    ("strategy", "path", "message"),
    [
        ("{type: bluegreen}", "hosting.strategy.type", "did you mean blue-green?"),
        ("{stpes: [1]}", "hosting.strategy.stpes", "did you mean steps?"),
        ("{type: canary, steps: [50, 10]}", "hosting.strategy.steps", "grow"),
        ("{type: canary, steps: [10, 10]}", "hosting.strategy.steps", "grow"),
        ("{type: canary, steps: [0]}", "hosting.strategy.steps.0", "1"),
        ("{type: canary, steps: [101]}", "hosting.strategy.steps.0", "100"),
        ("{type: canary, steps: []}", "hosting.strategy.steps", "1"),
        ("{interval: 10 parsecs}", "hosting.strategy.interval", "length of time"),
        ("{interval: 0s}", "hosting.strategy.interval", "1"),
        ("{max_surge: -1}", "hosting.strategy.max_surge", "such as 25%"),
        ("{max_surge: 101%}", "hosting.strategy.max_surge", "such as 25%"),
        ("{max_surge: true}", "hosting.strategy.max_surge", "such as 25%"),
        ("{max_surge: 0, max_unavailable: 0%}", "hosting.strategy.max_surge", "nothing could ever move"),
        ("{type: ab, variants: [{name: a, version: '1', weight: 50}]}", "hosting.strategy.variants", "make 100"),
        (
            "{type: ab, variants: [{name: a, version: '1', weight: 50}, {name: a, version: '2', weight: 50}]}",
            "hosting.strategy.variants",
            "same name or version",
        ),
        ("{type: RollingUpdate, rollingUpdate: {maxSurg: 1}}", "hosting.strategy.maxSurg", "unknown key"),
        ("[canary]", "hosting.strategy", "a section with keys"),
    ],
)
def test_a_wrong_one_is_told_by_its_place(strategy: str, path: str, message: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        parse(strategy)
    first = caught.value.extra["errors"][0]  # type: ignore[index]
    assert (first["line"], first["path"]) == (3, path)
    assert message in first["message"]


def test_what_the_gateway_does_besides() -> None:
    text = "name: a\nhosting: {cache: {ttl: 5m, size: 100MB}, circuit_breaker: {failure_threshold: 3}, requests_per_minute: 600}"
    hosting = project_file.parse_project(text).hosting
    assert hosting.cache is not None
    assert (hosting.cache.ttl, hosting.cache.size) == (300.0, 100_000_000)
    assert hosting.circuit_breaker is not None
    assert (hosting.circuit_breaker.failure_threshold, hosting.requests_per_minute) == (3, 600)
