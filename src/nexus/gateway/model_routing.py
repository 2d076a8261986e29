"""Where a model call goes: the name it asks for becomes a chain of targets; each attempt takes the next of them."""

from urllib.parse import urlsplit

from nexus.core import errors
from nexus.gateway.model_call import ModelCall, Target
from nexus.gateway.world import World
from nexus.wire import feed as wire_feed


def resolve(call: ModelCall, world: World) -> None:
    """Fill `call.chain`. Raises `NotFound` (`model.not_found`) naming known models, `Invalid` (`model.dialect_unsupported`)."""
    name, entry = _find(call.requested, world)
    call.model = name
    if call.dialect not in entry["dialects"]:
        able = ", ".join(entry["dialects"]) or "none"
        raise errors.Invalid(
            f"the model {name!r} does not speak {call.dialect}",
            code="model.dialect_unsupported",
            cause=f"its provider {entry['provider']} speaks {able}",
            next_step="use the other API, or a model whose provider speaks this one",
        )
    call.chain = [target_of(name, entry)]


def choose(call: ModelCall, world: World) -> None:
    """Take the next target of the chain for the first or another attempt."""
    call.target = call.chain[call.attempts]
    call.attempts += 1


def target_of(name: str, entry: wire_feed.ModelEntry) -> Target:
    address, host, prefix = parse_base_url(entry["base_url"])
    return Target(name=name, entry=entry, upstream_model=entry["upstream_model"], address=address, host=host, prefix=prefix)


def _find(asked: str, world: World) -> tuple[str, wire_feed.ModelEntry]:
    table = world.table
    for name in (asked, table.default_model):
        if name and (entry := wire_feed.resolve_model(table.models, name)) is not None:
            return name, entry
    known = ", ".join(sorted(table.models)[:20])
    raise errors.NotFound(
        f"there is no model {(asked or 'default')[:80]!r} here",
        code="model.not_found",
        cause=f"the models are {known}" if known else "this host has no model",
        next_step="choose one of GET /v1/models, or run `nexus models pull`, or give control a provider's key",
    )


def parse_base_url(base_url: str) -> tuple[str, str, str]:
    """Address for the pool, Host header and path prefix of a model's `base_url`."""
    if base_url.startswith("unix:"):
        return base_url, "localhost", "/v1"
    parts = urlsplit(base_url)
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host:
        raise errors.Internal(f"the model's address {parts.scheme}://… cannot be used", code="model.bad_base_url")
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    bracketed = f"[{host}]" if ":" in host else host
    shown = bracketed if parts.port is None else f"{bracketed}:{parts.port}"
    return f"{'tls' if secure else 'tcp'}:{bracketed}:{port}", shown, parts.path.rstrip("/")
