"""Providers' own ways of being asked; Amazon's signature is compared with botocore's."""

import datetime
from typing import Any
from unittest import mock

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from nexus.gateway import model_auth

NOW = 1_795_000_000.25
KEYS = {"access_key": "AKIDEXAMPLE", "secret_key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "region": "eu-west-1"}


def botocores(url: str, body: bytes, credential: dict[str, Any]) -> dict[str, str]:
    keys = Credentials(credential["access_key"], credential["secret_key"], credential.get("session_token"))
    request = AWSRequest("POST", url, data=body)
    request.headers["x-amz-content-sha256"] = __import__("hashlib").sha256(body).hexdigest()
    with mock.patch("botocore.auth.get_current_datetime", create=True) as now:
        now.return_value = datetime.datetime.fromtimestamp(NOW, datetime.UTC).replace(tzinfo=None)
        SigV4Auth(keys, credential["service"], credential["region"]).add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


@pytest.mark.parametrize(
    "target",
    [
        "/openai/v1/chat/completions",
        "/anthropic/v1/messages?beta=true&a=1&B=2",
        "/model/anthropic.claude%3A0/invoke",
        "/a b/~c/%7E/ü?x",
    ],
)
@pytest.mark.parametrize("more", [{"service": "bedrock"}, {"service": "bedrock-mantle", "session_token": "tok/en=="}])
@pytest.mark.parametrize("body", [b"", b'{"messages": "\xc3\xbc"}'])
def test_the_signature_is_the_one_botocore_makes(target: str, more: dict[str, str], body: bytes) -> None:
    host, credential = "bedrock-runtime.eu-west-1.amazonaws.com", {**KEYS, **more}
    ours = model_auth.sign_v4(credential, host=host, target=target, body=body, now=NOW)
    theirs = botocores(f"https://{host}{target}", body, credential)
    assert {name.decode(): value.decode() for name, value in ours}.items() <= theirs.items()
    assert ("session_token" in more) == (b"x-amz-security-token" in dict(ours))


def call_to(auth: dict[str, Any], path: bytes, *, dialect: str = "openai") -> Any:
    target = mock.Mock(spec_set=["entry", "prefix", "upstream_model", "host", "translated"])
    target.entry, target.prefix = {"options": {"auth": auth}}, "/openai"
    target.translated = False
    target.upstream_model, target.host = "my gpt/4", "res.openai.azure.com"
    call = mock.Mock(target=target, dialect=dialect)
    call.call.head.target = path
    return call


@pytest.mark.parametrize(
    ("auth", "path", "dialect", "target"),
    [
        ({}, b"/v1/chat/completions", "openai", b"/openai/chat/completions"),
        ({"api_version": "preview"}, b"/v1/responses?x=1", "openai", b"/openai/responses?x=1&api-version=preview"),
        (
            {"api_version": "2024-10-21", "deployments": True},
            b"/v1/embeddings",
            "openai",
            b"/openai/deployments/my%20gpt%2F4/embeddings?api-version=2024-10-21",
        ),
        ({"prefixes": {"anthropic": "/anthropic/v1"}}, b"/v1/messages", "anthropic", b"/anthropic/v1/messages"),
        ({"prefixes": {"anthropic": "/anthropic/v1"}}, b"/v1/chat/completions", "openai", b"/openai/chat/completions"),
    ],
)
def test_where_a_provider_is_asked(auth: dict[str, Any], path: bytes, dialect: str, target: bytes) -> None:
    assert model_auth.render_target(call_to(auth, path, dialect=dialect)) == target


def test_only_who_asks_for_a_signature_gets_one() -> None:
    plain, signed = call_to({}, b"/v1/messages"), call_to({"sigv4": {**KEYS, "service": "bedrock"}}, b"/v1/messages")
    model_auth.sign(plain, b"{}", NOW)
    model_auth.sign(signed, b"{}", NOW)
    assert plain.signed == []
    assert {name for name, _ in signed.signed} == {b"x-amz-content-sha256", b"x-amz-date", b"authorization"}
