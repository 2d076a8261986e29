"""What the API is not meant for: each gets a problem with a stable code, and nothing is left behind."""

import asyncio
from typing import Any

import pytest

from nexus.core import errors
from tests.integration.control.conftest import CODE, Control, package


def left_over(control: Control) -> list[str]:
    return [path.name for path in control.home.packages.iterdir()]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "package.empty"),
        (b"not a package", "package.invalid"),
        (package("name: echo\nhostng: {}\n"), "config.invalid"),
        (package("name: other\n"), "name.mismatch"),
        (package("name: echo\n", **{"agent.py": b"", "config.yaml": b"\xff\xfe"}), "config.invalid"),
        (package("name: echo\nversion: '1/2'\n"), "config.invalid"),
    ],
)
async def test_packages_that_cannot_be(control: Control, content: bytes, code: str) -> None:
    answer = await control.api.post("/v1/agents/echo/versions", content=content)
    assert (answer.status_code, answer.json()["code"]) == (400, code), answer.text
    assert left_over(control) == []
    assert (await control.api.get("/v1/agents")).json()["items"] == []


async def test_a_package_that_is_too_large(control: Control) -> None:
    answer = await control.api.post("/v1/agents/echo/versions", content=b"x" * (1024 * 1024 + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "body.too_large")
    assert left_over(control) == []


async def test_a_full_disk_stores_nothing(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("nexus.hosting.packages.os.fsync", full)
    answer = await control.api.post("/v1/agents/echo/versions", content=package("name: echo\n"))
    assert (answer.status_code, answer.json()["code"]) == (429, "storage.full")
    assert left_over(control) == []
    assert (await control.api.get("/v1/agents")).json()["items"] == []


async def test_the_same_version_with_other_content(control: Control) -> None:
    first = await control.upload("echo", "version: 1.0.0\n")
    again = await control.upload("echo", "version: 1.0.0\n")
    assert (first["created"], again["created"], again["id"]) == (True, False, first["id"])
    other = package("name: echo\nentrypoint: agent:agent\nversion: 1.0.0\n", CODE + b"# changed\n")
    answer = await control.api.post("/v1/agents/echo/versions", content=other)
    assert (answer.status_code, answer.json()["code"]) == (409, "version.content_differs")
    assert "version" in answer.json()["next_step"]
    assert left_over(control) == [f"{first['digest']}.tar.gz"]


async def test_versions_without_a_number_are_numbered(control: Control) -> None:
    uploads = [control.upload("echo", code=CODE + f"# {number}\n".encode()) for number in range(5)]
    versions = await asyncio.gather(*uploads)
    assert sorted(one["version"] for one in versions) == [f"0.0.{number}" for number in range(1, 6)]
    again = await control.upload("echo", code=CODE + b"# 3\n")
    assert again["created"] is False


async def test_a_package_without_an_entry_point(control: Control) -> None:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        entry = tarfile.TarInfo("config.yaml")
        entry.size = len(b"name: echo\n")
        archive.addfile(entry, io.BytesIO(b"name: echo\n"))
    answer = await control.api.post("/v1/agents/echo/versions", content=buffer.getvalue())
    assert (answer.status_code, answer.json()["code"]) == (400, "entrypoint.missing")


@pytest.mark.parametrize("name", ["a b", "a.b", "x" * 300, "агент", "-a", "UPPER", "%2e%2e", "%00", "a%2Fb"])
async def test_impossible_names(control: Control, name: str) -> None:
    for answer in (
        await control.api.post(f"/v1/agents/{name}/versions", content=package("name: echo\n")),
        await control.api.get(f"/v1/agents/{name}"),
        await control.api.put(f"/v1/agents/{name}/secrets/A", json={"value": "x"}),
    ):
        assert answer.status_code in (400, 404), answer.text
        assert answer.json()["code"] in ("name.invalid", "route.not_found")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"not json", 400, "request.invalid"),
        (b"[]", 400, "request.invalid"),
        (b"", 400, "request.invalid"),
        (b'{"agent": ' + b"[" * 100_000, 400, "request.invalid"),
        (b'{"agent": "echo"}', 400, "request.invalid"),
        (b'{"agent": "echo", "version_id": "ver_x", "replicas": -1}', 400, "request.invalid"),
        (b'{"agent": "echo", "version_id": "ver_x", "evil": 1}', 400, "request.invalid"),
        (b'{"agent": "echo", "version_id": "ver_x", "environment": "moon"}', 404, "environment.unknown"),
        (b'{"agent": "echo", "version_id": "ver_x"}', 404, "version.not_found"),
        (b'{"agent": "echo", "version_id": "\\u0000"}', 400, "request.invalid"),
        (b'{"agent": "echo", "version_id": "\\ud800"}', 400, "request.invalid"),
    ],
)
async def test_deployments_that_cannot_be(control: Control, body: bytes, status: int, code: str) -> None:
    answer = await control.api.post("/v1/deployments", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


async def test_replicas_outside_the_environment(control: Control) -> None:
    version = await control.upload("echo")
    asked = {"agent": "echo", "version_id": version["id"], "environment": "development", "replicas": 4}
    answer = await control.api.post("/v1/deployments", json=asked)
    assert (answer.status_code, answer.json()["code"]) == (400, "replicas.out_of_bounds")
    for field, value in (("cpu", "much"), ("memory", "5 apples"), ("options", {"colour": "red"})):
        asked = {"agent": "echo", "version_id": version["id"], field: value}
        answer = await control.api.post("/v1/deployments", json=asked)
        assert (answer.status_code, answer.json()["code"]) in ((400, "quantity.invalid"), (400, "options.unknown"))


async def test_an_idempotency_key_answers_the_same_once_more(control: Control) -> None:
    version = await control.upload("echo", "version: 1.0.0\n")
    body = {"agent": "echo", "version_id": version["id"]}
    headers = {"Idempotency-Key": "one"}
    first = await control.api.post("/v1/deployments", json=body, headers=headers)
    await control.settle()
    await control.deploy("echo", "version: 2.0.0\n")
    again = await control.api.post("/v1/deployments", json=body, headers=headers)
    assert again.json() == first.json()
    assert (await control.show(first.json()))["version"] == "2.0.0"
    other = await control.api.post("/v1/deployments", json={**body, "replicas": 1}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency.key_reused")


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("NEXUS_TOKEN", "x", "secret.name_invalid"),
        ("1A", "x", "secret.name_invalid"),
        ("A-B", "x", "secret.name_invalid"),
        ("A" * 200, "x", "secret.name_invalid"),
        ("A", "", "secret.value_invalid"),
        ("A", "a\u0000b", "secret.value_invalid"),
        ("A", "ä" * 40_000, "secret.value_invalid"),
    ],
)
async def test_secrets_that_cannot_be(control: Control, name: str, value: str, code: str) -> None:
    answer = await control.api.put(f"/v1/agents/echo/secrets/{name}", json={"value": value})
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert (await control.api.get("/v1/agents/echo/secrets")).json()["items"] == []


