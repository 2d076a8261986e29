"""The cache of embeddings, item by item: only texts that were not embedded before go to the provider.

`look` takes known items out of the request; when none is left the call is answered here. Else `Merge` makes one answer of the
provider's vectors and the known ones. What an item's vector hangs on is in its key: tenant, provider, model, size, encoding.
"""

import json
from typing import TYPE_CHECKING, Any

from nexus.gateway import kept
from nexus.gateway.model_cache import Shelf, shelf_of
from nexus.gateway.model_call import EMBEDDINGS, ModelCall, Ready, Target

if TYPE_CHECKING:
    from nexus.gateway.world import World

_MOST_ITEMS = 2048
_MOST_MERGED = 512
_JSON = ((b"content-type", b"application/json"),)
_NO_ANSWER = b'{"error":{"message":"the provider gave no embeddings","type":"upstream","code":"upstream.failed"}}'


class Merge:
    """One call's items: `known` vectors by place, and the places of those that are still to come. They are `target`'s."""

    def __init__(self, *, target: Target, shelf: Shelf, items: list[Any], keys: list[bytes], known: dict[int, bytes]) -> None:
        self.target = target
        self.shelf = shelf
        self.items = items
        self.keys = keys
        self.known = known
        self.missing = [place for place in range(len(keys)) if place not in known]

    def forget(self) -> None:
        """All of them are asked for."""
        self.known, self.missing = {}, list(range(len(self.keys)))

    def join(self, body: bytes) -> bytes:
        """The provider's answer to the missing items, made the answer to all; an error object when it is not one."""
        answer = _parse(body)
        vectors = _vectors(answer, len(self.missing)) if answer is not None else None
        if answer is None or vectors is None:
            return _NO_ANSWER
        given = {**self.known, **dict(zip(self.missing, vectors, strict=True))}
        rows = b",".join(_row(place, given[place]) for place in range(len(self.keys)))
        rest = {name: value for name, value in answer.items() if name not in ("data", "object")}
        head = json.dumps(rest, separators=(",", ":")).encode()[1:-1]
        return b'{"object":"list","data":[%b]%b}' % (rows, b"," + head if head else b"")


def look(call: ModelCall, world: "World") -> None:
    policy = call.policy.embeddings
    if policy is None or call.path != EMBEDDINGS or call.target is None:
        return
    items = items_of(call.body.get("input"))
    shelf = shelf_of(call, policy)
    if not items or shelf is None or len(items) > _MOST_ITEMS:
        return
    now, keys = world.loop.time(), _keys(call, items)
    known: dict[int, bytes] = {}
    for place, key in enumerate(keys):
        found = world.shelves.find(shelf, key, policy.ttl_s, now)
        if found is not None:
            known[place] = found.body
    merge = Merge(target=call.target, shelf=shelf, items=items, keys=keys, known=known)
    if not merge.missing:
        _answer(call, keys, known)
        return
    call.merge = merge
    if known and len(items) <= _MOST_MERGED:
        call.body["input"] = [items[place] for place in merge.missing]
        call.changed = True
    else:
        merge.forget()


def prepare(call: ModelCall) -> None:
    """Before each attempt: another model's vectors do not fit the known ones, so it is asked for all."""
    merge = call.merge
    if merge is not None and merge.known and call.target is not merge.target:
        merge.forget()
        call.body["input"] = merge.items
        call.changed = True


def joins(call: ModelCall) -> bool:
    """Whether the provider's answer has to be joined with known vectors."""
    return call.merge is not None and bool(call.merge.known)


def keep(call: ModelCall, world: "World") -> None:
    """Keep each vector that the provider gave."""
    policy, merge = call.policy.embeddings, call.merge
    if (
        policy is None
        or merge is None
        or call.target is not merge.target
        or call.outcome != "completed"
        or call.status != 200
        or len(call.copy) != call.copied
    ):
        return
    answer = _parse(bytes(call.copy))
    vectors = _vectors(answer, len(merge.missing)) if answer is not None else None
    for place, vector in zip(merge.missing, vectors or (), strict=False):
        world.shelves.put(merge.shelf, merge.keys[place], kept.Answer(200, (), vector, world.loop.time()), policy.size)


def _answer(call: ModelCall, keys: list[bytes], known: dict[int, bytes]) -> None:
    rows = b",".join(_row(place, known[place]) for place in range(len(keys)))
    model = json.dumps(call.model).encode()
    body = b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":0,"total_tokens":0}}' % (rows, model)
    call.ready = Ready(200, [*_JSON, (b"Cache-Status", b"nexus-models; hit")], body, "cache")
    call.cached = True


def items_of(given: Any) -> list[Any]:
    """The texts (or lists of tokens) that are asked for; empty when this cannot be told."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        return []
    if all(isinstance(item, int) for item in given):
        return [given]
    return given if all(isinstance(item, str | list) for item in given) else []


def _keys(call: ModelCall, items: list[Any]) -> list[bytes]:
    target, body = call.target, call.body
    place = (target.provider, target.entry["base_url"], target.upstream_model) if target is not None else ()
    asked = {name: value for name, value in body.items() if name not in ("model", "input", "user")}
    fixed = (b"embedding", *(part.encode() for part in place), json.dumps(asked, sort_keys=True).encode())
    return [kept.digest((*fixed, json.dumps(item).encode())) for item in items]


def _parse(body: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _vectors(answer: dict[str, Any], count: int) -> list[bytes] | None:
    """The vectors in the order that was asked, each as its JSON; None when the answer does not hold just these."""
    rows = answer.get("data")
    if not isinstance(rows, list) or len(rows) != count or not all(isinstance(row, dict) for row in rows):
        return None
    placed = {row.get("index", place): row.get("embedding") for place, row in enumerate(rows)}
    if set(placed) != set(range(count)) or not all(isinstance(vector, list | str) for vector in placed.values()):
        return None
    return [json.dumps(placed[place], separators=(",", ":")).encode() for place in range(count)]


def _row(place: int, vector: bytes) -> bytes:
    return b'{"object":"embedding","index":%d,"embedding":%b}' % (place, vector)
