"""What `auth` of a provider makes of its entries, and what printed tokens mean."""

import datetime
import json

import pytest

from nexus.core import errors
from nexus.models import provider_auth, provider_tokens, providers
from nexus.wire import models as wire

KEYS = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-west-1"}
TOKEN = provider_auth.Token(bearer="tok", expires_at=9e9)


def render(kind, *, key=None, environ=None, token=None, auth=None, **fields):
    environ = environ or {}
    provider = wire.Provider(kind=kind, auth=auth or {}, **fields)
    parsed = provider_auth.parse("p", kind, provider.auth)
    entry = providers.render("p", provider, key, environ)["p/*"]
    return provider_auth.apply(
        entry, name="p", kind=kind, auth=parsed, environ=environ, read=lambda reference: f"<{reference}>", token=token
    )


def test_azure_with_a_key_with_its_versions_and_with_a_token():
    plain = render("azure", key="abc", base_url="https://r.openai.azure.com/openai/v1")
    assert plain["headers"] == {"api-key": "abc"}
    assert "auth" not in plain["options"]
    old = render(
        "azure", key="abc", base_url="https://r.openai.azure.com/openai", auth={"deployments": True, "api_version": "2024-10-21"}
    )
    assert old["options"]["auth"] == {"deployments": True, "api_version": "2024-10-21"}
    oauth = {"tenant": "t1", "client_id": "c", "client_secret": "env:S"}
    entra = render("azure", key="abc", base_url="https://r.example/openai/v1", auth={"oauth": oauth}, token=TOKEN)
    assert entra["headers"] == {"authorization": "Bearer tok"}
    assert "auth" not in entra["options"]


def test_a_version_that_yaml_reads_as_a_day_is_one():
    assert provider_auth.parse("p", "azure", {"api_version": datetime.date(2024, 10, 21)}).api_version == "2024-10-21"


def test_bedrock_signed_with_the_hosts_credential():
    entry = render("bedrock", environ=KEYS)
    assert entry["base_url"] == "https://bedrock-runtime.eu-west-1.amazonaws.com/openai/v1"
    credential = {"access_key": "<env:AWS_ACCESS_KEY_ID>", "secret_key": "<env:AWS_SECRET_ACCESS_KEY>"}
    assert entry["options"]["auth"]["sigv4"] == {**credential, "region": "eu-west-1", "service": "bedrock"}
    assert entry["dialects"] == ["openai"]


def test_bedrock_speaks_both_dialects_at_its_other_endpoint():
    entry = render("bedrock", auth={"endpoint": "mantle", "region": "us-east-1"}, environ=KEYS)
    assert entry["base_url"] == "https://bedrock-mantle.us-east-1.api.aws/v1"
    assert entry["dialects"] == ["openai", "anthropic"]
    assert entry["options"]["auth"]["prefixes"] == {"anthropic": "/anthropic/v1"}
    assert entry["options"]["auth"]["sigv4"]["service"] == "bedrock-mantle"
    assert entry["headers"] == {"anthropic-version": "2023-06-01"}


def test_bedrock_with_an_api_key_or_a_fetched_credential():
    bearer = render("bedrock", key="abc", auth={"region": "us-east-1"})
    assert bearer["headers"] == {"authorization": "Bearer abc"}
    assert "auth" not in bearer["options"]
    aws = provider_auth.Token(aws={"access_key": "A", "secret_key": "B", "session_token": "C"}, expires_at=9e9)
    fetched = render("bedrock", auth={"region": "us-east-1", "command": ["x"]}, token=aws)
    assert fetched["options"]["auth"]["sigv4"]["session_token"] == "C"


def test_a_token_that_is_not_there_yet_leaves_the_provider_out():
    with pytest.raises(errors.Unavailable) as caught:
        render("google", auth={"command": ["gcloud"]})
    assert caught.value.code == "provider.token_missing"


@pytest.mark.parametrize("kind", ["google", "mistral", "ollama", "vllm", "openai", "anthropic"])
def test_presets_need_no_address(kind):
    entry = render(kind, key="abc")
    assert entry["base_url"].startswith("http")


@pytest.mark.parametrize(
    ("kind", "auth", "word"),
    [
        ("azure", {"api_versoin": "x"}, "api_versoin"),
        ("azure", {"deployments": True}, "api_version"),
        ("openai", {"region": "us-east-1"}, "bedrock"),
        ("bedrock", {"region": "nowhere"}, "us-east-1"),
        ("azure", {"oauth": {"client_id": "c", "client_secret": "plain"}}, "client_secret"),
        ("azure", {"oauth": {"client_id": "c", "client_secret": "env:X"}}, "tenant"),
        ("google", {"command": []}, "command"),
        ("google", {"command": ["a"], "oauth": {"tenant": "t", "client_id": "c", "client_secret": "env:X"}}, "exclude"),
        ("openai", {"prefixes": {"openai": "no-slash"}}, "prefixes"),
    ],
)
def test_what_is_wrong_is_named_and_shows_no_value_of_a_secret(kind, auth, word):
    with pytest.raises(errors.Invalid) as caught:
        provider_auth.parse("p", kind, auth)
    assert caught.value.code == "provider.invalid"
    assert word in caught.value.cause
    assert "plain" not in caught.value.cause


def test_a_command_comes_from_the_hosts_own_file_alone():
    with pytest.raises(errors.Invalid, match="cannot be used"):
        provider_auth.parse("p", "google", {"command": ["rm", "-rf", "/"]}, by_api=True)


NOW = 1_000_000.0


@pytest.mark.parametrize(
    ("printed", "bearer", "lasts"),
    [
        ("tok\n", "tok", 1800),
        ('{"access_token": "tok", "expires_in": 3599}', "tok", 3599),
        ('{"access_token": "tok", "expires_in": "60"}', "tok", 60),
        ('{"accessToken": "tok", "expires_on": 1000090}', "tok", 90),
        ('{"accessToken": "tok", "expiresOn": "1970-01-12T13:48:40+00:00"}', "tok", 120),
        ('{"token": "tok", "expiry": "long ago"}', "tok", 1800),
        ('{"token": "tok", "expires_at": 5}', "tok", 1800),
        ('{"token": "tok", "expires_in": true}', "tok", 1800),
    ],
)
def test_tokens_as_programs_print_them(printed, bearer, lasts):
    token = provider_tokens.parse_token(printed.encode(), refresh_s=1800, now=NOW)
    assert (token.bearer, token.expires_at - NOW) == (bearer, lasts)


def test_amazons_credential_process():
    printed = {
        "Version": 1,
        "AccessKeyId": "A",
        "SecretAccessKey": "B",
        "SessionToken": "C",
        "Expiration": "2030-01-01T00:00:00Z",
    }
    token = provider_tokens.parse_token(json.dumps(printed).encode(), refresh_s=1800, now=NOW)
    assert token.aws == {"access_key": "A", "secret_key": "B", "session_token": "C"}
    assert token.expires_at == 1_893_456_000


@pytest.mark.parametrize(
    "printed", [b"", b"  \n", b"{broken", b'{"error": "no"}', b"two words", b"\xff\xfe", b"x" * 20_000, b'{"token": ""}']
)
def test_what_is_no_token_is_refused_without_showing_it(printed):
    with pytest.raises(errors.Unavailable) as caught:
        provider_tokens.parse_token(printed, refresh_s=1800, now=NOW)
    assert "two words" not in str(caught.value.cause)
