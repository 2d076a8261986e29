"""Providers as the feed's model entries: presets by kind, credentials put in, names and patterns that lead there. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nexus.core import errors
from nexus.models import catalog, provider_auth
from nexus.wire import feed
from nexus.wire import models as wire

ANTHROPIC_VERSION = "2023-06-01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What a kind of provider is unless told otherwise. `prices` names its list in genai-prices; `free`: it costs nothing."""

    base_url: str | None
    dialects: tuple[str, ...] = ("openai",)
    header: str = "authorization"
    scheme: str = "Bearer "
    more: tuple[tuple[str, str], ...] = ()
    prices: str | None = None
    free: bool = False


PRESETS: Mapping[str, Preset] = {
    "openai": Preset(base_url="https://api.openai.com/v1", prices="openai"),
    "anthropic": Preset(
        base_url="https://api.anthropic.com/v1",
        dialects=("anthropic", "openai"),
        header="x-api-key",
        scheme="",
        more=(("anthropic-version", ANTHROPIC_VERSION),),
        prices="anthropic",
    ),
    "azure": Preset(base_url=None, header="api-key", scheme="", prices="azure"),
    "bedrock": Preset(base_url=None, prices="aws"),
    "google": Preset(base_url="https://generativelanguage.googleapis.com/v1beta/openai", prices="google"),
    "mistral": Preset(base_url="https://api.mistral.ai/v1", prices="mistral"),
    "ollama": Preset(base_url="http://127.0.0.1:11434/v1", free=True),
    "vllm": Preset(base_url="http://127.0.0.1:8000/v1", free=True),
    "openai-compatible": Preset(base_url=None),
}


def render(
    name: str, provider: wire.Provider, key: str | None, environ: Mapping[str, str] | None = None
) -> dict[str, feed.ModelEntry]:
    """The entries by model name, without the feed's `model/`. Raises `Invalid` (`provider.invalid`)."""
    preset, environ = PRESETS[provider.kind], environ or {}
    auth = provider_auth.parse(name, provider.kind, provider.auth)
    headers = {**dict(preset.more), **provider.headers}
    if key:
        headers[preset.header] = preset.scheme + check_key(name, key)
    entry: feed.ModelEntry = {
        "provider": name,
        "base_url": check_base_url(
            name, provider.base_url or preset.base_url or provider_auth.base_url(provider.kind, auth, environ)
        ),
        "headers": headers,
        "upstream_model": "*",
        "dialects": list(provider.dialects or provider_auth.dialects(provider.kind, auth) or preset.dialects),
        "options": _options(provider, preset),
    }
    entries = {f"{name}/*": entry}
    for pattern in provider.serves:
        entries[pattern] = {**entry, "upstream_model": pattern}
    for model, known in provider.models.items():
        one: feed.ModelEntry = {
            **entry,
            "upstream_model": known.upstream or model,
            "options": entry["options"] | _model_options(known),
        }
        entries[f"{name}/{model}"] = entries[model] = one
    return entries


def render_unusable(name: str, provider: wire.Provider) -> dict[str, feed.ModelEntry]:
    """Entries of a provider that cannot be asked now: its calls fail (and fall back) instead of going to somebody else who takes
    every name."""
    entry: feed.ModelEntry = {
        "provider": name,
        "base_url": "unix:/provider-cannot-be-used",
        "headers": {},
        "upstream_model": "*",
        "dialects": ["openai", "anthropic"],
    }
    fixed: feed.ModelEntry = {**entry, "upstream_model": "none"}
    entries = {f"{name}/*": entry} | {pattern: {**entry, "upstream_model": pattern} for pattern in provider.serves}
    return entries | {known: fixed for model in provider.models for known in (model, f"{name}/{model}")}


def _options(provider: wire.Provider, preset: Preset) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": provider.kind}
    if prices := provider.prices or preset.prices:
        found["prices"] = prices
    if preset.free and provider.prices is None:
        found["price"] = {}
    times = {"timeout_s": provider.timeout, "first_byte_s": provider.first_byte}
    found |= {setting: value for setting, value in times.items() if value is not None}
    if provider.translate:
        found["translate"] = True
    if provider.retries:
        found["retries"] = provider.retries
    if provider.batch is not None:
        found["batch"] = {"window_s": provider.batch.window, "most": provider.batch.most}
    return found


def _model_options(known: wire.ProviderModel) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if known.context is not None:
        found["context"] = known.context
    if known.tags:
        found["tags"] = known.tags
    if known.price is not None:
        found["price"] = known.price.model_dump(exclude_none=True)
    return found


def check_key(name: str, key: str) -> str:
    """The bare key. The error never shows it."""
    value = key.strip()
    if not value or not (value.isascii() and value.isprintable() and " " not in value):
        raise errors.Invalid(
            f"the key of provider {name} holds characters that no API key has",
            code="model.bad_credential",
            cause="it is empty, or has spaces, line breaks or letters outside ASCII",
            next_step="give the bare key alone",
        )
    return value


def check_base_url(name: str, value: str | None) -> str:
    """`http(s)://host[:port][/path]` or `unix:/path`, without an end slash."""
    if value is None:
        raise errors.Invalid(
            f"provider {name} needs a base_url", code="provider.invalid", next_step="such as https://host.example/v1"
        )
    if value.startswith("unix:/"):
        return value
    if not catalog.is_base_url(value):
        raise errors.Invalid(
            f"the base_url of provider {name} is not usable",
            code="provider.invalid",
            cause="it takes http:// or https://, a host, perhaps a port and a path; no user, query or fragment",
            next_step="such as https://host.example/v1",
        )
    return value.rstrip("/")