async def test_a_validation_error_never_repeats_a_secret(control: Control) -> None:
    answer = await control.api.put("/v1/agents/echo/secrets/A", json={"value": ["sk-very-secret"]})
    assert answer.status_code == 400
    assert "sk-very-secret" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "route.not_found"),
        ("PATCH", "/v1/agents", 405, "method.not_allowed"),
        ("GET", "/console", 404, "console.absent"),
        ("GET", "/console/agents/x", 404, "console.absent"),
        ("GET", "/v1/agents/echo/logs?limit=0", 400, "request.invalid"),
    ],
)
async def test_places_that_are_none(control: Control, method: str, path: str, status: int, code: str) -> None:
    answer = await control.api.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["x-request-id"]


async def test_a_database_that_goes_away_is_unavailable_and_comes_back(control: Control, postgres_url: str) -> None:
    import psycopg

    assert (await control.api.get("/v1/agents")).status_code == 200
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where pid <> pg_backend_pid() and datname = current_database()"
        )
    answers = [await control.api.get("/v1/agents") for _ in range(3)]
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert answers[-1].status_code == 200


async def test_a_deleted_session_of_events_says_so(control: Control) -> None:
    control.driver.knobs.outcome = lambda spec: "starting"
    deployed = await control.deploy("echo")
    await control.reconciler.round()
    await control.api.delete("/v1/agents/echo")
    following = asyncio.ensure_future(control.api.get(f"/v1/deployments/{deployed['id']}/events"))
    await control.settle()
    answer: Any = await asyncio.wait_for(following, 20)
    assert answer.status_code in (200, 404)
    if answer.status_code == 200:
        assert "deployment.deleted" in answer.text


def test_every_kind_has_a_status() -> None:
    from nexus.wire import problem

    assert {problem.status_of(kind("x")) for kind in errors.KINDS.values()} <= set(range(400, 600))
