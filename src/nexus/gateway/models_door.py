"""The models door: an agent's (or a client's) model call goes to a provider under the host's credential, and is counted.

The decisions are stages (`model_stages`); this is the exchange around them: body in, provider's answer out, and what happens
when it does not come. Bodies are JSON of bounded size and are read whole, because the model's name is in them; answers stream.
"""

import re

from nexus.core import errors
from nexus.gateway import (
    answers,
    breaker,
    http1,
    mint,
    model_auth,
    model_batch,
    model_cache,
    model_counting,
    model_embeddings,
    model_errors,
    model_record,
    model_request,
    model_reserve,
    model_routing,
    model_sending,
    model_stages,
    model_stop,
    usage,
)
from nexus.gateway.exchange import Exchange
from nexus.gateway.handler import Handler, Phase
from nexus.gateway.model_call import ModelCall, Target, version_of
from nexus.gateway.upstream import BadAnswer
from nexus.wire import feed as wire_feed

_DIALECT = {b"/v1/messages": "anthropic", b"/v1/messages/count_tokens": "anthropic"}
_RUN_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_NAME = re.compile(rb"[!-~]{1,256}")
_PAUSE_S = 0.1
_SPOKEN = (b"application/json", b"text/event-stream", b"application/vnd.")
_KINDS = {
    401: "error", 403: "error", 404: "error", 408: "timeout", 429: "rate", 500: "error", 502: "error", 503: "error",
    504: "timeout", 529: "error",
}  # fmt: skip
"""The way in which an answer of a provider fails, by its status; what else there is, is the caller's to see."""


