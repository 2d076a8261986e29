"""What /metrics shows: right numbers, right types, and nobody else's series."""

from typing import Any

import pytest
from prometheus_client import parser

from nexus.core import errors, principals
from nexus.telemetry import metrics

ADMIN = principals.Principal(id="a", tenant="default", roles=frozenset({principals.Role.ADMIN}))


def viewer(tenant: str, **more: Any) -> principals.Principal:
    return principals.Principal(id="v", tenant=tenant, roles=frozenset({principals.Role.VIEWER}), **more)


def run(tenant: str = "default", agent: str = "echo", **more: Any) -> Any:
    base = {
        "tenant": tenant,
        "agent": agent,
        "environment": "production",
        "outcome": "completed",
        "status": 200,
        "duration_s": 0.2,
    }
    return {**base, **more}


def call(tenant: str = "default", agent: str = "echo", **more: Any) -> Any:
    base = {"tenant": tenant, "agent": agent, "environment": "production", "model": "m", "provider": "p"}
    return {**base, "input_tokens": 7, "output_tokens": 5, "status": 200, "duration_s": 0.1, **more}


def samples(text: bytes) -> dict[tuple[str, str], float]:
    families = parser.text_string_to_metric_families(text.decode())
    return {
        (sample.name, "|".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_five_metrics_and_the_duration_are_there_with_help_and_type() -> None:
    found = metrics.Metrics()
    found.count_runs([run(), run(outcome="failed", status=500, code="agent.failed")])
    found.count_model_calls([call()])
    text = found.render(ADMIN, {("default", "echo", "production"): 4})
    for name, kind in (
        ("agent_requests_total", "counter"), ("agent_latency_seconds", "histogram"), ("agent_tokens_total", "counter"),
        ("agent_errors_total", "counter"), ("agent_queue_size", "gauge"), ("agent_request_duration_seconds", "histogram"),
    ):  # fmt: skip
        assert f"# TYPE {name} {kind}".encode() in text
        assert f"# HELP {name} ".encode() in text
    lane = "agent=echo|environment=production"
    shown = samples(text)
    assert shown["agent_requests_total", f"{lane}|outcome=completed|status=200|tenant=default"] == 1
    assert shown["agent_errors_total", "agent=echo|code=agent.failed|environment=production|tenant=default"] == 1
    assert shown["agent_tokens_total", f"{lane}|tenant=default|type=input"] == 7
    assert shown["agent_latency_seconds_count", f"{lane}|tenant=default"] == 2
    assert shown["agent_latency_seconds_sum", f"{lane}|tenant=default"] == pytest.approx(0.4)
    assert shown["agent_queue_size", f"{lane}|tenant=default"] == 4


def test_a_tenant_sees_only_its_own_series_and_an_admin_all() -> None:
    found = metrics.Metrics()
    found.count_runs([run("one"), run("two"), run("one", "other")])
    queue = {("two", "echo", "production"): 3}
    assert b"two" not in found.render(viewer("one"), queue)
    assert b"one" not in found.render(viewer("two"), queue)
    narrow = found.render(viewer("one", agents=frozenset({"echo"})), queue)
    assert b'agent="echo"' in narrow
    assert b'agent="other"' not in narrow
    assert b"agent=" not in found.render(viewer("one", environment="staging"), queue)
    everything = found.render(ADMIN, queue)
    assert b'tenant="one"' in everything
    assert b'tenant="two"' in everything
    with pytest.raises(errors.Forbidden):
        found.render(principals.Principal(id="n", tenant="one", roles=frozenset()), queue)


def test_labels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_LANES", 3)
    monkeypatch.setattr(metrics, "MOST_CODES", 2)
    found = metrics.Metrics()
    found.count_runs([run(agent=f"a{number}", outcome="failed", code=f"c{number}") for number in range(50)])
    shown = samples(found.render(ADMIN, {}))
    assert len({labels for name, labels in shown if name == "agent_requests_total"}) == 4
    assert shown["agent_requests_total", "agent=_other|environment=_other|outcome=failed|status=200|tenant=default"] == 47
    assert len({labels.split("code=")[1].split("|")[0] for name, labels in shown if name == "agent_errors_total"}) == 3


def test_hostile_label_values_stay_inside_their_quotes() -> None:
    found = metrics.Metrics()
    found.count_runs([run(agent='x"} 1\nfake_metric 2')])
    assert all(name.startswith("agent_") for name, _ in samples(found.render(ADMIN, {})))


def test_what_is_queued_shows_before_any_run_and_falls_to_zero_after() -> None:
    found = metrics.Metrics()
    lane = ("default", "echo", "production")
    assert samples(found.render(ADMIN, {lane: 2}))["agent_queue_size", "agent=echo|environment=production|tenant=default"] == 2
    found.count_runs([run()])
    assert samples(found.render(ADMIN, {}))["agent_queue_size", "agent=echo|environment=production|tenant=default"] == 0
