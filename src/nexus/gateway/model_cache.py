"""The exact cache of model answers: the same request of the same tenant is answered again without asking the provider.

Two stages: `look`, before anything is reserved, and `keep`, when a call is over. Only whole answers with status 200 are kept, in
this process' memory, streams as the bytes that were sent. Never crosses tenants; with scope `user` not users either.
"""

import collections
import json
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nexus.gateway import http1, kept, model_policy, wishes
from nexus.gateway.model_call import COUNTING, EMBEDDINGS, ModelCall, Ready

if TYPE_CHECKING:
    from nexus.gateway.world import World

_TOTAL_BYTES = 256 * 1024 * 1024
_MOST_SHELVES = 1000
_STATEFUL = ("previous_response_id", "conversation", "background", "container", "mcp_servers")
_NAMED = (b"anthropic-version", b"anthropic-beta", b"openai-beta", b"accept")
_ENDS = (b"data: [DONE]", b"event: message_stop", b"event: response.completed")
_KEPT_HEADERS = frozenset({b"content-type", b"openai-version", b"anthropic-version", b"openai-model"})
Shelf = tuple[str, str, str]


@dataclass(slots=True)
class Shelves:
    """One cache for each scope that asked for one, least recently used first; all together bounded by `total` bytes."""

    total: int = _TOTAL_BYTES
    _caches: "collections.OrderedDict[Shelf, kept.Cache]" = field(default_factory=collections.OrderedDict)

    def find(self, shelf: Shelf, key: Hashable, ttl_s: float, now: float) -> kept.Answer | None:
        cache = self._caches.get(shelf)
        if cache is None:
            return None
        self._caches.move_to_end(shelf)
        return cache.find(key, ttl_s, now)

    def put(self, shelf: Shelf, key: Hashable, answer: kept.Answer, size: int) -> None:
        cache = self._caches.get(shelf)
        if cache is None:
            cache = self._caches[shelf] = kept.Cache()
        self._caches.move_to_end(shelf)
        cache.put(key, answer, wishes.Cache(size=min(size, self.total)))
        while len(self._caches) > 1 and (self.size > self.total or len(self._caches) > _MOST_SHELVES):
            self._caches.popitem(last=False)

    @property
    def size(self) -> int:
        return sum(cache.size for cache in self._caches.values())


def look(call: ModelCall, world: "World") -> None:
    """Answer from what is kept (`call.ready`), or note under which key the answer is to be kept."""
    policy = call.policy.cache
    if policy is None or call.target is None or call.path == EMBEDDINGS or not _may_share(call, policy):
        return
    control = call.call.head.named.get(b"cache-control", b"").lower()
    if b"no-store" in control:
        return
    shelf = shelf_of(call, policy)
    if shelf is None:
        return
    now = world.loop.time()
    key = _digest(call)
    call.cache_place = (shelf, key, call.target)
    call.copies = True
    found = None if b"no-cache" in control else world.shelves.find(shelf, key, policy.ttl_s, now)
    if found is None:
        return
    age = int(now - found.at)
    told = [(b"Age", b"%d" % age), (b"Cache-Status", b"nexus-models; hit; ttl=%d" % max(0, int(policy.ttl_s) - age))]
    call.ready = Ready(found.status, [*found.headers, *told], found.body, "cache")
    call.cached = True
    call.cache_place = None


def keep(call: ModelCall, world: "World") -> None:
    policy, place = call.policy.cache, call.cache_place
    if policy is None or place is None or call.outcome != "completed" or call.status != 200 or call.capped:
        return
    shelf, key, target = place
    body = bytes(call.copy)
    if target is not call.target or not body or len(body) != call.copied or not _is_whole(body, call.streaming):
        return
    headers = tuple(header for header in call.headers if header[0] in _KEPT_HEADERS)
    world.shelves.put(shelf, key, kept.Answer(200, headers, body, world.loop.time()), policy.size)


def told(call: ModelCall) -> list[http1.Header]:
    """What a client learns of a call that was looked up and not found (RFC 9211)."""
    return [(b"Cache-Status", b"nexus-models; fwd=uri-miss")] if call.cache_place is not None else []


def shelf_of(call: ModelCall, policy: model_policy.CachePolicy) -> Shelf | None:
    """Tenant first, always. A call that does not say its user shares nothing under scope `user`."""
    if policy.scope == "tenant":
        return (call.tenant, "", "")
    agent = f"{call.agent}@{call.environment}"
    if policy.scope == "user":
        return (call.tenant, agent, call.user_id) if call.user_id else None
    return (call.tenant, agent, "")


def _may_share(call: ModelCall, policy: model_policy.CachePolicy) -> bool:
    """Whether the same request would get the same answer: it asks for no randomness, and names nothing kept elsewhere."""
    body = call.body
    if any(body.get(name) for name in _STATEFUL) or body.get("store") is True:
        return False
    if policy.always or call.path == COUNTING:
        return True
    temperature = body.get("temperature")
    return isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0


def _digest(call: ModelCall) -> bytes:
    target, named = call.target, call.call.head.named
    asked = {name: value for name, value in call.body.items() if name != "model"}
    body = json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()
    place = (target.provider, target.entry["base_url"], target.upstream_model) if target is not None else ()
    return kept.digest((call.path, *(part.encode() for part in place), *(named.get(name, b"") for name in _NAMED), body))


def _is_whole(body: bytes, streaming: bool) -> bool:
    """A stream that reached its end, or JSON that can be read."""
    if streaming:
        return any(mark in body[-4096:] for mark in _ENDS) and b"event: error" not in body
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False
