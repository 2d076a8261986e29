"""Rollouts side by side, on a node that does as it is told and over runs as gateways report them."""

import contextlib
import itertools
from pathlib import Path
from typing import Any

import pytest

from nexus.hosting import routes
from nexus.testing import drivers
from tests.integration.control.conftest import Control, build

_NUMBERS = itertools.count()
CANARY = {"type": "canary", "steps": [10, 50, 100], "interval": "60s"}


def route(control: Control, agent: str = "echo") -> Any:
    picture = control.reconciler.picture
    entries = routes.render_deployments(
        picture.deployments, picture.revisions, picture.instances, picture.statuses, now=control.clock.time()
    )
    return entries[f"deployment/default/{agent}/production"]


def versions(entry: Any) -> list[str]:
    return sorted(one["version"] for one in entry["instances"])


def split(entry: Any) -> dict[str, int]:
    return {part["version"]: part["weight"] for part in entry.get("options", {}).get("split", [])}


async def serve(control: Control, deployed: Any, version: str, *, good: int = 0, bad: int = 0, took: float = 0.1) -> None:
    """Report runs of a version as a gateway does."""
    records = [
        {
            "kind": "run", "id": f"run_{next(_NUMBERS):06}", "tenant": "default", "agent": "echo", "environment": "production",
            "deployment_id": deployed["id"], "version": version, "instance_id": "ins_x", "session_id": "ses_x",
            "principal": "key_x", "mode": "sync", "outcome": "failed" if number < bad else "completed",
            "status": 500 if number < bad else 200, "started_at": control.clock.time(),
            "duration_s": took + 0.0001 * (number % 20), "bytes_in": 1, "bytes_out": 1, "trace_id": "",
        }
        for number in range(good + bad)
    ]  # fmt: skip
    await control.runs.add(records, [])


async def look(control: Control) -> None:
    """A moment later, until nothing more follows."""
    control.clock.ahead += 2
    control.clock.later += 2
    await control.settle()
    await control.reconciler.round()


async def status(control: Control) -> Any:
    answer = await control.api.get("/v1/agents/echo/rollout?environment=production")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def history(control: Control) -> list[Any]:
    return (await control.api.get("/v1/agents/echo/history?environment=production")).json()["items"]


@pytest.fixture
async def serving(control: Control) -> Any:
    """Version 1.0.0 on two instances in production."""
    deployed = await control.deploy("echo", "version: 1.0.0\n", environment="production")
    await control.settle()
    return deployed


async def test_a_good_canary_is_promoted_stage_by_stage(control: Control, serving: Any) -> None:
    await control.deploy("echo", "version: 1.1.0\n", environment="production", strategy=CANARY)
    await look(control)
    assert split(route(control)) == {"1.0.0": 90, "1.1.0": 10}
    assert versions(route(control)) == ["1.0.0", "1.0.0", "1.1.0"]
    shares = []
    for _ in range(3):
        shares.append(split(route(control)).get("1.1.0"))
        await serve(control, serving, "1.0.0", good=180)
        await serve(control, serving, "1.1.0", good=20)
        control.clock.later += 61
        await look(control)
    assert shares == [10, 50, 100]
    assert split(route(control)) == {}
    assert versions(route(control)) == ["1.1.0", "1.1.0"]
    newest, before = await history(control)
    assert (newest["phase"], newest["strategy"], before["phase"]) == ("active", "canary", "superseded")
    assert newest["outcome"]["decision"] == "promoted"
    assert newest["outcome"]["numbers"]["new"]["runs"] == 60
    assert newest["outcome"]["numbers"]["stable"]["version"] == "1.0.0"
    await look(control)
    assert (await control.show(serving))["ready"] == 2


