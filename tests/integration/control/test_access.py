"""Keys, tenants and what one tenant may see of another: nothing."""

import stat
from typing import Any

import httpx2
import pytest

from nexus.identity import service as identity_service
from nexus.kit import keys
from nexus.stores.postgres import access, engine
from tests.integration.control.conftest import Control


async def codes(answer: httpx2.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


_WRONG = {
    "none": "",
    "short": "nxk_wrong",
    "sql": "' OR 1=1--",
    "long": "x" * 9000,
    "unknown": keys.new_key(),
    "service": keys.new_key(keys.SERVICE_TOKEN),
}


@pytest.mark.parametrize("key", _WRONG.values(), ids=_WRONG.keys())
async def test_no_or_a_wrong_key(control: Control, key: str) -> None:
    answer = await control.as_key(key).get("/v1/agents")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["code"] in ("auth.required", "auth.invalid_key")


async def test_the_admin_key_is_the_owners_alone_and_is_never_stored(control: Control, postgres_url: str) -> None:
    assert stat.S_IMODE(control.home.admin_key.stat().st_mode) == 0o600
    assert stat.S_IMODE(control.home.master_key.stat().st_mode) == 0o600
    async with engine.open_engine(postgres_url) as database:
        (row,) = await access.PostgresIdentityStore(database).keys()
        assert control.admin not in str(row)
        assert row.hash == keys.hash_key(control.admin)


async def test_a_key_is_shown_once_and_ends_when_revoked(control: Control) -> None:
    made = (await control.api.post("/v1/keys", json={"name": "ci", "roles": ["developer"]})).json()
    client = control.as_key(made["key"])
    assert (await client.get("/v1/whoami")).json() == {
        "id": made["id"], "tenant": "default", "roles": ["developer"], "environment": None, "agents": None
    }  # fmt: skip
    listed = (await control.api.get("/v1/keys")).json()["items"]
    assert [one["key"] for one in listed] == [None, None]
    assert (await control.api.delete(f"/v1/keys/{made['id']}")).status_code == 200
    assert (await control.api.delete(f"/v1/keys/{made['id']}")).status_code == 200
    assert await codes(await client.get("/v1/whoami")) == (401, "auth.invalid_key")
    assert await codes(await control.api.delete("/v1/keys/key_unknown")) == (404, "key.not_found")


async def test_a_key_expires(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await control.key_of("default", "viewer", expires_in_s=60)
    assert (await client.get("/v1/agents")).status_code == 200
    now = control.clock.time()
    monkeypatch.setattr(control.clock, "time", lambda: now + 61, raising=False)
    assert await codes(await client.get("/v1/agents")) == (401, "auth.expired")


@pytest.mark.parametrize("role", ["viewer", "runner", "developer"])
async def test_only_admins_hand_out_keys_and_tenants(control: Control, role: str) -> None:
    client = await control.key_of("default", role)
    assert await codes(await client.post("/v1/keys", json={})) == (403, "auth.forbidden")
    assert await codes(await client.post("/v1/tenants", json={"name": "x"})) == (403, "auth.forbidden")
    assert await codes(await client.post("/v1/host/rotate-key")) == (403, "auth.forbidden")
    assert await codes(await client.get("/v1/agents?tenant=other")) == (403, "auth.forbidden")


async def test_roles(control: Control) -> None:
    await control.deploy("echo")
    viewer = await control.key_of("default", "viewer")
    assert (await viewer.get("/v1/agents/echo")).status_code == 200
    refused = [
        await viewer.post("/v1/agents/echo/versions", content=b"x"),
        await viewer.post("/v1/agents/echo/scale", json={"replicas": 1}),
        await viewer.post("/v1/agents/echo/rollback", json={}),
        await viewer.delete("/v1/agents/echo"),
        await viewer.put("/v1/agents/echo/secrets/A", json={"value": "x"}),
        await viewer.delete("/v1/agents/echo/secrets/A"),
    ]
    assert [await codes(answer) for answer in refused] == [(403, "auth.forbidden")] * len(refused)


async def test_a_key_bound_to_an_environment_or_to_agents_stays_there(control: Control) -> None:
    version = await control.upload("echo")
    bound = await control.key_of("default", "developer", environment="staging")
    body = {"agent": "echo", "version_id": version["id"]}
    assert await codes(await bound.post("/v1/deployments", json=body)) == (403, "auth.forbidden")
    assert (await bound.post("/v1/deployments", json={**body, "environment": "staging"})).status_code == 202
    await control.upload("other")
    narrow = await control.key_of("default", "developer", agents=["other"])
    assert [one["name"] for one in (await narrow.get("/v1/agents")).json()["items"]] == ["other"]
    assert (await narrow.get("/v1/agents/echo")).status_code == 404
    assert await codes(await narrow.post("/v1/deployments", json=body)) == (403, "auth.forbidden")


async def test_two_tenants_see_nothing_of_each_other(control: Control) -> None:
    assert (await control.api.post("/v1/tenants", json={"name": "rival"})).status_code == 201
    assert await codes(await control.api.post("/v1/tenants", json={"name": "rival"})) == (409, "tenant.exists")
    rival = await control.key_of("rival", "developer")
    version = await control.upload("echo")
    deployed = await control.deploy("echo")
    await control.api.put("/v1/agents/echo/secrets/A", json={"value": "x"})
    await control.settle()
    assert (await rival.get("/v1/agents")).json() == {"items": [], "next": None}
    assert (await rival.get("/v1/tenants")).json()["items"][0]["name"] == "rival"
    absent = control.as_key(rival.headers["authorization"].removeprefix("Bearer "))
    paths: list[tuple[str, str, Any]] = [
        ("GET", "/v1/agents/{}", None),
        ("GET", "/v1/agents/{}/versions", None),
        ("GET", "/v1/agents/{}/history", None),
        ("GET", "/v1/agents/{}/logs", None),
        ("POST", "/v1/agents/{}/scale", {"replicas": 1}),
        ("POST", "/v1/agents/{}/rollback", {}),
        ("DELETE", "/v1/agents/{}", None),
    ]
    for method, path, body in paths:
        theirs = await absent.request(method, path.format("echo"), json=body)
        nobodys = await absent.request(method, path.format("nope"), json=body)
        assert theirs.status_code == nobodys.status_code == 404, path
        assert theirs.text.replace("echo", "nope") == nobodys.text, path
    for path in (f"/v1/deployments/{deployed['id']}", f"/v1/deployments/{deployed['id']}/events"):
        assert await codes(await rival.get(path)) == (404, "deployment.not_found")
    stolen = {"agent": "echo", "version_id": version["id"]}
    assert await codes(await rival.post("/v1/deployments", json=stolen)) == (404, "version.not_found")
    assert (await rival.get("/v1/agents/echo/secrets")).json()["items"] == []
    assert await codes(await rival.delete("/v1/agents/echo/secrets/A")) == (404, "secret.not_found")
    seen = await control.api.get("/v1/agents?tenant=rival")
    assert seen.json()["items"] == []
    assert await codes(await control.api.get("/v1/agents?tenant=nobody")) == (404, "tenant.not_found")


async def test_an_instance_token_opens_doors_and_nothing_else(control: Control) -> None:
    await control.deploy("echo")
    await control.settle()
    (spec,) = control.driver.specs.values()
    assert (await control.identity.instance_of(spec.token)).instance_id == spec.id
    assert (await control.as_key(spec.token).get("/v1/agents")).status_code == 401
    assert spec.tenant == identity_service.DEFAULT_TENANT


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"roles": ["emperor"]}, "role.unknown"),
        ({"roles": ["service"]}, "role.unknown"),
        ({"roles": []}, "role.unknown"),
        ({"environment": "moon"}, "environment.unknown"),
        ({"agents": ["a b"]}, "name.invalid"),
        ({"tenant": "nobody"}, "tenant.not_found"),
        ({"rolls": ["admin"]}, "request.invalid"),
        ({"name": "\u0000"}, "request.invalid"),
        ({"expires_in_s": -1}, "request.invalid"),
    ],
)
async def test_keys_that_cannot_be(control: Control, body: dict[str, Any], code: str) -> None:
    answer = await control.api.post("/v1/keys", json=body)
    assert (await codes(answer))[1] == code
    assert answer.status_code in (400, 404)
