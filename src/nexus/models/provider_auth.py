"""What a provider's `auth` may say, and what it makes of the provider's entries: keys of other kinds than one header. Pure.

`provider_tokens` fetches what has to be fetched; the gateway's `model_auth` uses what stands in an entry's `options.auth`.
"""

import datetime
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from nexus.core import errors
from nexus.wire import feed
from nexus.wire.models import Duration
from nexus.wire.project_section import Section

_REGION = re.compile(r"[a-z]{2}(-[a-z]+){1,3}-\d{1,2}")
_AWS = {"access_key": "AWS_ACCESS_KEY_ID", "secret_key": "AWS_SECRET_ACCESS_KEY", "session_token": "AWS_SESSION_TOKEN"}


def _written_as_date(value: Any) -> Any:
    """YAML reads `2024-10-21` as a day."""
    return value.isoformat() if isinstance(value, datetime.date) else value


Reference = Annotated[str, Field(pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+)$", max_length=1024)]
Prefix = Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)+$", max_length=256)]
Version = Annotated[str, pydantic.BeforeValidator(_written_as_date), Field(pattern=r"^[A-Za-z0-9.-]{1,40}$")]
Read = Callable[[str], str]
"""The text behind a reference (`env:NAME`, `file:/path`). Raises `Invalid` (`provider.key_missing`)."""


class ClientCredentials(Section):
    """OAuth 2.0 client credentials (RFC 6749, section 4.4). For Microsoft Entra `tenant` stands for the address."""

    client_id: str = Field(min_length=1, max_length=256)
    client_secret: Reference
    tenant: str | None = Field(default=None, pattern=r"^[A-Za-z0-9.-]{1,128}$")
    token_url: str | None = Field(default=None, pattern=r"^https?://", max_length=1024)
    scope: str = Field(default="https://cognitiveservices.azure.com/.default", max_length=1024)

    @property
    def url(self) -> str:
        return self.token_url or f"https://login.microsoftonline.com/{self.tenant}/oauth2/v2.0/token"

    @pydantic.model_validator(mode="after")
    def _somewhere(self) -> "ClientCredentials":
        if (self.tenant is None) == (self.token_url is None):
            raise ValueError("needs either tenant or token_url")
        return self


class Auth(Section):
    """`command` prints a token: bare, or JSON as `az`, `gcloud` and AWS' `credential_process` print it. Only in `models.yaml`."""

    prefixes: dict[Literal["openai", "anthropic"], Prefix] = Field(default_factory=dict)
    api_version: Version | None = None
    deployments: bool = False
    oauth: ClientCredentials | None = None
    command: list[Annotated[str, Field(min_length=1, max_length=1024)]] | None = Field(default=None, min_length=1, max_length=50)
    refresh: Duration = 1800.0
    region: str | None = None
    endpoint: Literal["runtime", "mantle"] = "runtime"
    access_key: Reference | None = None
    secret_key: Reference | None = None
    session_token: Reference | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What was fetched: a bearer token, or the parts of Amazon's credential. `expires_at`: seconds since the epoch."""

    bearer: str = field(default="", repr=False)
    aws: Mapping[str, str] = field(default_factory=dict, repr=False)
    expires_at: float


