"""The models door: an agent's (or a client's) model call goes to a provider under the host's credential, and is counted.

The decisions are stages (`model_stages`); this is the exchange around them: body in, provider's answer out, and what happens
when it does not come. Bodies are JSON of bounded size and are read whole, because the model's name is in them; answers stream.
"""

import re

from nexus.core import errors
from nexus.gateway import answers, http1, model_counting, model_request, model_sending, model_stages, usage
from nexus.gateway.exchange import Exchange
from nexus.gateway.handler import Handler
from nexus.gateway.model_call import ModelCall, version_of
from nexus.gateway.upstream import BadAnswer
from nexus.wire import feed as wire_feed

_DIALECT = {b"/v1/messages": "anthropic", b"/v1/messages/count_tokens": "anthropic"}
_RUN_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_NAME = re.compile(rb"[!-~]{1,256}")


class ModelHandler(Handler):
    """One call of a model."""

    collects = True

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self.model_call = self._describe()
        self._raw = b""
        self._counter = model_counting.Counter(self.model_call)
        self._told = usage.Tokens()
        self._refused_status = 0

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
            path=call.head.path,
            dialect=_DIALECT.get(call.head.path, "openai"),
            started_at=call.started,
            began=world.loop.time(),
        )

    def open(self) -> None:
        call = self.model_call
        self._raw = b"".join(self.exchange.parts)
        model_request.read(call, self._raw)
        model_stages.run_before(call, self.world)
        ready = call.ready
        if ready is not None:
            self.exchange.reply(ready.status, [*ready.headers, *answers.cors(self.call)], ready.body)
            return
        self._send()

    def _send(self) -> None:
        call = self.model_call
        if call.target is None:
            raise errors.Internal("a model call was sent before it had a target")
        self.exchange.replace_body(model_request.render(call, self._raw))
        self.exchange.deadline = self.world.loop.time() + self.world.settings.model_timeout_s
        self.world.counts.model_calls += 1
        self.exchange.connect(call.target.address)

    def request_head(self, framing: bytes) -> bytes:
        return model_sending.render_head(self.model_call, framing)

    def unreachable(self, error: Exception) -> None:
        call = self.model_call
        raise errors.Unavailable(
            f"the provider {call.provider} of model {call.model!r} does not answer",
            code="model.unreachable",
            cause=type(error).__name__,
            retry_after_s=1,
            next_step="see `nexus doctor`",
        ) from error

    def answer_headers(self, status: int, headers: list[http1.Header]) -> list[http1.Header]:
        if status in (401, 403):
            self._refused_status = status
            raise BadAnswer(f"the provider refused the host's credential with {status}")
        kept = model_sending.clean_answer(headers)
        self.model_call.headers = list(kept)
        named = dict(headers)
        if status < 300 and named.get(b"content-encoding", b"identity") == b"identity":
            if named.get(b"content-type", b"").startswith(b"text/event-stream"):
                self._counter.begin_stream()
                self.rewrites = True
            else:
                self.watches = True
        if self.call.origin is not None:
            kept.extend(answers.cors(self.call))
        return kept

    def watch(self, part: bytes) -> None:
        self._note_first_byte()
        self._counter.keep(part)

    def see(self, part: bytes) -> bytes:
        """A stream shows life with every part, so its deadline moves on; what it used is known before its end is passed on."""
        stream = self._counter.stream
        if stream is None:
            return part
        self._note_first_byte()
        self.exchange.deadline = self.world.loop.time() + self.world.settings.model_timeout_s
        passed = stream.feed(part)
        if stream.tokens is not None:
            self._tell(stream.tokens, estimated=False)
        return passed

    def _note_first_byte(self) -> None:
        if self.model_call.first_byte is None:
            self.model_call.first_byte = self.world.loop.time()

    def last(self) -> bytes:
        return self._counter.stream.flush() if self._counter.stream is not None else b""

    def _tell(self, tokens: usage.Tokens, *, estimated: bool) -> None:
        call = self.model_call
        more = usage.Tokens(tokens.input - self._told.input, tokens.output - self._told.output)
        self._told = tokens
        if call.instance_id and (more.input or more.output):
            self.world.ledger.add(call.instance_id, call.run_id, tokens=more, calls=0, estimated=estimated)

    def expired(self) -> None:
        if self.model_call.target is None:
            raise errors.Exhausted("the body did not come in time", code="request.timeout", next_step="send the request again")
        raise errors.Exhausted(
            f"the model {self.model_call.model!r} did not answer within {self.world.settings.model_timeout_s:g} s",
            code="model.timeout",
            retry_after_s=1,
            next_step="try again, or use a smaller model",
        )

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
        if not call.chain:
            return
        call.outcome, call.status, call.code = outcome, status, code
        call.ended = self.world.loop.time()
        self._counter.finish(status)
        self._tell(call.tokens, estimated=call.estimated)
        model_stages.run_after(call, self.world)


class ModelListHandler(Handler):
    """`GET /v1/models` and `/v1/models/{id}` in OpenAI's shape."""

    def open(self) -> None:
        table, match = self.world.table, self.call.match
        name = match.name if match is not None else ""
        items = [_model_view(model, entry) for model, entry in sorted(table.models.items()) if "*" not in model]
        value: dict[str, object] = {"object": "list", "data": items}
        if name:
            entry = wire_feed.resolve_model(table.models, name)
            if entry is None:
                raise errors.NotFound(
                    f"there is no model {name[:80]!r} here", code="model.not_found", next_step="see GET /v1/models"
                )
            value = _model_view(name, entry)
        headers, body = answers.render_json(value, self.call)
        self.exchange.reply(200, headers, body)


def _model_view(name: str, entry: wire_feed.ModelEntry) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": entry["provider"]}


def _matching(pattern: re.Pattern[bytes], given: bytes) -> str:
    return given.decode("ascii") if pattern.fullmatch(given) else ""