async def test_a_canary_that_fails_its_runs_is_rolled_back_at_once(control: Control, serving: Any) -> None:
    await control.deploy("echo", "version: 1.1.0\n", environment="production", strategy=CANARY)
    await look(control)
    await serve(control, serving, "1.0.0", good=45)
    await serve(control, serving, "1.1.0", bad=5)
    await look(control)
    assert versions(route(control)) == ["1.0.0", "1.0.0"]
    assert split(route(control)) == {}
    newest = (await history(control))[0]
    assert (newest["phase"], newest["problem"]["code"]) == ("failed", "rollout.more_errors")
    assert newest["outcome"]["numbers"]["new"] | {"runs": 5, "errors": 5} == newest["outcome"]["numbers"]["new"]
    shown = await control.show(serving)
    assert (shown["phase"], shown["active_version"], shown["ready"]) == ("failed", "1.0.0", 2)


async def test_a_slow_canary_is_rolled_back(control: Control, serving: Any) -> None:
    await control.deploy("echo", "version: 1.1.0\n", environment="production", strategy=CANARY)
    await look(control)
    await serve(control, serving, "1.0.0", good=180)
    await serve(control, serving, "1.1.0", good=20, took=0.5)
    await look(control)
    assert (await history(control))[0]["problem"]["code"] == "rollout.slower"
    assert versions(route(control)) == ["1.0.0", "1.0.0"]


async def test_a_canary_without_enough_runs_waits_and_says_so(control: Control, serving: Any) -> None:
    await control.deploy("echo", "version: 1.1.0\n", environment="production", strategy=CANARY)
    await look(control)
    await serve(control, serving, "1.1.0", good=3)
    control.clock.later += 600
    await look(control)
    found = await status(control)
    assert (found["stage"], found["waiting"], found["phase"]) == (1, "runs", "rolling")
    assert {one["role"]: (one["weight"], one["runs"]) for one in found["shares"]} == {"stable": (90, 0), "new": (10, 3)}
    await control.api.post("/v1/agents/echo/promote", json={"environment": "production"})
    await look(control)
    assert versions(route(control)) == ["1.1.0", "1.1.0"]
    assert (await status(control))["outcome"]["reason"] == "promoted by hand"


async def test_a_canary_that_does_not_start_or_crashes_never_becomes_stable(control: Control, serving: Any) -> None:
    control.driver.knobs.outcome = lambda spec: "failed" if spec.version == "1.1.0" else "ready"
    await control.deploy("echo", "version: 1.1.0\n", environment="production", strategy=CANARY)
    await look(control)
    assert (await history(control))[0]["problem"]["code"] == "start.exited"
    control.driver.knobs.outcome = lambda spec: "ready"
    await control.deploy("echo", "version: 1.2.0\n", environment="production", strategy=CANARY)
    await look(control)
    (canary,) = [one["id"] for one in route(control)["instances"] if one["version"] == "1.2.0"]
    for _ in range(3):
        control.driver.crash(canary)
    await look(control)
    assert (await history(control))[0]["problem"]["code"] == "rollout.crashes"
    assert versions(route(control)) == ["1.0.0", "1.0.0"]


async def test_a_canary_that_is_down_lends_its_share_to_the_stable_version(control: Control, serving: Any) -> None:
    await control.deploy("echo", "version: 1.1.0\n", environment="production", strategy=CANARY)
    await look(control)
    (canary,) = [one["id"] for one in route(control)["instances"] if one["version"] == "1.1.0"]
    control.driver.set_unhealthy(canary)
    await control.reconciler.round()
    assert versions(route(control)) == ["1.0.0", "1.0.0"]
    assert split(route(control)) == {}


async def test_the_same_version_with_other_settings_is_told_apart(control: Control, serving: Any) -> None:
    await control.deploy("echo", "version: 1.0.0\n", environment="production", memory="1Gi", strategy=CANARY)
    await look(control)
    assert split(route(control)) == {"1.0.0": 90, "1.0.0+r2": 10}
    await serve(control, serving, "1.0.0", good=45)
    await serve(control, serving, "1.0.0+r2", bad=5)
    await look(control)
    assert (await history(control))[0]["problem"]["code"] == "rollout.more_errors"


