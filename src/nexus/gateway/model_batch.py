"""Batching of embeddings: calls of one tenant that come within a few milliseconds go to the provider as one, where its settings
say so (`batch`). Each caller gets its own vectors and its own share of the tokens.

A batch is nobody's: a caller who leaves takes only its answer along. When the provider does not answer the whole batch well, each
call is sent by itself, so one caller's bad text is one caller's error.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nexus.gateway import http1, model_auth, model_embeddings, model_sending, usage
from nexus.gateway.model_call import EMBEDDINGS, ModelCall, Target
from nexus.gateway.upstream import BadAnswer, Upstream
from nexus.kit import guard

if TYPE_CHECKING:
    from nexus.gateway.models_door import ModelHandler
    from nexus.gateway.world import World

_MOST_BYTES = 256 * 1024
_MOST_ANSWER = 64 * 1024 * 1024
Key = tuple[str, str, str]


def key_of(call: ModelCall) -> Key | None:
    """What calls must share to go together; None for a call that goes alone."""
    target = call.target
    if call.path != EMBEDDINGS or target is None or target.batch is None or call.size > _MOST_BYTES:
        return None
    if not model_embeddings.items_of(call.body.get("input")):
        return None
    asked = {name: value for name, value in call.body.items() if name not in ("model", "input", "user")}
    return call.tenant, target.name, json.dumps(asked, sort_keys=True)


class Batches:
    """Those that are still gathering, one for each key."""

    def __init__(self) -> None:
        self._open: dict[Key, Batch] = {}

    def add(self, handler: "ModelHandler", key: Key, world: "World") -> "Batch":
        call = handler.model_call
        assert call.target is not None
        assert call.target.batch is not None
        window_s, most = call.target.batch
        batch = self._open.get(key)
        if batch is None:
            batch = self._open[key] = Batch(key, call.target, world)
            world.loop.call_later(window_s, self._close, key, batch)
        batch.add(handler)
        if batch.size >= most:
            self._close(key, batch)
        return batch

    def _close(self, key: Key, batch: "Batch") -> None:
        if self._open.get(key) is batch:
            del self._open[key]
            batch.send()


class Batch:
    """Calls on their way together. It is what its upstream connection tells of the answer (`upstream.Receiver`)."""

    def __init__(self, key: Key, target: Target, world: "World") -> None:
        self._target = target
        self._world = world
        self._calls: list[tuple[ModelHandler | None, list[Any], int]] = []
        self._upstream: Upstream | None = None
        self._answer = bytearray()
        self._status = 0
        self._headers: list[http1.Header] = []
        self._sent = self._over = False
        self.size = 0

    def add(self, handler: "ModelHandler") -> None:
        items = model_embeddings.items_of(handler.model_call.body.get("input"))
        self.size += len(items)
        self._calls.append((handler, items, max(1, handler.model_call.input_estimate)))

    def leave(self, handler: "ModelHandler") -> None:
        """A caller has gone, or goes elsewhere. The last one of a batch under way takes the connection along."""
        self._calls = [(None if who is handler else who, items, weight) for who, items, weight in self._calls]
        if self._sent and not any(who is not None for who, _, _ in self._calls):
            self._finish(reusable=False)

    def send(self) -> None:
        """The window is over."""
        self._sent = True
        waiting = [who for who, _, _ in self._calls if who is not None]
        if len(waiting) < 2:
            self._scatter()
            return
        self._calls = [one for one in self._calls if one[0] is not None]
        guard.spawn(self._go(waiting[0].model_call), name="embeddings", owner=self._world.tasks)

    async def _go(self, first: ModelCall) -> None:
        pool, address = self._world.pool, self._target.address
        upstream = pool.take(address, self._world.loop.time())
        try:
            upstream = upstream or await pool.dial(address)
        except (OSError, TimeoutError, ValueError):
            self._scatter()
            return
        if self._over:
            upstream.close()
            return
        self._upstream = upstream
        body = {
            **first.body,
            "model": self._target.upstream_model,
            "input": [item for _, items, _ in self._calls for item in items],
        }
        body.pop("user", None)
        raw = json.dumps(body, separators=(",", ":")).encode()
        for who, _, _ in self._calls:
            if who is not None:
                who.model_call.attempted = True
        model_auth.sign(first, raw, self._world.clock())
        upstream.begin(self, headless=False)
        framing = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(raw)
        upstream.transport.write(model_sending.render_own_head(first, framing) + raw)

    # what the upstream connection tells

    def on_answer(self, status: int, headers: list[http1.Header], *, length: int | None, chunked: bool) -> None:
        self._status, self._headers = status, headers

    def on_answer_data(self, parts: list[bytes]) -> None:
        for part in parts:
            self._answer += part
        if len(self._answer) > _MOST_ANSWER:
            self._scatter()

    def on_answer_end(self, *, reusable: bool) -> None:
        if self._over:
            return
        if self._status == 429:
            self._pass_on(reusable)
            return
        rows = _parse(self._answer, sum(len(items) for _, items, _ in self._calls)) if self._status == 200 else None
        if rows is None:
            self._scatter()
            return
        answer, vectors = rows
        shares = share(_tokens(answer), [weight for _, _, weight in self._calls])
        headers = model_sending.clean_answer(self._headers)
        calls, at = self._calls, 0
        self._finish(reusable=reusable)
        for (who, items, _), tokens in zip(calls, shares, strict=True):
            mine = vectors[at : at + len(items)]
            at += len(items)
            if who is not None:
                who.deliver(headers, _render(answer, mine, tokens))

    def on_bad_answer(self, reason: str) -> None:
        self._scatter()

    def on_upstream_lost(self, error: Exception | None) -> None:
        self._scatter()

    def wants_tunnel(self) -> bool:
        return False

    def on_tunnel(self, headers: list[http1.Header]) -> None:
        raise BadAnswer("it switched protocols unasked")

    def on_tunnel_data(self, data: bytes) -> None: ...
    def flush(self) -> None: ...
    def pause_body(self) -> None: ...
    def resume_body(self) -> None: ...

    def _pass_on(self, reusable: bool) -> None:
        """A provider that has had enough is not asked again for each."""
        calls, headers, body = self._calls, model_sending.clean_answer(self._headers), bytes(self._answer)
        status = self._status
        self._finish(reusable=reusable)
        for who, _, _ in calls:
            if who is not None:
                who.refuse(status, headers, body)

    def _scatter(self) -> None:
        """Each call for itself."""
        if self._over:
            return
        calls = self._calls
        self._finish(reusable=False)
        for who, _, _ in calls:
            if who is not None:
                who.go_alone()

    def _finish(self, *, reusable: bool) -> None:
        self._over = True
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            if reusable:
                upstream.release(reusable=True)
            else:
                upstream.close()


def _tokens(answer: dict[str, Any]) -> int:
    found = usage.parse_usage(answer)
    return found.input if found is not None else 0


def share(total: int, weights: Sequence[int]) -> list[int]:
    """A total in whole numbers by weight; the shares make the total."""
    whole, given, passed = sum(weights), 0, 0
    shares = []
    for weight in weights:
        passed += weight
        upto = total * passed // whole
        shares.append(upto - given)
        given = upto
    return shares


def _parse(body: bytearray, count: int) -> tuple[dict[str, Any], list[Any]] | None:
    """The answer and its vectors in order; None when it does not hold just these."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    rows = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(rows, list) or len(rows) != count or not all(isinstance(row, dict) for row in rows):
        return None
    placed = {row.get("index", place): row.get("embedding") for place, row in enumerate(rows)}
    return (answer, [placed[place] for place in range(count)]) if set(placed) == set(range(count)) else None


def _render(answer: dict[str, Any], vectors: list[Any], tokens: int) -> bytes:
    rows = [{"object": "embedding", "index": place, "embedding": vector} for place, vector in enumerate(vectors)]
    used = {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}} if "usage" in answer else {}
    return json.dumps({**answer, "data": rows, **used}, separators=(",", ":")).encode()
