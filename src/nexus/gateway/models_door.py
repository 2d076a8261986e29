"""The models door: an agent's (or a client's) model call goes to the provider under the host's credential, and is counted.

Bodies here are JSON of bounded size and are read whole, because the model's name is in them; answers are streamed.
"""

import json
import re
from typing import Any
from urllib.parse import urlsplit

from nexus.core import errors
from nexus.gateway import answers, http1, usage
from nexus.gateway.exchange import Exchange
from nexus.gateway.handler import Handler
from nexus.gateway.upstream import BadAnswer
from nexus.wire import feed as wire_feed
from nexus.wire import runs as wire_runs

_DIALECT = {b"/v1/messages": "anthropic", b"/v1/messages/count_tokens": "anthropic"}
_PRIVATE = http1.HOP | {
    b"host", b"authorization", b"x-api-key", b"api-key", b"cookie", b"origin", b"referer", b"accept-encoding", b"forwarded",
    b"via", b"x-real-ip", b"openai-organization", b"openai-project", b"content-length", b"content-encoding", b"traceparent",
    b"tracestate", b"baggage",
}  # fmt: skip
_PROVIDERS_OWN = http1.HOP | {
    b"set-cookie", b"server", b"via", b"alt-svc", b"strict-transport-security", b"openai-organization", b"openai-project",
    b"anthropic-organization-id", b"cf-ray", b"cf-cache-status", b"nel", b"report-to",
}  # fmt: skip
_RUN_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_LONGEST_COUNTED = 8 * 1024 * 1024