async def test_blue_green_switches_when_green_is_ready_and_back_at_once(control: Control, serving: Any) -> None:
    strategy = {"type": "blue-green", "auto_promote": False, "keep": "5m"}
    await control.deploy("echo", "version: 2.0.0\n", environment="production", strategy=strategy)
    await look(control)
    assert versions(route(control)) == ["1.0.0", "1.0.0"]
    assert [one["version"] for one in route(control)["idle"]] == ["2.0.0", "2.0.0"], "for runs that name it"
    found = await status(control)
    assert (found["waiting"], [one["ready"] for one in found["shares"]]) == ("promotion", [2, 2])
    blue = {one["id"] for one in route(control)["instances"]}
    assert (await control.api.post("/v1/agents/echo/promote", json={"environment": "production"})).status_code == 202
    await look(control)
    assert split(route(control)) == {"1.0.0": 0, "2.0.0": 100}
    found = await status(control)
    assert found["standby_until"] == pytest.approx(control.clock.time() + 300, abs=10)
    assert {one["role"] for one in found["shares"]} == {"standby", "active"}
    back = await control.api.post("/v1/agents/echo/abort", json={"environment": "production"})
    assert back.status_code == 202
    await control.reconciler.round()
    assert {one["id"] for one in route(control)["instances"]} == blue
    assert split(route(control)) == {}
    await look(control)
    assert [(one["version"], one["phase"]) for one in await history(control)] == [
        ("1.0.0", "active"), ("2.0.0", "superseded"), ("1.0.0", "superseded"),
    ]  # fmt: skip
    assert (await control.show(serving))["ready"] == 2
    refused = await control.api.post("/v1/agents/echo/abort", json={"environment": "production"})
    assert (refused.status_code, refused.json()["code"]) == (409, "rollout.nothing_to_abort")


async def test_blue_leaves_when_its_time_is_over(control: Control, serving: Any) -> None:
    await control.deploy("echo", "version: 2.0.0\n", environment="production", strategy={"type": "blue-green", "keep": "5m"})
    await look(control)
    assert (await control.show(serving))["active_version"] == "2.0.0"
    assert split(route(control)) == {"1.0.0": 0, "2.0.0": 100}
    control.clock.later += 301
    await look(control)
    assert versions(route(control)) == ["2.0.0", "2.0.0"]
    for _ in range(3):
        await look(control)
    assert {one["version"] for one in (await control.show(serving))["instances"]} == {"2.0.0"}, "no session needed blue"


async def test_what_stands_by_serves_nothing_when_the_next_version_comes(control: Control, serving: Any) -> None:
    await control.deploy("echo", "version: 2.0.0\n", environment="production", strategy={"type": "blue-green", "keep": "5m"})
    await look(control)
    await control.deploy("echo", "version: 3.0.0\n", environment="production")
    control.driver.knobs.outcome = lambda spec: "starting"
    await control.reconciler.round()
    assert versions(route(control)) == ["2.0.0", "2.0.0"], "not 1.0.0, which only stood by"


async def test_deleting_during_a_canary_leaves_nothing(control: Control, serving: Any) -> None:
    await control.deploy("echo", "version: 1.1.0\n", environment="production", strategy=CANARY)
    await look(control)
    await control.api.delete("/v1/agents/echo")
    for _ in range(3):
        await look(control)
    assert await control.driver.statuses() == []
    assert (await control.api.get("/v1/agents/echo")).status_code == 404


async def test_a_switch_to_something_broken_is_taken_back_by_itself(control: Control, serving: Any) -> None:
    await serve(control, serving, "1.0.0", good=100)
    control.clock.later += 5
    await control.deploy("echo", "version: 2.0.0\n", environment="production", strategy={"type": "blue-green"})
    await look(control)
    await serve(control, serving, "2.0.0", bad=10)
    await look(control)
    assert versions(route(control)) == ["1.0.0", "1.0.0"]
    newest, broken, _ = await history(control)
    assert (newest["version"], newest["phase"], broken["problem"]["code"]) == ("1.0.0", "active", "rollout.more_errors")


