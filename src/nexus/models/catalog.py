"""Which model names this host knows, decided from provider keys in the environment and local models on disk.

Called by the composition root of control, which publishes each entry on the feed under `model/<name>`, and by the CLI.
How a name finds its entry, patterns included, is told in `nexus.wire.feed`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from nexus.core import errors
from nexus.kit import home as homes
from nexus.models import weights
from nexus.wire import feed

_LOG = logging.getLogger(__name__)
OPENAI_DEFAULT = "gpt-4.1-mini"
ANTHROPIC_DEFAULT = "claude-haiku-4-5"
ANTHROPIC_VERSION = "2023-06-01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """`entries` by model name or pattern (`smollm2`, `claude-*`, `*`), without the feed's `model/`. They hold credentials.

    `problems` are settings that were left out because they are wrong; the host runs without them.
    """

    entries: dict[str, feed.ModelEntry] = field(repr=False)
    default_model: str | None
    problems: tuple[errors.NexusError, ...] = ()


def load_entries(environment: Mapping[str, str], home: homes.Home) -> Catalog:
    """Everything known. `NEXUS_DEFAULT_MODEL` (or `NEXUS_MODEL`) chooses the default; else a provider with a key; else local."""
    entries = {name: _local_entry(name, home) for name in weights.PACKAGES}
    defaults: list[str] = []
    problems: list[errors.NexusError] = []
    for read in (_openai, _anthropic):
        try:
            found, default = read(environment)
        except errors.Invalid as problem:
            _LOG.warning("%s: %s", problem.code, problem.message)
            problems.append(problem)
            continue
        if default is not None:
            defaults.append(default)
        for name, entry in found.items():
            entries.setdefault(name, entry)
    wanted = (environment.get("NEXUS_DEFAULT_MODEL") or environment.get("NEXUS_MODEL") or "").strip()
    chosen = wanted if wanted and wanted != "default" else (*defaults, weights.LOCAL_DEFAULT)[0]
    if feed.resolve_model(entries, chosen) is None:
        problems.append(_unknown_default(chosen, entries))
        _LOG.warning("%s: %s", problems[-1].code, problems[-1].message)
        chosen = (*defaults, weights.LOCAL_DEFAULT)[0]
    if (led := feed.resolve_model(entries, chosen)) is not None:
        entries[chosen] = led  # by its own name too, so that it is listed
    return Catalog(entries=entries, default_model=chosen, problems=tuple(problems))


def _local_entry(name: str, home: homes.Home) -> feed.ModelEntry:
    return {
        "provider": "local",
        "base_url": f"unix:{home.model_socket(name)}",
        "headers": {},
        "upstream_model": name,
        "dialects": ["openai", "anthropic"],
    }


def _openai(environment: Mapping[str, str]) -> tuple[dict[str, feed.ModelEntry], str | None]:
    """Also any server that speaks OpenAI's dialect: with `OPENAI_BASE_URL` set, a key is not needed."""
    key = _credential(environment, "OPENAI_API_KEY")
    given = environment.get("OPENAI_BASE_URL", "").strip()
    if not key and not given:
        return {}, None
    entry: feed.ModelEntry = {
        "provider": "openai",
        "base_url": _base_url("OPENAI_BASE_URL", given or "https://api.openai.com/v1"),
        "headers": {"authorization": f"Bearer {key}"} if key else {},
        "upstream_model": "*",
        "dialects": ["openai"],
    }
    return {"openai/*": entry, "*": entry}, OPENAI_DEFAULT


def _anthropic(environment: Mapping[str, str]) -> tuple[dict[str, feed.ModelEntry], str | None]:
    """Anthropic answers OpenAI's chat completions too. Its `ANTHROPIC_BASE_URL` has no `/v1` by that vendor's convention."""
    key = _credential(environment, "ANTHROPIC_API_KEY")
    if not key:
        return {}, None
    given = environment.get("ANTHROPIC_BASE_URL", "").strip() or "https://api.anthropic.com"
    base_url = _base_url("ANTHROPIC_BASE_URL", given)
    entry: feed.ModelEntry = {
        "provider": "anthropic",
        "base_url": base_url if base_url.endswith("/v1") else base_url + "/v1",
        "headers": {"x-api-key": key, "anthropic-version": ANTHROPIC_VERSION},
        "upstream_model": "*",
        "dialects": ["anthropic", "openai"],
    }
    return {"anthropic/*": entry, "claude-*": {**entry, "upstream_model": "claude-*"}}, ANTHROPIC_DEFAULT


def _credential(environment: Mapping[str, str], name: str) -> str:
    """The key without surrounding space. The error never shows it."""
    value = environment.get(name, "").strip()
    if value and not (value.isascii() and value.isprintable() and " " not in value):
        raise errors.Invalid(
            f"{name} holds characters that no API key has",
            code="model.bad_credential",
            cause="spaces, line breaks or letters outside ASCII",
            next_step=f"set {name} again, the bare key alone",
        )
    return value


def is_base_url(value: str) -> bool:
    """Whether it is http:// or https://, a host, perhaps a port and a path, and nothing else."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and value.isprintable()
    except ValueError:
        return False
    return usable and " " not in value and not (parts.username or parts.query or parts.fragment)


def _base_url(name: str, value: str) -> str:
    if not is_base_url(value):
        raise errors.Invalid(
            f"{name} is not a usable URL",
            code="model.bad_base_url",
            cause="it takes http:// or https://, a host, perhaps a port and a path; no user, query or fragment",
            next_step=f"set {name} to such as https://host.example/v1",
        )
    return value.rstrip("/")


def _unknown_default(name: str, entries: Mapping[str, feed.ModelEntry]) -> errors.NexusError:
    return errors.NotFound(
        f"the default model {name!r} is not known here",
        code="model.not_found",
        cause="known: " + ", ".join(sorted(entries)),
        next_step="set NEXUS_DEFAULT_MODEL to one of these, or give that provider's key",
    )
