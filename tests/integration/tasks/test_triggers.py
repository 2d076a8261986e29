"""Signed webhooks that become tasks: once each, refused without the right signature, with nothing secret in the database."""

import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import rig as rigs
import standardwebhooks
import test_task_api as apis


@pytest.fixture
async def api(postgres_url: str, sockets: Path) -> AsyncIterator[apis.Api]:
    async with apis.opened(postgres_url, sockets, {"NEXUS_EGRESS_ALLOW": "127.0.0.1"}) as made:
        yield made


async def create(api: apis.Api, **hook: Any) -> dict[str, Any]:
    body = {"name": "in", "agent": "echo", "hook": hook, "task": {"priority": 7, "context": {"own": 1}}}
    answer = await api("POST", "/v1/triggers", json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    made["path"] = made["url"].removeprefix("http://host")
    return made


async def send(api: apis.Api, made: dict[str, Any], body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    answer = await api("POST", made["path"], content=body, headers={"Authorization": "", **headers})
    return answer.status_code, answer.json()


def standard(secret: str, body: bytes, *, message_id: str = "msg_1", at: float | None = None) -> dict[str, str]:
    when = datetime.fromtimestamp(time.time() if at is None else at, UTC)
    signature = standardwebhooks.Webhook(secret).sign(message_id, when, body.decode())
    stamp = str(int(when.timestamp()))
    return {"webhook-id": message_id, "webhook-timestamp": stamp, "webhook-signature": f"v1,AAAA {signature}"}


async def test_a_signed_webhook_is_one_task(api: apis.Api, sockets: Path, postgres_url: str) -> None:
    made = await create(api, scheme="standard")
    assert made["secret"].startswith("whsec_")
    body = json.dumps({"type": "order.paid", "order": 5}).encode()
    first = await send(api, made, body, standard(made["secret"], body))
    again = await send(api, made, body, standard(made["secret"], body))
    assert first[0] == again[0] == 202
    assert first[1]["task_id"] == again[1]["task_id"], "delivered twice, done once"
    other = await send(api, made, body, standard(made["secret"], body, message_id="msg 2"))
    assert other[1]["task_id"] != first[1]["task_id"]
    async with rigs.gateway(sockets / "door-0.sock", rigs.completes) as gateway:
        done = await api.finished(first[1]["task_id"])
        assert (done["output"], done["origin"], done["priority"]) == ({"type": "order.paid", "order": 5}, made["id"], 7)
        told = next(call for call in gateway.calls if call.fields["nexus-run-id"] == first[1]["task_id"]).body["context"]
    about = {"id": made["id"], "name": "in", "kind": "hook", "message_id": "msg_1", "type": "order.paid"}
    assert told == {"own": 1, "trigger": about}
    shown = (await api("GET", "/v1/triggers/in")).json()
    assert (shown["taken"], shown["secret"], shown["last_task_id"]) == (2, None, other[1]["task_id"])
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        rows = await (await connection.execute("SELECT t::text, encode(sealed, 'escape') FROM task_triggers t")).fetchall()
    assert made["secret"] not in str(rows)
    assert made["secret"].removeprefix("whsec_") not in str(rows)


async def test_what_is_not_signed_right_is_not_taken(api: apis.Api) -> None:
    made = await create(api, scheme="standard")
    body = b'{"a":1}'
    good = standard(made["secret"], body)
    wrong: list[tuple[bytes, dict[str, str]]] = [
        (body, {}),
        (b'{"a":2}', good),
        (body, {**good, "webhook-id": "msg_other"}),
        (body, {**good, "webhook-timestamp": "nonsense"}),
        (body, {**good, "webhook-signature": good["webhook-signature"].replace("v1,", "v2,")}),
        (body, standard("whsec_" + "A" * 32, body)),
        (body, standard(made["secret"], body, at=time.time() - 301)),
        (body, standard(made["secret"], body, at=time.time() + 302)),
    ]
    for content, headers in wrong:
        status, told = await send(api, made, content, headers)
        assert (status, told["code"]) == (401, "hook.bad_signature")
    assert (await send(api, made, b"x" * 1_048_577, good))[1]["code"] == "body.too_large"
    for path in ("/hooks/trg_00000000000000000000000000", "/hooks/x"):
        assert (await api("POST", path, content=body)).status_code == 404
    await api("POST", "/v1/triggers/in/pause")
    assert (await send(api, made, body, good))[0] == 404
    await api("POST", "/v1/triggers/in/resume")
    assert (await send(api, made, body, good))[0] == 202
    assert (await api("DELETE", "/v1/triggers/in")).status_code == 204
    assert (await send(api, made, body, good))[0] == 404


def github(secret: str, body: bytes) -> dict[str, str]:
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {"X-Hub-Signature-256": f"sha256={digest}", "X-GitHub-Delivery": "d-1", "X-GitHub-Event": "push"}


def stripe(secret: str, body: bytes) -> dict[str, str]:
    stamp = str(int(time.time()))
    digest = hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    return {"Stripe-Signature": f"t={stamp},v0=11,v1=00,v1={digest}"}


def any_hmac(secret: str, body: bytes) -> dict[str, str]:
    import base64

    digest = base64.b64encode(hmac.new(secret.encode(), body, hashlib.sha512).digest()).decode()
    return {"X-Shop-Sign": f"s={digest}", "X-Shop-Id": "7"}


Sign = Callable[[str, bytes], dict[str, str]]
FORMS: list[tuple[dict[str, Any], Sign]] = [
    ({"scheme": "github"}, github),
    ({"scheme": "stripe", "secret": "whsec_of-stripe"}, stripe),
    (
        {
            "scheme": "hmac", "header": "X-Shop-Sign", "algorithm": "sha512", "encoding": "base64", "prefix": "s=",
            "id_header": "X-Shop-Id",
        },
        any_hmac,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("hook", "sign"), FORMS)
async def test_the_forms_of_others(api: apis.Api, hook: dict[str, Any], sign: Sign) -> None:
    made = await create(api, **hook)
    body = b'{"id":"evt_1","type":"paid"}'
    headers = sign(hook.get("secret", made["secret"]), body)
    first, again = await send(api, made, body, headers), await send(api, made, body, headers)
    assert (first[0], first) == (202, again)
    assert (await send(api, made, body + b" ", headers))[0] == 401
    assert (await send(api, made, body, {name: value + "0" for name, value in headers.items()}))[0] == 401


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"hook": {"scheme": "hmac"}}, "request.invalid"),
        ({"hook": {"scheme": "stripe"}}, "request.invalid"),
        ({"hook": {"scheme": "standard", "secret": "whsec_short"}}, "hook.bad_secret"),
        ({"hook": {}, "queue": {"url": "redis://h", "name": "q"}}, "request.invalid"),
        ({}, "request.invalid"),
        ({"queue": {"url": "http://h", "name": "q"}}, "request.invalid"),
        ({"queue": {"url": "redis://10.0.0.1", "name": "q"}}, "trigger.url_refused"),
        ({"queue": {"url": "kafka://127.0.0.1:9092,169.254.169.254:9092", "name": "q"}}, "trigger.url_refused"),
        ({"hook": {}, "task": {"webhook": "http://10.0.0.1/"}}, "webhook.url_refused"),
    ],
)
async def test_triggers_that_cannot_be(api: apis.Api, body: dict[str, Any], code: str) -> None:
    answer = await api("POST", "/v1/triggers", json={"name": "in", "agent": "echo", **body})
    assert (answer.status_code, answer.json()["code"]) == (400, code)


async def test_a_brokers_password_is_shown_to_nobody(api: apis.Api) -> None:
    queue = {"url": "amqp://me:geheim@127.0.0.1:5/v?x=geheim", "name": "jobs"}
    answer = await api("POST", "/v1/triggers", json={"name": "in", "agent": "echo", "queue": queue})
    assert (answer.status_code, answer.json()["url"]) == (201, "amqp://me:***@127.0.0.1:5/v")
    everything = answer.text + (await api("GET", "/v1/triggers")).text
    assert "geheim" not in everything
    assert (await api("POST", "/v1/triggers", json={"name": "in", "agent": "echo", "queue": queue})).json()[
        "code"
    ] == "trigger.exists"


async def test_another_tenant_finds_no_trigger(api: apis.Api) -> None:
    await create(api)
    assert (await api("GET", "/v1/triggers", "other.dev")).json()["items"] == []
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/pause")):
        assert (await api(method, f"/v1/triggers/in{path}", "other.dev")).status_code == 404
    answer = await api("POST", "/v1/triggers", "default.runner", json={"name": "x", "agent": "echo", "hook": {}})
    assert answer.status_code in (401, 403)
