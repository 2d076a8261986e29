"""What a deployment asks of the models door for its own calls: caches, and whether their text is audited. Read like `wishes`."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nexus.gateway.model_call import ModelCall
    from nexus.gateway.world import World

_LOG = logging.getLogger(__name__)
_SCOPES = ("agent", "tenant", "user")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """Who shares answers (`agent`, `tenant`, `user`), for `ttl_s` seconds, `size` bytes of them in this process. `always`: also
    answers that the model would not give again."""

    ttl_s: float
    size: int
    scope: str = "agent"
    always: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """`audit_content` None: as the host does."""

    cache: CachePolicy | None = None
    embeddings: CachePolicy | None = None
    audit_content: bool | None = None


NO_POLICY = Policy()


def parse_policy(given: Any, *, where: str) -> Policy:
    """Of the option `models`: `{"cache": {"ttl", "size", "scope", "always"}, "embedding_cache", "audit_content"}`."""
    if not isinstance(given, Mapping):
        return NO_POLICY
    content = given.get("audit_content")
    return Policy(
        cache=_parse_cache(given.get("cache"), where),
        embeddings=_parse_cache(given.get("embedding_cache"), where),
        audit_content=content if isinstance(content, bool) else None,
    )


def find(call: "ModelCall", world: "World") -> None:
    """The first stage: what the agent that calls has asked for. Whoever calls without an agent has asked for nothing."""
    deployment = world.table.agents.get((call.tenant, call.agent), {}).get(call.environment) if call.agent else None
    if deployment is not None:
        call.policy = deployment.options.models


def _parse_cache(given: Any, where: str) -> CachePolicy | None:
    if not isinstance(given, Mapping):
        return None
    try:
        scope = str(given.get("scope", "agent"))
        if scope not in _SCOPES:
            raise ValueError(f"{scope!r} is not one of {', '.join(_SCOPES)}")
        return CachePolicy(
            ttl_s=float(given["ttl"]), size=int(given["size"]), scope=scope, always=given.get("always", False) is True
        )
    except (KeyError, TypeError, ValueError) as error:
        _LOG.warning("a model cache of %s cannot be read (%s); it is left out", where, error)
        return None