class ModelHandler(Handler):
    """One call of a model."""

    collects = True

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self._began = self.world.loop.time()
        self._entry: wire_feed.ModelEntry | None = None
        self._model = ""
        self._address = self._host = ""
        self._target = b""
        self._asked = 0
        self._counter: usage.StreamCounter | None = None
        self._copy = bytearray()
        self._copied = 0
        self._told = usage.Tokens()
        self._hide = False
        self._refused_status = 0
        given = self.call.head.named.get(b"nexus-run-id", b"")
        self._run_id = given.decode("ascii") if _RUN_ID.fullmatch(given) else ""
        caller = self.call.caller
        self._token = caller.token if caller is not None else None

    def open(self) -> None:
        body = b"".join(self.exchange.parts)
        request = parse_body(body)
        name, entry = self._resolve(request.get("model"))
        dialect = _DIALECT.get(self.call.head.path, "openai")
        if dialect not in entry["dialects"]:
            able = ", ".join(entry["dialects"]) or "none"
            raise errors.Invalid(
                f"the model {name!r} does not speak {dialect}",
                code="model.dialect_unsupported",
                cause=f"its provider {entry['provider']} speaks {able}",
                next_step="use the other API, or a model whose provider speaks this one",
            )
        self._entry, self._model = entry, name
        self._address, self._host, prefix = parse_base_url(entry["base_url"])
        self._target = prefix.encode("ascii") + self.call.head.target[len(b"/v1") :]
        changed = request.get("model") != entry["upstream_model"]
        request["model"] = entry["upstream_model"]
        if self.call.head.path in (b"/v1/chat/completions", b"/v1/completions") and request.get("stream") is True:
            options = request.get("stream_options")
            if options is None or (isinstance(options, dict) and options.get("include_usage") is not True):
                request["stream_options"] = {**(options or {}), "include_usage": True}
                self._hide = changed = True
        if changed:
            body = json.dumps(request, separators=(",", ":")).encode()
        self._asked = len(body)
        self.exchange.replace_body(body)
        self.exchange.deadline = self.world.loop.time() + self.world.settings.model_timeout_s
        self.world.counts.model_calls += 1
        self.exchange.connect(self._address)

    def _resolve(self, asked: object) -> tuple[str, wire_feed.ModelEntry]:
        table = self.world.table
        if asked is not None and not isinstance(asked, str):
            raise errors.Invalid("'model' must be a string", code="model.invalid")
        for name in (asked, table.default_model):
            if name is not None and (entry := wire_feed.resolve_model(table.models, name)) is not None:
                return name, entry
        known = ", ".join(sorted(table.models)[:20])
        raise errors.NotFound(
            f"there is no model {str(asked or 'default')[:80]!r} here",
            code="model.not_found",
            cause=f"the models are {known}" if known else "this host has no model",
            next_step="choose one of GET /v1/models, or run `nexus models pull`, or give control a provider's key",
        )

    def request_head(self, framing: bytes) -> bytes:
        head, entry = self.call.head, self._entry
        hop = http1.connection_names(head.named.get(b"connection"))
        added = {
            name.lower().encode("latin-1"): text.encode("latin-1") for name, text in (entry["headers"] if entry else {}).items()
        }
        lines = [b"POST %b HTTP/1.1\r\nHost: %b\r\n" % (self._target, self._host.encode("ascii"))]
        for name, value in head.headers:
            if name in _PRIVATE or name in hop or name in added or name[:5] == b"nexus" or name[:11] == b"x-forwarded":
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        lines.extend(b"%b: %b\r\n" % header for header in added.items())
        lines.append(b"accept-encoding: identity\r\n")
        lines.append(framing)
        lines.append(b"\r\n")
        return b"".join(lines)

    def unreachable(self, error: Exception) -> None:
        provider = self._entry["provider"] if self._entry else ""
        raise errors.Unavailable(
            f"the provider {provider} of model {self._model!r} does not answer",
            code="model.unreachable",
            cause=type(error).__name__,
            retry_after_s=1,
            next_step="see `nexus doctor`",
        ) from error

    def answer_headers(self, status: int, headers: list[http1.Header]) -> list[http1.Header]:
        if status in (401, 403):
            self._refused_status = status
            raise BadAnswer(f"the provider refused the host's credential with {status}")
        kept = [header for header in headers if header[0] not in _PROVIDERS_OWN]
        named = dict(headers)
        if status < 300 and named.get(b"content-encoding", b"identity") == b"identity":
            if named.get(b"content-type", b"").startswith(b"text/event-stream"):
                self._counter = usage.StreamCounter(hide_usage=self._hide)
                self.rewrites = True
            else:
                self.watches = True
        if self.call.origin is not None:
            kept.extend(answers.cors(self.call))
        return kept

    def watch(self, part: bytes) -> None:
        self._copied += len(part)
        if self._copied <= _LONGEST_COUNTED:
            self._copy += part
        else:
            self._copy.clear()

    def see(self, part: bytes) -> bytes:
        """A stream shows life with every part, so its deadline moves on; what it used is known before its end is passed on."""
        counter = self._counter
        if counter is None:
            return part
        self.exchange.deadline = self.world.loop.time() + self.world.settings.model_timeout_s
        passed = counter.feed(part)
        if counter.tokens is not None:
            self._tell(counter.tokens, estimated=False)
        return passed

    def last(self) -> bytes:
        return self._counter.flush() if self._counter is not None else b""

    def _tell(self, tokens: usage.Tokens, *, estimated: bool) -> None:
        more = usage.Tokens(tokens.input - self._told.input, tokens.output - self._told.output)
        self._told = tokens
        if self._token is not None and (more.input or more.output):
            self.world.ledger.add(self._token["instance_id"], self._run_id, tokens=more, calls=0, estimated=estimated)

    def expired(self) -> None:
        if self._entry is None:
            raise errors.Exhausted("the body did not come in time", code="request.timeout", next_step="send the request again")
        raise errors.Exhausted(
            f"the model {self._model!r} did not answer within {self.world.settings.model_timeout_s:g} s",
            code="model.timeout",
            retry_after_s=1,
            next_step="try again, or use a smaller model",
        )

    def broken(self, reason: str, *, lost: bool) -> errors.NexusError:
        provider = self._entry["provider"] if self._entry else ""
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
        entry = self._entry
        if entry is None:
            return
        tokens, estimated = self._count(status)
        self._tell(tokens, estimated=estimated)
        token = self._token
        if token is not None:
            self.world.ledger.add(token["instance_id"], self._run_id, tokens=usage.Tokens(), calls=1, estimated=estimated)
        record = wire_runs.ModelRecord(
            kind="model",
            run_id=self._run_id,
            tenant=self.call.tenant,
            agent=token["agent"] if token else "",
            environment=token["environment"] if token else "",
            instance_id=token["instance_id"] if token else "",
            model=self._model,
            provider=entry["provider"],
            input_tokens=tokens.input,
            output_tokens=tokens.output,
            status=status,
            started_at=self.call.started,
            duration_s=round(self.world.loop.time() - self._began, 6),
        )
        if estimated:
            record["estimated"] = True
        self.world.outbox.add(json.dumps(record, separators=(",", ":")).encode())

    def _count(self, status: int) -> tuple[usage.Tokens, bool]:
        """What this call used, and whether that is a guess: a provider's own word first."""
        if self._counter is not None:
            if self._counter.tokens is not None and self._counter.tokens.output:
                return self._counter.tokens, False
            given = self._counter.tokens.input if self._counter.tokens is not None else usage.estimate(self._asked)
            return usage.Tokens(given, self._counter.pieces), True
        if not 200 <= status < 300 or self.call.head.path.endswith(b"/count_tokens"):
            return usage.Tokens(), False
        try:
            found = usage.parse_usage(json.loads(self._copy)) if self._copy else None
        except (ValueError, RecursionError):
            found = None
        if found is not None:
            return found, False
        made = 0 if self.call.head.path == b"/v1/embeddings" else usage.estimate(self._copied)
        return usage.Tokens(usage.estimate(self._asked), made), True


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


def parse_body(body: bytes) -> dict[str, Any]:
    """The JSON object of a model call, or `Invalid` saying what is wrong with it."""
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise errors.Invalid("the body is nested too deeply", code="body.too_deep") from None
    except ValueError as error:
        raise errors.Invalid(
            "the body is not JSON", code="body.invalid_json", cause=str(error)[:200], next_step="send a JSON object"
        ) from None
    if not isinstance(value, dict):
        raise errors.Invalid("the body is not a JSON object", code="body.not_an_object", next_step="send {...}")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


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
