"""Deploying through the API, onto a node that does as it is told, or not."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

from nexus.core import errors
from nexus.hosting import routes
from nexus.ports import session_store
from nexus.testing import drivers
from tests.integration.control.conftest import Control, build, eventually


def route(control: Control, agent: str, environment: str = "production") -> Any:
    picture = control.reconciler.picture
    entries = routes.render_deployments(picture.deployments, picture.revisions, picture.instances, picture.statuses)
    return entries.get(f"deployment/default/{agent}/{environment}")


async def test_a_deployment_goes_from_pending_to_active_and_says_each_step(control: Control) -> None:
    deployed = await control.deploy("echo", "version: 1.0.0\n", environment="production")
    assert (deployed["phase"], deployed["replicas"], deployed["ready"]) == ("pending", 2, 0)
    await control.settle()
    shown = await control.show(deployed)
    assert (shown["phase"], shown["version"], shown["ready"]) == ("active", "1.0.0", 2)
    assert shown["url"].endswith("/agents/echo/run")
    async with control.api.stream("GET", f"/v1/deployments/{deployed['id']}/events") as answer:
        lines = [line async for line in answer.aiter_lines()]
    events = [json.loads(line[5:]) for line in lines if line.startswith("data:")]
    assert [event["phase"] for event in events][:2] == ["pending", "rolling"]
    assert events[-1]["done"] is True
    assert events[-1]["deployment"]["ready"] == 2
    last = [line for line in lines if line.startswith("id:")][-2].removeprefix("id:").strip()
    async with control.api.stream("GET", f"/v1/deployments/{deployed['id']}/events", headers={"Last-Event-ID": last}) as answer:
        resumed = [json.loads(line[5:]) async for line in answer.aiter_lines() if line.startswith("data:")]
    assert [event["done"] for event in resumed] == [True]


async def test_the_same_deployment_again_changes_nothing(control: Control) -> None:
    first = await control.deploy("echo", "version: 1.0.0\n")
    await control.settle()
    started = list(control.driver.orders)
    second = await control.deploy("echo", "version: 1.0.0\n")
    await control.settle()
    assert (second["id"], second["revision"]) == (first["id"], first["revision"])
    assert control.driver.orders == started


async def test_a_rollout_keeps_every_route_served(control: Control) -> None:
    await control.deploy("echo", "version: 1.0.0\n", environment="production")
    await control.settle()
    await control.deploy("echo", "version: 2.0.0\n", environment="production")
    served = set()
    for _ in range(60):
        busy = await control.reconciler.round()
        entry = route(control, "echo")
        assert len(entry["instances"]) >= 2
        served.add(frozenset(one["version"] for one in entry["instances"]))
        control.clock.ahead += 1.5
        if not busy:
            break
    assert route(control, "echo")["instances"][0]["version"] == "2.0.0"
    assert frozenset({"1.0.0"}) in served
    assert len(control.driver.specs) == 4


async def test_a_version_that_does_not_start_never_serves_and_says_why(control: Control) -> None:
    deployed = await control.deploy("echo", "version: 1.0.0\n", environment="production")
    await control.settle()
    control.driver.knobs.outcome = lambda spec: "failed" if spec.version == "1.1.0" else "ready"
    await control.deploy("echo", "version: 1.1.0\n", environment="production")
    await control.settle()
    shown = await control.show(deployed)
    assert (shown["phase"], shown["active_version"], shown["ready"]) == ("failed", "1.0.0", 2)
    assert shown["problem"]["code"] == "start.exited"
    assert shown["problem"]["next_step"]
    assert {one["version"] for one in route(control, "echo")["instances"]} == {"1.0.0"}
    history = (await control.api.get("/v1/agents/echo/history")).json()["items"]
    assert [(one["version"], one["phase"]) for one in history] == [("1.1.0", "failed"), ("1.0.0", "active")]
    mended = await control.deploy("echo", "version: 1.1.1\n", environment="production")
    await control.settle()
    assert (await control.show(mended))["active_version"] == "1.1.1"


async def test_of_two_deploys_at_once_the_last_one_stands_and_the_other_hears_of_it(running: Control) -> None:
    running.driver.knobs.outcome = lambda spec: "starting"
    one, two = await running.upload("echo", "version: 1.0.0\n"), await running.upload("echo", "version: 2.0.0\n")

    async def deploy(version: Any) -> Any:
        answer = await running.api.post("/v1/deployments", json={"agent": "echo", "version_id": version["id"]})
        assert answer.status_code == 202
        return answer.json()

    first, second = await asyncio.gather(deploy(one), deploy(two))
    loser, winner = sorted((first, second), key=lambda view: view["revision"])
    running.driver.knobs.outcome = lambda spec: "ready"

    async def ready() -> bool:
        for status in await running.driver.statuses():
            if status.phase == "starting":
                running.driver.settle(status.id)
        return (await running.show(winner))["phase"] == "active"

    await eventually(ready)
    url = f"/v1/deployments/{loser['id']}/events?revision={loser['revision']}"
    async with running.api.stream("GET", url) as answer:
        events = [json.loads(line[5:]) async for line in answer.aiter_lines() if line.startswith("data:")]
    assert events[-1]["problem"]["code"] == "deployment.superseded"
    assert (await running.show(winner))["active_version"] == winner["version"]


async def test_rollback(control: Control) -> None:
    await control.deploy("echo", "version: 1.0.0\n")
    await control.settle()
    refused = await control.api.post("/v1/agents/echo/rollback", json={})
    assert (refused.status_code, refused.json()["code"]) == (409, "rollback.no_history")
    for version in ("1.1.0", "1.2.0"):
        await control.deploy("echo", f"version: {version}\n")
        await control.settle()
    back = await control.api.post("/v1/agents/echo/rollback", json={})
    assert (back.status_code, back.json()["version"]) == (202, "1.1.0")
    await control.settle()
    further = await control.api.post("/v1/agents/echo/rollback", json={"version": "1.0.0"})
    assert further.json()["version"] == "1.0.0"
    unknown = await control.api.post("/v1/agents/echo/rollback", json={"version": "9.9.9"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "version.not_found")


async def test_scaling(control: Control) -> None:
    deployed = await control.deploy("echo", environment="production")
    await control.settle()
    await control.api.post("/v1/agents/echo/scale", json={"replicas": 5})
    await control.settle()
    assert (await control.show(deployed))["ready"] == 5
    await control.api.post("/v1/agents/echo/scale", json={"replicas": 2})
    await control.settle()
    shown = await control.show(deployed)
    assert (shown["ready"], len(shown["instances"]), shown["revision"]) == (2, 2, 1)
    refused = await control.api.post("/v1/agents/echo/scale", json={"replicas": 11})
    assert (refused.status_code, refused.json()["code"]) == (400, "replicas.out_of_bounds")
    switched = await control.api.post("/v1/agents/echo/scale", json={"autoscale": True})
    assert switched.json()["autoscale"] | {"enabled": True, "target_cpu": 70} == switched.json()["autoscale"]
    resized = await control.api.post("/v1/agents/echo/scale", json={"memory": "1Gi"})
    assert (resized.json()["memory"], resized.json()["revision"]) == ("1Gi", 2)
    await control.settle()
    assert {control.driver.specs[one["id"]].memory_bytes for one in (await control.show(deployed))["instances"]} == {1024**3}


async def test_load_moves_the_number_of_replicas(control: Control) -> None:
    deployed = await control.deploy(
        "echo", "autoscaling: {metrics: [{type: custom, name: queue_depth, target: 10}]}\n", environment="production"
    )
    await control.settle()
    waiting = 64

    async def depth(tenant: str, agent: str, environment: str) -> int:
        assert (tenant, agent, environment) == ("default", "echo", "production")
        return waiting

    control.reconciler.queue_depth = depth
    for _ in range(4):
        control.clock.ahead += 6
        await control.settle()
    assert (await control.show(deployed))["ready"] == 7
    waiting = 0
    for _ in range(70):
        control.clock.ahead += 6
        await control.reconciler.round()
    await control.settle()
    assert (await control.show(deployed))["replicas"] == 2


async def test_secrets_reach_the_instance_and_a_change_restarts_by_rolling(control: Control) -> None:
    config = "hosting: {secrets: [API_KEY]}\n"
    version = await control.upload("echo", config)
    missing = await control.api.post("/v1/deployments", json={"agent": "echo", "version_id": version["id"]})
    assert (missing.status_code, missing.json()["code"]) == (409, "secret.missing")
    assert "secret set echo API_KEY" in missing.json()["next_step"]
    await control.api.put("/v1/agents/echo/secrets/API_KEY", json={"value": "one"})
    deployed = await control.deploy("echo", config)
    await control.settle()
    (instance,) = (await control.show(deployed))["instances"]
    assert control.driver.specs[instance["id"]].secrets == {"API_KEY": "one"}
    same = await control.api.put("/v1/agents/echo/secrets/API_KEY", json={"value": "one"})
    assert same.json()["version"] == 1
    await control.api.put("/v1/agents/echo/secrets/API_KEY", json={"value": "two"})
    await control.settle()
    shown = await control.show(deployed)
    assert (shown["revision"], shown["phase"]) == (2, "active")
    (fresh,) = shown["instances"]
    assert control.driver.specs[fresh["id"]].secrets == {"API_KEY": "two"}
    assert (await control.api.delete("/v1/agents/echo/secrets/API_KEY")).status_code == 204
    await control.settle()
    (bare,) = (await control.show(deployed))["instances"]
    assert control.driver.specs[bare["id"]].secrets == {}
    history = (await control.api.get("/v1/agents/echo/history")).json()["items"]
    assert [one["reason"] for one in history] == ["secret changed", "secret changed", "deploy"]


async def test_deleting_drains_stops_and_leaves_nothing(control: Control) -> None:
    deployed = await control.deploy("echo")
    await control.api.put("/v1/agents/echo/secrets/API_KEY", json={"value": "one"})
    mine, other = (
        session_store.SessionKey(tenant="default", agent=agent, environment=deployed["environment"], session_id="s")
        for agent in ("echo", "else")
    )
    for key in (mine, other):
        await control.states.put(key, "{}")
    await control.settle()
    answer = await control.api.delete("/v1/agents/echo")
    assert (answer.status_code, answer.json()) == (202, {"stopping": True})
    await control.settle()
    assert (await control.api.get(f"/v1/deployments/{deployed['id']}")).status_code == 404
    assert (await control.api.get("/v1/agents/echo")).status_code == 404
    assert await control.driver.statuses() == []
    assert list(control.home.packages.iterdir()) == []
    assert (await control.api.get("/v1/agents/echo/secrets")).json()["items"] == []
    assert (await control.api.delete("/v1/agents/echo")).json()["code"] == "agent.not_found"
    assert [await control.states.fetch(key) is None for key in (mine, other)] == [True, False]


async def test_lost_instances_are_started_again_and_strays_stopped(control: Control) -> None:
    deployed = await control.deploy("echo")
    await control.settle()
    (instance,) = (await control.show(deployed))["instances"]
    spec = control.driver.specs[instance["id"]]
    control.driver.lose(instance["id"])
    await control.settle()
    (again,) = (await control.show(deployed))["instances"]
    assert (again["id"], again["phase"]) == (instance["id"], "ready")
    assert control.driver.specs[again["id"]].token == spec.token
    from dataclasses import replace

    await control.driver.start(replace(spec, id="ins_stray"))
    await control.settle()
    assert [one.id for one in await control.driver.statuses()] == [instance["id"]]


async def test_an_unreachable_node_takes_no_route_away(control: Control) -> None:
    await control.deploy("echo", environment="production")
    await control.settle()
    control.driver.knobs.unreachable = True
    with contextlib.suppress(errors.Unavailable):
        await control.reconciler.round()
    assert len(route(control, "echo")["instances"]) == 2


async def test_a_restart_of_control_restarts_nothing(postgres_url: str, tmp_path: Path) -> None:
    driver = drivers.FakeDriver()
    async with contextlib.AsyncExitStack() as stack:
        before = await build(postgres_url, tmp_path, driver, stack)
        deployed = await before.deploy("echo", environment="production")
        await before.settle()
        seen = {one.id: driver.specs[one.id] for one in await driver.statuses()}
    async with contextlib.AsyncExitStack() as stack:
        after = await build(postgres_url, tmp_path, driver, stack)
        assert after.admin == before.admin
        await after.settle()
        shown = await after.show(deployed)
        assert {one["id"] for one in shown["instances"]} == set(seen)
        assert {one.id: driver.specs[one.id] for one in await driver.statuses()} == seen
        assert not [order for order in driver.orders if order[0] == "stop"]
        owner = await after.identity.instance_of(next(iter(seen.values())).token)
        assert (owner.agent, owner.environment) == ("echo", "production")
