"""Old versions that keep their sessions, as control plans it over real rows: drained, woken, moved, given up, remembered."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

from nexus.core.instances import Usage
from nexus.hosting import routes
from nexus.testing import drivers
from tests.integration.control.conftest import Control, build
from tests.integration.control.test_rolling_out import look, route, versions

SESSIONS = Usage(sessions=1)
NONE = Usage(sessions=0)


async def serve(control: Control, *config: str, **asked: Any) -> Any:
    """Deploy these versions one after the other; each of them has a session on every instance."""
    deployed = None
    for number, more in enumerate(config or ("",), start=1):
        deployed = await control.deploy("echo", f"version: {number}.0.0\n{more}", environment="production", replicas=2, **asked)
        await look(control)
        for one in (await control.show(deployed))["instances"]:
            if one["phase"] == "ready":
                control.driver.set_usage(one["id"], SESSIONS)
        await look(control)
    return deployed


def drained(entry: Any) -> list[str]:
    return [one["version"] for one in entry.get("draining", [])]


async def idle(control: Control, deployed: Any) -> None:
    for one in (await control.show(deployed))["instances"]:
        if one["phase"] == "draining":
            control.driver.set_usage(one["id"], NONE)
    for _ in range(4):
        await look(control)


async def test_old_instances_drain_and_go_one_by_one_as_their_sessions_end(control: Control) -> None:
    deployed = await serve(control, "", "")
    assert (versions(route(control)), drained(route(control))) == (["2.0.0"] * 2, ["1.0.0"] * 2)
    shown = await control.show(deployed)
    assert (shown["phase"], shown["ready"]) == ("active", 2), "what drains is not counted among what serves"
    one, _ = [each["id"] for each in shown["instances"] if each["phase"] == "draining"]
    control.driver.set_usage(one, NONE)
    for _ in range(4):
        await look(control)
    assert drained(route(control)) == ["1.0.0"]
    assert "asleep" not in route(control)
    await idle(control, deployed)
    assert (drained(route(control)), route(control)["asleep"]) == ([], ["1.0.0"])
    control.clock.later += 8 * 3600
    await look(control)
    assert "asleep" not in route(control), "no session of it can be left"


async def test_a_version_is_woken_with_one_instance_which_takes_nothing_new(control: Control) -> None:
    deployed = await serve(control, "hosting: {session: {warm: 3}}\n", "")
    await idle(control, deployed)
    control.reconciler.call_version(deployed["id"], "9.9.9")
    control.reconciler.call_version(deployed["id"], "1.0.0")
    await look(control)
    assert (versions(route(control)), drained(route(control))) == (["2.0.0"] * 2, ["1.0.0"])
    (woken,) = [spec for spec in control.driver.specs.values() if spec.id == route(control)["draining"][0]["id"]]
    assert woken.version == "1.0.0"
    assert dict(woken.options["session"])["warm"] == 0, "it needs no workers in reserve"
    for _ in range(4):
        await look(control)
    assert drained(route(control)) == [], "nobody came"


async def test_a_version_that_cannot_be_woken_is_not_waited_for(control: Control) -> None:
    deployed = await serve(control, "", "")
    await idle(control, deployed)
    control.driver.knobs.outcome = lambda spec: "failed" if spec.version == "1.0.0" else "ready"
    control.reconciler.call_version(deployed["id"], "1.0.0")
    await look(control)
    picture = control.reconciler.picture
    assert len(picture.barred) == 1
    assert (await control.show(deployed))["phase"] == "active", "no rollout fails for that"
    entries = routes.render_deployments(
        picture.deployments,
        picture.revisions,
        picture.instances,
        picture.statuses,
        now=control.clock.time(),
        barred=picture.barred,
    )
    assert "asleep" not in entries["deployment/default/echo/production"]


async def test_sessions_move_when_they_are_told_to(control: Control) -> None:
    await serve(control, "", "")
    path = "/v1/agents/echo/sessions:move"
    refused = await control.api.post(path, json={"version": "2.0.0", "environment": "production"})
    assert (refused.status_code, refused.json()["code"]) == (409, "session.version_serves")
    runner = await control.key_of("default", "runner")
    assert (await runner.post(path, json={"version": "1.0.0"})).status_code == 403
    assert (await control.api.post(path, json={"version": "1.0.0", "environment": "production"})).status_code == 200
    await look(control)
    assert (drained(route(control)), "asleep" in route(control)) == ([], False)


@pytest.mark.slow
async def test_a_version_may_take_all_sessions_along(control: Control) -> None:
    await serve(control, "", "", "hosting: {session: {on_update: move}}\n", "")
    assert (versions(route(control)), drained(route(control))) == (["4.0.0"] * 2, ["3.0.0"] * 2)
    await control.deploy("echo", "version: 5.0.0\n", environment="production", options={"sessions": "move"})
    await look(control)
    assert drained(route(control)) == []
    wrong = await control.api.post(
        "/v1/deployments",
        json={"agent": "echo", "version_id": (await control.upload("echo"))["id"], "options": {"sessions": "leave"}},
    )
    assert wrong.json()["code"] == "options.invalid"


async def test_a_rollout_given_up_brings_back_what_drains(control: Control) -> None:
    deployed = await serve(control, "")
    before = {one["id"] for one in (await control.show(deployed))["instances"]}
    answers = iter(["ready", "failed"])
    control.driver.knobs.outcome = lambda spec: next(answers, "failed")
    await control.deploy("echo", "version: 2.0.0\n", environment="production", replicas=2)
    await look(control)
    shown = await control.show(deployed)
    assert (shown["phase"], versions(route(control)), drained(route(control))) == ("failed", ["1.0.0"] * 2, [])
    assert {one["id"] for one in route(control)["instances"]} == before, "no session lost its instance"


async def test_a_rollback_takes_back_what_drains_with_its_sessions(control: Control) -> None:
    deployed = await serve(control, "", "")
    old, new = ({one["id"] for one in route(control)[key]} for key in ("draining", "instances"))
    asked = {"environment": "production", "version": "1.0.0"}
    assert (await control.api.post("/v1/agents/echo/rollback", json=asked)).status_code in (200, 202)
    await look(control)
    assert {one["id"] for one in route(control)["instances"]} == old, "nothing had to be started"
    assert {one["id"] for one in route(control)["draining"]} == new
    assert (await control.show(deployed))["active_version"] == "1.0.0"


@pytest.mark.slow
async def test_nothing_goes_on_with_secrets_that_were_changed(control: Control) -> None:
    deployed = await serve(control, "", "")
    assert drained(route(control)) == ["1.0.0"] * 2
    assert (await control.api.put("/v1/agents/echo/secrets/TOKEN", json={"value": "new"})).status_code in (200, 201)
    for _ in range(3):
        await look(control)
    assert (await control.show(deployed))["phase"] == "active"
    assert {one["version"] for one in (await control.show(deployed))["instances"]} == {"2.0.0"}


@pytest.mark.slow
async def test_another_control_goes_on_with_what_drains(postgres_url: str, tmp_path: Path) -> None:
    driver = drivers.FakeDriver()
    async with contextlib.AsyncExitStack() as stack:
        control = await build(postgres_url, tmp_path, driver, stack)
        deployed = await serve(control, "", "")
    async with contextlib.AsyncExitStack() as stack:
        control = await build(postgres_url, tmp_path, driver, stack)
        for _ in range(3):
            await look(control)
        assert drained(route(control)) == ["1.0.0"] * 2
        await idle(control, deployed)
        assert route(control)["asleep"] == ["1.0.0"]


@pytest.mark.slow
async def test_deleting_ends_what_drains(control: Control) -> None:
    await serve(control, "", "")
    assert (await control.api.delete("/v1/agents/echo")).status_code in (200, 202, 204)
    for _ in range(3):
        await look(control)
    assert control.reconciler.picture.deployments == []
    assert await control.driver.statuses() == []