def parse(name: str, kind: str, value: Mapping[str, Any], *, by_api: bool = False) -> Auth:
    """Raises `Invalid` (`provider.invalid`) naming what is wrong. Values of secrets cannot be in it, only where they are."""
    try:
        auth = Auth.model_validate(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise _invalid(name, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
    if by_api and auth.command is not None:
        raise _invalid(name, "a command can be set in models.yaml only, because it runs on the host")
    if auth.oauth is not None and auth.command is not None:
        raise _invalid(name, "oauth and command exclude each other")
    if kind != "bedrock" and any((auth.region, auth.access_key, auth.secret_key, auth.session_token)):
        raise _invalid(name, "region and AWS keys belong to the kind bedrock")
    if kind == "bedrock" and auth.region is not None and not _REGION.fullmatch(auth.region):
        raise _invalid(name, "region: such as us-east-1")
    if auth.deployments and (kind != "azure" or auth.api_version is None):
        raise _invalid(name, "deployments are Azure's, and need an api_version")
    return auth


def fetches(auth: Auth) -> bool:
    """Whether there is a token to fetch."""
    return auth.oauth is not None or auth.command is not None


def base_url(kind: str, auth: Auth, environ: Mapping[str, str]) -> str | None:
    """Where a provider is whose address follows from its `auth`."""
    region = _region(auth, environ)
    if kind != "bedrock" or region is None:
        return None
    if auth.endpoint == "mantle":
        return f"https://bedrock-mantle.{region}.api.aws/v1"
    return f"https://bedrock-runtime.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}/openai/v1"


def dialects(kind: str, auth: Auth) -> tuple[str, ...] | None:
    return ("openai", "anthropic") if kind == "bedrock" and auth.endpoint == "mantle" else None


def apply(
    entry: feed.ModelEntry, *, name: str, kind: str, auth: Auth, environ: Mapping[str, str], read: Read, token: Token | None
) -> feed.ModelEntry:
    """The entry with what this authentication needs. Raises `Invalid` or `Unavailable` when something is missing."""
    if fetches(auth) and token is None:
        raise errors.Unavailable(
            f"there is no token for provider {name} yet",
            code="provider.token_missing",
            next_step="see the log of control for what its command or token service answered",
            retry_after_s=1,
        )
    headers, made = dict(entry["headers"]), _places(kind, auth)
    if token is not None and token.bearer:
        headers = {key: value for key, value in headers.items() if key.lower() != "api-key"}
        headers["authorization"] = f"Bearer {token.bearer}"
    elif kind == "bedrock" and "authorization" not in headers:
        made["sigv4"] = _sigv4(name, auth, environ, read, token)
    if kind == "bedrock" and auth.endpoint == "mantle":
        headers.setdefault("anthropic-version", "2023-06-01")
    options = {setting: value for setting, value in (entry.get("options") or {}).items() if setting != "auth"}
    if made:
        options["auth"] = made
    return {**entry, "headers": headers, "options": options}


def _places(kind: str, auth: Auth) -> dict[str, Any]:
    made: dict[str, Any] = {}
    prefixes = {str(dialect): prefix for dialect, prefix in auth.prefixes.items()}
    if kind == "bedrock" and auth.endpoint == "mantle":
        prefixes.setdefault("anthropic", "/anthropic/v1")
    if prefixes:
        made["prefixes"] = prefixes
    if auth.api_version is not None:
        made["api_version"] = auth.api_version
    if auth.deployments:
        made["deployments"] = True
    return made


def _sigv4(name: str, auth: Auth, environ: Mapping[str, str], read: Read, token: Token | None) -> dict[str, str]:
    region = _region(auth, environ)
    if region is None:
        raise _invalid(name, "region is needed for signing, or AWS_REGION")
    parts = dict(token.aws) if token is not None else {}
    if not parts:
        given = {part: getattr(auth, part) for part in _AWS}
        if not any(given.values()):
            given = {part: f"env:{variable}" for part, variable in _AWS.items() if environ.get(variable)}
        parts = {part: read(reference) for part, reference in given.items() if reference is not None}
    if not parts.get("access_key") or not parts.get("secret_key"):
        raise errors.Invalid(
            f"provider {name} has no AWS credential",
            code="provider.key_missing",
            next_step="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for the host, its auth.access_key and secret_key, or key",
        )
    return {**parts, "region": region, "service": "bedrock" if auth.endpoint == "runtime" else "bedrock-mantle"}


def _region(auth: Auth, environ: Mapping[str, str]) -> str | None:
    found = auth.region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    return found if found and _REGION.fullmatch(found) else None


def _invalid(name: str, cause: str) -> errors.Invalid:
    return errors.Invalid(
        f"the auth of provider {name} cannot be used",
        code="provider.invalid",
        cause=cause,
        next_step="see docs/howto/providers.md",
    )