class ModelHandler(Handler):
    """One call of a model."""

    collects = True

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self.model_call = self._describe()
        self._raw = b""
        self._counter = model_counting.Counter(self.model_call)
        self._told = usage.Tokens()
        self._tries = 0
        self._fall = "error"
        self._circuit: breaker.Circuit | None = None
        self._refused_status = 0
        self._over = False
        self._batch: model_batch.Batch | None = None

    def _describe(self) -> ModelCall:
        call, world = self.call, self.world
        named, caller = call.head.named, call.caller
        token = caller.token if caller is not None else None
        inside = token is not None
        return ModelCall(
            id="call_" + world.minter.run_id()[len("run_") :],
            call=call,
            tenant=call.tenant,
            principal=caller.principal.id if caller is not None else "",
            agent=token["agent"] if token else "",
            environment=token["environment"] if token else "",
            version=version_of(world.table, token) if token else "",
            instance_id=token["instance_id"] if token else "",
            run_id=_matching(_RUN_ID, named.get(b"nexus-run-id", b"")),
            session_id=_matching(_NAME, named.get(b"nexus-session-id", b"")) if inside else "",
            user_id=_matching(_NAME, named.get(b"nexus-user-id", b"")),
            traceparent=named.get(b"traceparent", b""),
            trace_id=mint.parse_traceparent(named.get(b"traceparent")) or "",
            path=call.head.path,
            dialect=_DIALECT.get(call.head.path, "openai"),
            started_at=call.started,
            began=world.loop.time(),
        )

    def open(self) -> None:
        call = self.model_call
        self._raw = b"".join(self.exchange.parts)
        model_request.read(call, self._raw)
        self.world.model_handlers.add(self)
        model_stages.run_before(call, self.world)
        ready = call.ready
        if ready is not None:
            self.exchange.reply(ready.status, [*ready.headers, *answers.cors(self.call)], ready.body)
            return
        key = model_batch.key_of(call)
        if key is not None:
            self.exchange.phase = Phase.WAITING
            self.exchange.deadline = self.world.loop.time() + self._target.timeout_s
            self._batch = self.world.batches.add(self, key, self.world)
            return
        self.exchange.replace_body(self._prepare())
        self.exchange.connect(self._target.address)

    def deliver(self, headers: list[http1.Header], body: bytes) -> None:
        """The provider answered the batch that this call was part of; `body` is its own part."""
        call, self._batch = self.model_call, None
        self.world.counts.model_calls += 1
        call.provider_status, call.headers = 200, list(headers)
        self._note_first_byte()
        self._counter.keep(body)
        whole = call.merge.join(body) if call.merge is not None and model_embeddings.joins(call) else body
        told = [*model_sending.told(call), *model_cache.told(call), *answers.cors(self.call)]
        self.exchange.reply(200, [*headers, *told], whole)

    def refuse(self, status: int, headers: list[http1.Header], body: bytes) -> None:
        """The provider refused the batch that this call was part of."""
        self._batch = None
        try:
            if self._another(_KINDS[status]):
                return
        except errors.NexusError as error:
            self.exchange.fail(error)
            return
        self.model_call.provider_status = status
        self.exchange.reply(status, [*headers, *answers.cors(self.call)], body)

    def go_alone(self) -> None:
        """The batch did not go well: this call is sent by itself."""
        self._batch = None
        self.exchange.send_elsewhere(self._target.address, self._prepare())

    # sending, here or elsewhere

    @property
    def _target(self) -> Target:
        if self.model_call.target is None:
            raise errors.Internal("a model call was sent before it had a target")
        return self.model_call.target

    @property
    def _patience_s(self) -> float:
        """How long an answer may take to begin. One that is not streamed begins when it is made."""
        target = self._target
        return min(target.first_byte_s, target.timeout_s) if self.model_call.streaming else target.timeout_s

    def _prepare(self) -> bytes:
        """The body for the target; from here on its time runs."""
        target = self._target
        self._tries += 1
        self._fall = "error"
        self._refused_status = 0
        self._circuit = model_routing.circuit_of(target, self.world)
        self._circuit.note_start(model_routing.THRESHOLD)
        self.exchange.deadline = self.world.loop.time() + self._patience_s
        self.world.counts.model_calls += 1
        model_embeddings.prepare(self.model_call)
        body = model_request.render(self.model_call, self._raw)
        model_auth.sign(self.model_call, body, self.world.clock())
        return body

    def _note(self, *, failed: bool | None) -> None:
        """What an attempt says about its provider; once for each."""
        circuit, self._circuit = self._circuit, None
        if circuit is not None:
            circuit.note_end(model_routing.THRESHOLD, failed=failed, now=self.world.loop.time())

    def _can_go_on(self, kind: str) -> bool:
        call = self.model_call
        return self._may_repeat(kind) or (kind in call.on and call.attempts < len(call.chain))

    def _may_repeat(self, kind: str) -> bool:
        return kind == "error" and self._tries <= self._target.retries

    def _another(self, kind: str) -> bool:
        """Try again, at the same place or at the next one. Only before anything of an answer was passed on."""
        call = self.model_call
        if self._may_repeat(kind):
            self.exchange.phase = Phase.WAITING
            self.exchange.deadline = self.world.loop.time() + self._target.timeout_s
            self.world.loop.call_later(_PAUSE_S * 2 ** (self._tries - 1), self._repeat)
            return True
        if kind not in call.on or not model_routing.advance(call, self.world):
            return False
        model_reserve.release(call, self.world)
        model_reserve.reserve(call, self.world)
        self._tries = 0
        self.exchange.send_elsewhere(self._target.address, self._prepare())
        return True

    def _repeat(self) -> None:
        if self.exchange.phase is Phase.WAITING:
            self.exchange.send_elsewhere(self._target.address, self._prepare())

    def request_head(self, framing: bytes) -> bytes:
        self.model_call.attempted = True
        return model_sending.render_head(self.model_call, framing)

    def unreachable(self, error: Exception) -> None:
        self._note(failed=True)
        if self._another("error"):
            return
        call = self.model_call
        raise errors.Unavailable(
            f"the provider {call.provider} of model {call.model!r} does not answer",
            code="model.unreachable",
            cause=type(error).__name__,
            retry_after_s=1,
            next_step="see `nexus doctor`",
        ) from error

    def repeat(self) -> bool:
        self._note(failed=True)
        return self._another("error")

    def another_try(self) -> bool:
        self._note(failed=True)
        return self._another(self._fall)

    # the answer

    def answer_headers(self, status: int, headers: list[http1.Header]) -> list[http1.Header]:
        odd = status == 200 and not dict(headers).get(b"content-type", b"").lower().startswith(_SPOKEN)
        kind = "error" if odd else _KINDS.get(status)
        self._note(failed=None if status == 429 else status >= 500)
        if kind is not None and self._can_go_on(kind):
            self._fall = kind
            raise BadAnswer("it answered with something else than JSON or events" if odd else f"it answered {status}")
        if status in (401, 403):
            self._refused_status = status
            raise BadAnswer(f"the provider refused the host's credential with {status}")
        call = self.model_call
        call.provider_status = status
        self.exchange.deadline = self.world.loop.time() + self._target.timeout_s
        kept = model_sending.clean_answer(headers)
        call.headers = list(kept)
        named = dict(headers)
        if status < 300 and named.get(b"content-encoding", b"identity") == b"identity":
            if named.get(b"content-type", b"").startswith(b"text/event-stream"):
                self._counter.begin_stream()
                self.rewrites = True
            elif model_embeddings.joins(call):
                self.rewrites = True
            else:
                self.watches = True
        kept.extend(model_sending.told(call))
        kept.extend(model_cache.told(call))
        if self.call.origin is not None:
            kept.extend(answers.cors(self.call))
        return kept

    def watch(self, part: bytes) -> None:
        self._note_first_byte()
        self._counter.keep(part)

    def see(self, part: bytes) -> bytes:
        """A stream shows life with every part, so its deadline moves on; what it used is known before its end is passed on."""
        stream, call = self._counter.stream, self.model_call
        if stream is None:
            self.watch(part)
            return b""
        self._note_first_byte()
        self.exchange.deadline = self.world.loop.time() + self._target.timeout_s
        passed = stream.feed(part)
        if stream.tokens is not None:
            self._tell(stream.tokens, estimated=False)
        if stream.pieces >= call.output_reserved and call.holds and not self._over:
            try:
                model_reserve.extend(call, stream.pieces, self.world)
            except errors.NexusError as error:
                self._over = True
                self.world.loop.call_soon(self._cut, error)
        if call.copies:
            self._counter.keep(passed)
        return passed

    def _note_first_byte(self) -> None:
        if self.model_call.first_byte is None:
            self.model_call.first_byte = self.world.loop.time()

    def last(self) -> bytes:
        if self._counter.stream is not None:
            return self._counter.stream.flush()
        merge = self.model_call.merge
        return merge.join(bytes(self.model_call.copy)) if merge is not None else b""

    def _tell(self, tokens: usage.Tokens, *, estimated: bool) -> None:
        call = self.model_call
        more = usage.Tokens(tokens.input - self._told.input, tokens.output - self._told.output)
        self._told = tokens
        if call.instance_id and (more.input or more.output):
            self.world.ledger.add(call.instance_id, call.run_id, tokens=more, calls=0, estimated=estimated)

    # ends

    def check_stop(self) -> None:
        """A stop was set: this call ends, if it is meant."""
        try:
            model_stop.check(self.model_call, self.world)
        except errors.NexusError as error:
            self._cut(error)

    def _cut(self, error: errors.NexusError) -> None:
        """End the call here and now; a stream's reader is told why."""
        stream = self._counter.stream
        if self.exchange.flushed and stream is not None:
            ending = b"\n\n" if stream.inside_event else b""
            self.exchange.fail_stream(
                error, ending + model_errors.render_event(error, anthropic=self.model_call.dialect == "anthropic")
            )
        else:
            self.exchange.fail(error)

    def expired(self) -> None:
        call = self.model_call
        if call.target is None:
            raise errors.Exhausted("the body did not come in time", code="request.timeout", next_step="send the request again")
        self._leave_batch()
        self._note(failed=True)
        if not self.exchange.answered and self._another("timeout"):
            return
        waited = call.target.timeout_s if self.exchange.answered else self._patience_s
        raise errors.Exhausted(
            f"the model {call.model!r} did not answer within {waited:g} s",
            code="model.timeout",
            retry_after_s=1,
            next_step="try again, or use a smaller model",
        )

    def _leave_batch(self) -> None:
        batch, self._batch = self._batch, None
        if batch is not None:
            batch.leave(self)

    def broken(self, reason: str, *, lost: bool) -> errors.NexusError:
        provider = self.model_call.provider
        if self._refused_status:
            return errors.Unavailable(
                f"the provider {provider} refused this host's credential",
                code="model.credential_refused",
                cause=reason,
                next_step=f"give control a valid key for {provider} and start the host again",
            )
        return errors.Unavailable(
            f"the provider {provider} broke its answer off", code="upstream.failed", cause=reason, retry_after_s=1
        )

    def close(self, *, outcome: str, status: int, code: str) -> None:
        call = self.model_call
        self.world.model_handlers.discard(self)
        self._leave_batch()
        call.outcome, call.status, call.code = outcome, status, code
        call.ended = self.world.loop.time()
        if not call.chain:
            if call.size:
                model_record.report(call, self.world)  # what was refused before it led anywhere is known to the trail alone
            return
        self._note(failed=None if outcome == "cancelled" or code.startswith(("model.stopped", "budget.")) else True)
        self._counter.finish()
        self._tell(call.tokens, estimated=call.estimated)
        model_stages.run_after(call, self.world)


class ModelListHandler(Handler):
    """`GET /v1/models` and `/v1/models/{id}` in OpenAI's shape."""

    def open(self) -> None:
        table, match = self.world.table, self.call.match
        name = match.name if match is not None else ""
        items = [_model_view(model, entry["provider"]) for model, entry in table.models.items() if "*" not in model]
        items += [_model_view(alias, "nexus") for alias in table.model_routes if alias not in table.models]
        value: dict[str, object] = {"object": "list", "data": sorted(items, key=lambda item: str(item["id"]))}
        if name:
            entry = wire_feed.resolve_model(table.models, name)
            if entry is None and name not in table.model_routes:
                raise errors.NotFound(
                    f"there is no model {name[:80]!r} here", code="model.not_found", next_step="see GET /v1/models"
                )
            value = _model_view(name, "nexus" if entry is None or name in table.model_routes else entry["provider"])
        headers, body = answers.render_json(value, self.call)
        self.exchange.reply(200, headers, body)


def _model_view(name: str, owner: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


def _matching(pattern: re.Pattern[bytes], given: bytes) -> str:
    return given.decode("ascii") if pattern.fullmatch(given) else ""