async def test_rollback_right_after_a_switch_uses_what_stands_by(control: Control, serving: Any) -> None:
    blue = {one["id"] for one in route(control)["instances"]}
    await control.deploy("echo", "version: 2.0.0\n", environment="production", strategy={"type": "blue-green"})
    await look(control)
    answer = await control.api.post("/v1/agents/echo/rollback", json={"environment": "production"})
    assert (answer.status_code, answer.json()["phase"]) == (202, "active")
    await control.reconciler.round()
    assert {one["id"] for one in route(control)["instances"]} == blue


async def test_an_ab_test_splits_reports_and_ends_with_a_winner(control: Control, serving: Any) -> None:
    for version in ("1.1.0", "1.2.0"):
        await control.upload("echo", f"version: {version}\n", code=f"def agent(input): return {version!r}\n".encode())
    strategy = {
        "type": "ab",
        "split_by": "user",
        "variants": [
            {"name": "control", "version": "1.0.0", "weight": 50},
            {"name": "short", "version": "1.1.0", "weight": 30},
            {"name": "long", "version": "1.2.0", "weight": 20},
        ],
    }
    newest = (await control.api.get("/v1/agents/echo/versions")).json()["items"][0]
    asked = {"agent": "echo", "version_id": newest["id"], "environment": "production", "strategy": strategy}
    assert (await control.api.post("/v1/deployments", json=asked)).status_code == 202
    await look(control)
    entry = route(control)
    assert split(entry) == {"1.0.0": 50, "1.1.0": 30, "1.2.0": 20}
    assert (entry["options"]["split_by"], set(versions(entry))) == ("user", {"1.0.0", "1.1.0", "1.2.0"})
    again = await control.api.post("/v1/deployments", json=asked)
    assert (again.json()["revision"], again.json()["version"]) == (3, "1.1.0"), "the same test again changes nothing"
    await serve(control, serving, "1.0.0", good=95, bad=5)
    await serve(control, serving, "1.1.0", good=60, took=0.05)
    await serve(control, serving, "1.2.0", good=32, bad=8)
    report = (await control.api.get("/v1/agents/echo/rollout/report?environment=production")).json()
    by_name = {one["name"]: one for one in report["variants"]}
    assert report["control"] == "control"
    assert by_name["short"]["verdict"] == "faster"
    assert by_name["short"]["latency_vs_control"]["high_s"] < 0
    assert by_name["long"]["verdict"] == "fails more often"
    rates = by_name["long"]["errors_vs_control"]
    assert rates["difference"] == pytest.approx(0.15)
    assert rates["low"] < rates["difference"] < rates["high"]
    wrong = await control.api.post("/v1/agents/echo/promote", json={"environment": "production", "variant": "medium"})
    assert (wrong.status_code, wrong.json()["code"]) == (404, "rollout.no_such_variant")
    await control.api.post("/v1/agents/echo/promote", json={"environment": "production", "variant": "long"})
    await look(control)
    assert versions(route(control)) == ["1.2.0", "1.2.0"]
    shown = await control.show(serving)
    assert (shown["phase"], shown["version"], shown["active_version"]) == ("active", "1.2.0", "1.2.0")
    assert [(one["version"], one["phase"]) for one in await history(control)] == [
        ("1.1.0", "superseded"), ("1.2.0", "active"), ("1.0.0", "superseded"),
    ]  # fmt: skip
    back = await control.api.post("/v1/agents/echo/rollback", json={"environment": "production"})
    assert back.json()["version"] == "1.0.0", "a variant that was not chosen is nothing to go back to"


async def test_an_arm_that_collapses_ends_the_test(control: Control, serving: Any) -> None:
    version = await control.upload("echo", "version: 1.1.0\n", code=b"def agent(input): return 1\n")
    variants = [{"name": "control", "version": "1.0.0", "weight": 50}, {"name": "new", "version": "1.1.0", "weight": 50}]
    asked = {"agent": "echo", "version_id": version["id"], "environment": "production"}
    answer = await control.api.post("/v1/deployments", json={**asked, "strategy": {"type": "ab", "variants": variants}})
    assert answer.status_code == 202
    await look(control)
    await serve(control, serving, "1.0.0", good=30)
    await serve(control, serving, "1.1.0", bad=12)
    await look(control)
    assert versions(route(control)) == ["1.0.0", "1.0.0"]
    newest = (await history(control))[0]
    assert (newest["phase"], newest["problem"]["code"]) == ("failed", "rollout.more_errors")


async def test_what_cannot_be_a_test_is_refused(control: Control, serving: Any) -> None:
    version = await control.upload("echo", "version: 1.1.0\n", code=b"def agent(input): return 1\n")

    async def refused(strategy: Any, environment: str = "production") -> tuple[int, str]:
        asked = {"agent": "echo", "version_id": version["id"], "environment": environment, "strategy": strategy}
        answer = await control.api.post("/v1/deployments", json=asked)
        return answer.status_code, answer.json()["code"]

    def arms(*pairs: tuple[str, int]) -> dict[str, Any]:
        return {"type": "ab", "variants": [{"name": f"v{at}", "version": v, "weight": w} for at, (v, w) in enumerate(pairs)]}

    assert await refused({"type": "ab"}) == (400, "strategy.invalid")
    assert await refused(arms(("1.1.0", 50), ("9.9.9", 50))) == (404, "version.not_found")
    assert await refused(arms(("1.0.0", 50), ("1.1.0", 60))) == (400, "request.invalid")
    assert await refused({"type": "canary", "steps": [50, 10]}) == (400, "request.invalid")
    assert await refused({"type": "purple"}) == (400, "request.invalid")
    assert await refused({**CANARY, "variants": arms(("1.0.0", 50), ("1.1.0", 50))["variants"]}) == (400, "strategy.invalid")
    assert await refused(arms(("1.0.0", 50), ("1.1.0", 50)), "staging") == (409, "rollout.control_missing")
    nothing = await control.api.post("/v1/agents/echo/promote", json={"environment": "production"})
    assert (nothing.status_code, nothing.json()["code"]) == (409, "rollout.nothing_to_promote")
    report = await control.api.get("/v1/agents/echo/rollout/report?environment=production")
    assert (report.status_code, report.json()["code"]) == (409, "rollout.nothing_to_compare")
    other = await control.key_of("stranger", "admin") if await _has_tenant(control) else None
    if other is not None:
        assert (await other.get("/v1/agents/echo/rollout")).status_code == 404


async def _has_tenant(control: Control) -> bool:
    return (await control.api.post("/v1/tenants", json={"name": "stranger"})).status_code == 201


async def test_a_canary_can_be_aborted_and_is_superseded_by_the_next_deploy(control: Control, serving: Any) -> None:
    await control.deploy("echo", "version: 1.1.0\n", environment="production", strategy=CANARY)
    await look(control)
    await control.api.post("/v1/agents/echo/abort", json={"environment": "production"})
    await control.reconciler.round()
    assert versions(route(control)) == ["1.0.0", "1.0.0"], "at once, not when its instances have gone"
    await look(control)
    await control.deploy("echo", "version: 1.2.0\n", environment="production", strategy=CANARY)
    await look(control)
    await control.deploy("echo", "version: 1.3.0\n", environment="production", strategy=CANARY)
    await control.reconciler.round()
    assert set(versions(route(control))) == {"1.0.0"}
    await look(control)
    assert split(route(control)) == {"1.0.0": 90, "1.3.0": 10}
    found = {one["version"]: (one["phase"], (one["problem"] or {}).get("code")) for one in await history(control)}
    assert found["1.1.0"] == ("failed", "rollout.aborted")
    assert found["1.2.0"] == ("superseded", "deployment.superseded")


async def test_a_secret_changed_during_a_canary_restarts_the_stable_version(control: Control, serving: Any) -> None:
    await control.deploy("echo", "version: 1.1.0\n", environment="production", strategy=CANARY)
    await look(control)
    await control.api.put("/v1/agents/echo/secrets/API_KEY", json={"value": "one"})
    await look(control)
    assert versions(route(control)) == ["1.0.0", "1.0.0"]
    assert (await history(control))[0]["reason"] == "secret changed"


async def test_the_first_deployment_has_nothing_to_stand_beside(control: Control) -> None:
    deployed = await control.deploy("echo", "version: 1.0.0\n", environment="production", strategy=CANARY)
    await control.settle()
    assert (await control.show(deployed))["phase"] == "active"
    assert versions(route(control)) == ["1.0.0", "1.0.0"]


async def test_the_strategy_of_the_project_file_is_used_and_replaced_in_parts(control: Control, serving: Any) -> None:
    config = "version: 1.1.0\nhosting: {strategy: {type: canary, steps: [20, 100], interval: 5m}}\n"
    await control.deploy("echo", config, environment="production", strategy={"steps": [40, 100]})
    await look(control)
    assert split(route(control)) == {"1.0.0": 60, "1.1.0": 40}
    assert (await status(control))["next_at"] == pytest.approx(control.clock.time() + 300, abs=10)


async def test_rolling_keeps_to_its_bounds(control: Control) -> None:
    deployed = await control.deploy("echo", "version: 1.0.0\n", environment="production", replicas=4)
    await control.settle()
    control.driver.knobs.outcome = lambda spec: "starting" if spec.version == "1.1.0" else "ready"
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "50%", "maxUnavailable": 1}}
    await control.deploy("echo", "version: 1.1.0\n", environment="production", replicas=4, strategy=strategy)
    for _ in range(4):
        await control.reconciler.round()
    wanted = [one for one in (await control.show(deployed))["instances"] if one["phase"] not in ("stopping", "draining")]
    assert len(wanted) == 6
    assert sum(one["version"] == "1.1.0" for one in wanted) == 3
    assert len(route(control)["instances"]) == 3


async def test_what_the_gateway_does_besides_is_published_beside_the_split(control: Control, serving: Any) -> None:
    options = {"cache_responses": True, "cache_ttl": "30s", "circuit_breaker": True, "failure_threshold": 3}
    await control.deploy("echo", "version: 1.1.0\n", environment="production", strategy=CANARY, options=options)
    await look(control)
    entry = route(control)
    assert split(entry) == {"1.0.0": 90, "1.1.0": 10}
    assert entry["options"] | {"cache_responses": True, "cache_ttl": 30.0, "failure_threshold": 3} == entry["options"]


async def test_a_restart_of_control_goes_on_with_the_canary(postgres_url: str, tmp_path: Path) -> None:
    driver = drivers.FakeDriver()
    async with contextlib.AsyncExitStack() as stack:
        before = await build(postgres_url, tmp_path, driver, stack)
        deployed = await before.deploy("echo", "version: 1.0.0\n", environment="production")
        await before.settle()
        await before.deploy("echo", "version: 1.1.0\n", environment="production", strategy=CANARY)
        await look(before)
        assert split(route(before)) == {"1.0.0": 90, "1.1.0": 10}
    async with contextlib.AsyncExitStack() as stack:
        after = await build(postgres_url, tmp_path, driver, stack)
        after.clock.later = before.clock.later
        await after.settle()
        assert split(route(after)) == {"1.0.0": 90, "1.1.0": 10}
        await serve(after, deployed, "1.0.0", good=180)
        await serve(after, deployed, "1.1.0", good=20)
        after.clock.later += 61
        await look(after)
        assert split(route(after)) == {"1.0.0": 50, "1.1.0": 50}
        assert not [order for order in driver.orders if order[0] == "stop"]
