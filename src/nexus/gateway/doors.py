"""What each kind of request does once the stages have let it through: a run, health, a run's usage, control, preflight."""

import json
import re
import time
from urllib.parse import unquote

from nexus.core import errors
from nexus.gateway import answers, balance, http1, lines, models_door, stages, waiting
from nexus.gateway.call import Call, Door
from nexus.gateway.exchange import Exchange, Handler, Phase
from nexus.wire import runs as wire_runs

_PRIVATE = http1.HOP | {
    b"host", b"authorization", b"x-api-key", b"cookie", b"forwarded", b"via", b"x-real-ip", b"x-original-url", b"x-rewrite-url",
    b"x-http-method-override", b"x-http-method", b"x-method-override", b"traceparent", b"origin", b"referer",
}  # fmt: skip
_UNTRUSTED_ANSWER = http1.HOP | {
    b"set-cookie", b"set-cookie2", b"server", b"via", b"alt-svc", b"strict-transport-security", b"clear-site-data", b"nel",
    b"report-to", b"reporting-endpoints", b"service-worker-allowed", b"public-key-pins", b"www-authenticate", b"refresh",
    b"content-security-policy", b"x-content-type-options", b"x-powered-by", b"location",
}  # fmt: skip
_TERMINAL_EVENT = re.compile(rb"^event: run\.(failed|cancelled)\r?$", re.MULTILINE)
_EVENT_CODE = re.compile(rb'"code": ?"([a-z0-9_.]{1,80})"')
_CODE = re.compile(rb"[a-z0-9_.]{1,80}")
_LONGEST_PACKAGE = 512 * 1024 * 1024
_PACKAGE_PATH = re.compile(rb"/v1/agents/[a-z0-9-]{1,63}/versions")


def open_handler(exchange: Exchange) -> Handler:
    """The handler for a call that passed all stages."""
    match = exchange.call.match
    if match is None:
        raise errors.Internal("a request was opened without a door")
    return _HANDLERS[match.door](exchange)


def build_reader() -> lines.Reader:
    """The reader of the short way, which passes on what `RunHandler` passes on."""
    return lines.Reader(
        withheld=_PRIVATE,
        withheld_prefixes=(b"nexus", b"x-forwarded"),
        cleaned=_UNTRUSTED_ANSWER,
        cleaned_prefixes=(b"nexus", b"access-control"),
    )


def render_caller(call: Call) -> bytes:
    """The lines that tell a worker on whose behalf a run is."""
    principal = call.caller.principal.id if call.caller is not None else ""
    if call.trusted:
        principal = call.head.named.get(b"nexus-principal", principal.encode("latin-1")).decode("latin-1")
    return f"Nexus-Tenant: {call.tenant}\r\nNexus-Principal: {principal}\r\nNexus-Attempt: {call.attempt}\r\n".encode("latin-1")


def render_record_start(call: Call) -> bytes:
    """The fields of a run's record that are the same for all runs of a caller on a deployment, as JSON without its braces."""
    deployment = call.deployment
    value = {
        "tenant": call.tenant,
        "agent": deployment.agent if deployment is not None else "",
        "environment": deployment.environment if deployment is not None else "",
        "deployment_id": deployment.id if deployment is not None else "",
        "principal": call.caller.principal.id if call.caller is not None else "",
    }
    return json.dumps(value, separators=(",", ":")).encode()[1:-1]


class RunHandler(Handler):
    """A run: finds its instance, sends the body on untouched, records how it ended."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        named = self.call.head.named
        match, deployment = self.call.match, self.call.deployment
        if match is None or deployment is None:
            raise errors.Internal("a run was opened without a deployment")
        self._deployment_id = deployment.id
        self._stream = match.stream or b"text/event-stream" in named.get(b"accept", b"")
        self._mode: wire_runs.Mode = "task" if self.call.trusted else "stream" if self._stream else "sync"
        self._began = self.world.loop.time()
        self._sent_at = self._began
        self._holding = False
        self._outcome = ""
        self._code = ""
        self._latency_s = 0.0

    def resume(self, *, sent_at: float) -> None:
        """Go on with what the short way (`express`) began: an instance is held and the request was sent."""
        deployment = self.call.deployment
        self._began = self._sent_at = sent_at
        self._holding = True
        self._seconds = deployment.timeout_s if deployment is not None else 0.0

    def open(self) -> None:
        if self.call.instance is None:
            self._wait()
        else:
            self._go()

    def _wait(self) -> None:
        deployment = self.call.deployment
        if deployment is None:
            raise errors.Internal("a run waits for no deployment")
        self.call.tried.clear()
        self.exchange.deadline = self._began + deployment.wait_s
        if deployment.wait_s <= 0:
            raise self._refusal()
        self.world.waiting.join(self, deployment)
        self.exchange.phase = Phase.WAITING

    def try_again(self) -> bool:
        """Called while waiting: True when the run has left the line."""
        if self.exchange.phase is not Phase.WAITING:
            return True
        call = self.call
        if not stages.refresh_deployment(call, self.world):
            self.exchange.fail(errors.NotFound("the deployment was deleted while the run waited", code="agent.not_found"))
            return True
        stages.choose_instance(call, self.world)
        if call.instance is None:
            return False
        self._go()
        return True

    def _go(self) -> None:
        instance, deployment = self.call.instance, self.call.deployment
        if instance is None or deployment is None:
            return
        instance.active += 1
        self._holding = True
        self._sent_at = self.world.loop.time()
        seconds = deployment.timeout_s
        given = self.call.head.named.get(b"nexus-deadline") if self.call.trusted else None
        if given is not None and given.isdigit() and len(given) < 16:
            seconds = max(0.0, min(seconds, int(given) / 1000 - self.world.clock()))
        self._seconds = seconds
        self.exchange.deadline = self._sent_at + seconds + self.world.settings.deadline_grace_s
        self.exchange.connect(instance.address)

    def _give_back(self) -> None:
        instance = self.call.instance
        if self._holding and instance is not None:
            self._holding = False
            instance.active -= 1
            if self.world.waiting.has(self._deployment_id):
                self.world.loop.call_soon(self.world.waiting.look_again, self._deployment_id)

    def unreachable(self, error: Exception) -> None:
        """That instance refuses connections: leave it out for a moment and take another; nothing was sent to it."""
        call, instance = self.call, self.call.instance
        self._give_back()
        if instance is not None:
            balance.note_unreachable(instance, self.world.loop.time())
            call.tried.add(instance.id)
        if not stages.refresh_deployment(call, self.world):
            raise errors.NotFound("the deployment was deleted meanwhile", code="agent.not_found")
        stages.choose_instance(call, self.world)
        if call.instance is not None:
            self._go()
        else:
            self._wait()

    def request_head(self, framing: bytes) -> bytes:
        call, head = self.call, self.call.head
        hop = http1.connection_names(head.named.get(b"connection"))
        out = [b"POST /run HTTP/1.1\r\nHost: agent\r\n"]
        for name, value in head.headers:
            if name in _PRIVATE or name in hop or name[:5] == b"nexus" or name[:11] == b"x-forwarded":
                continue
            if self._stream and name == b"accept":
                continue
            out.append(b"%b: %b\r\n" % (name, value))
        deadline = int((self.world.clock() + self._seconds) * 1000)
        told = f"Nexus-Run-Id: {call.run_id}\r\nNexus-Session-Id: {call.session_id}\r\nNexus-Deadline: {deadline}\r\n"
        out.append(told.encode("latin-1"))
        out.append(render_caller(call))
        out.append(b"traceparent: %b\r\n" % call.traceparent)
        if self._stream:
            out.append(b"Accept: text/event-stream\r\n")
        out.append(framing)
        out.append(b"\r\n")
        return b"".join(out)

    def answer_headers(self, status: int, headers: list[http1.Header]) -> list[http1.Header]:
        """What an agent may tell a client: nothing for our own origin, nothing that we say ourselves."""
        self._latency_s = self.world.loop.time() - self._sent_at
        call, out = self.call, []
        hop: frozenset[bytes] = frozenset()
        for name, value in headers:
            if name == b"connection":
                hop = http1.connection_names(value)
        for name, value in headers:
            if name in _UNTRUSTED_ANSWER or name in hop or name[:14] == b"access-control":
                continue
            if name[:5] == b"nexus":
                if name == b"nexus-error-code" and _CODE.fullmatch(value):
                    self._code = value.decode("ascii")
                continue
            if name == b"content-type" and value.startswith((b"text/event-stream", b"application/problem+json")):
                self.watches = True
            out.append((name, value))
        instance = call.instance
        if call.quota is not None:
            out.extend(answers.quota_headers(call))
        out.append((b"X-Content-Type-Options", b"nosniff"))
        out.append((b"Content-Security-Policy", b"sandbox"))
        out.append((b"Nexus-Run-Id", call.run_id.encode("latin-1")))
        out.append((b"Nexus-Session-Id", (call.session_id or "").encode("latin-1")))
        out.append((b"Nexus-Version", instance.version.encode("latin-1", "replace") if instance is not None else b""))
        if call.origin is not None:
            out.extend(answers.cors(call))
        return out

    def watch(self, part: bytes) -> None:
        """A stream ends in one terminal event; one that is not `run.completed` is how this run ended. A problem says its code."""
        if self.exchange.status >= 400:
            code = None if self._code else _EVENT_CODE.search(part)
            self._code = code[1].decode("ascii") if code is not None else self._code
            return
        found = _TERMINAL_EVENT.search(part) if b"event: run." in part else None
        if found is not None:
            self._outcome = found[1].decode("ascii")
            code = _EVENT_CODE.search(part, found.end())
            self._code = code[1].decode("ascii") if code is not None else f"run.{self._outcome}"

    def expired(self) -> None:
        deployment = self.call.deployment
        if self.exchange.phase is Phase.WAITING:
            raise self._refusal()
        raise errors.Exhausted(
            f"the run took longer than {self._seconds:g} s",
            code="run.timeout",
            next_step="raise hosting.timeout in config.yaml, or submit it as a task",
            extra={"timeout_s": deployment.timeout_s if deployment is not None else self._seconds},
        )

    def _refusal(self) -> errors.NexusError:
        deployment = self.call.deployment
        if deployment is None:
            return errors.Internal("a run waits for no deployment")
        if not any(instance.out_until <= self.world.loop.time() for instance in deployment.instances):
            return waiting.not_ready(deployment)
        return errors.Exhausted(
            f"every instance of {deployment.agent} is busy",
            code="limit.concurrency",
            retry_after_s=1,
            next_step="try again after Retry-After, submit it as a task, or scale the agent out",
        )

    def broken(self, reason: str, *, lost: bool) -> errors.NexusError:
        name = self.call.match.name if self.call.match is not None else ""
        if lost:
            return errors.AgentFailed(
                f"the instance of {name} went away during the run",
                code="agent.connection_lost",
                cause=reason,
                next_step=f"see `nexus ai agent logs {name}`",
            )
        return errors.AgentFailed(
            f"the answer of {name} cannot be passed on",
            code="agent.bad_response",
            cause=reason,
            next_step=f"see `nexus ai agent logs {name}`",
        )

    def close(self, *, outcome: str, status: int, code: str) -> None:
        call, instance, deployment = self.call, self.call.instance, self.call.deployment
        if self.exchange.phase is Phase.DONE:
            self.world.waiting.leave(self, self._deployment_id)
        if self._holding and instance is not None and outcome != "cancelled":
            balance.note_answer(instance, latency_s=self._latency_s, failed=status >= 500)
        self._give_back()
        self.world.counts.runs += 1
        code = code or self._code
        final: wire_runs.Outcome = outcome  # type: ignore[assignment]
        if outcome == "completed" and self._outcome:
            final = "cancelled" if self._outcome == "cancelled" else "failed"
        record = wire_runs.RunRecord(
            kind="run",
            id=call.run_id,
            tenant=call.tenant,
            agent=deployment.agent if deployment is not None else "",
            environment=deployment.environment if deployment is not None else "",
            deployment_id=self._deployment_id,
            version=instance.version if instance is not None else "",
            instance_id=instance.id if instance is not None else "",
            session_id=call.session_id or "",
            principal=call.caller.principal.id if call.caller is not None else "",
            mode=self._mode,
            outcome=final,
            status=status,
            started_at=call.started,
            duration_s=round(self.world.loop.time() - self._began, 6),
            bytes_in=self.exchange.size,
            bytes_out=self.exchange.sent,
            trace_id=call.trace_id,
        )
        if code:
            record["code"] = code
        self.world.outbox.add(json.dumps(record, separators=(",", ":")).encode())


class ControlHandler(Handler):
    """Everything control answers, streamed both ways. Control may be restarting: connecting is tried for a few seconds."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self._address = f"unix:{self.world.settings.home.control_socket}"
        self._began = self.world.loop.time()
        if _PACKAGE_PATH.fullmatch(self.call.head.path):
            self.max_body_bytes = max(self.max_body_bytes, _LONGEST_PACKAGE)

    def open(self) -> None:
        self.body_moved()
        self.exchange.connect(self._address)

    def body_moved(self) -> None:
        self.exchange.deadline = self.world.loop.time() + self.world.settings.control_timeout_s

    def unreachable(self, error: Exception) -> None:
        if self.world.loop.time() - self._began < self.world.settings.control_patience_s and not self.world.draining:
            self.exchange.phase = Phase.WAITING
            self.world.loop.call_later(0.05, self._again)
            return
        raise errors.Unavailable(
            "control does not answer",
            code="control.unavailable",
            cause=type(error).__name__,
            retry_after_s=1,
            next_step="agents go on serving; see `nexus status`",
        ) from error

    def _again(self) -> None:
        if self.exchange.phase is Phase.WAITING:
            self.exchange.connect(self._address)

    def request_head(self, framing: bytes) -> bytes:
        call, head = self.call, self.call.head
        hop = http1.connection_names(head.named.get(b"connection"))
        out = [b"%b %b HTTP/1.1\r\n" % (head.method, head.target)]
        for name, value in head.headers:
            if name in http1.HOP or name in hop or name[:11] == b"x-forwarded" or name in (b"forwarded", b"x-real-ip"):
                continue
            if name in (b"nexus-tenant", b"nexus-principal", b"nexus-deadline", b"nexus-attempt") and not call.trusted:
                continue
            out.append(b"%b: %b\r\n" % (name, value))
        if b"host" not in head.named:
            out.append(b"Host: localhost\r\n")
        out.append(b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: http\r\n" % call.peer.encode("latin-1"))
        out.append(framing)
        out.append(b"\r\n")
        return b"".join(out)

    def answer_headers(self, status: int, headers: list[http1.Header]) -> list[http1.Header]:
        self.exchange.deadline = float("inf")
        hop: frozenset[bytes] = frozenset()
        for name, value in headers:
            if name == b"connection":
                hop = http1.connection_names(value)
        kept = [header for header in headers if header[0] not in http1.HOP and header[0] not in hop and header[0] != b"server"]
        if self.call.origin is not None:
            kept = [header for header in kept if header[0][:14] != b"access-control"]
            kept.extend(answers.cors(self.call))
        return kept

    def expired(self) -> None:
        raise errors.Unavailable(
            "control did not answer in time", code="control.timeout", retry_after_s=1, next_step="see `nexus status`"
        )

    def broken(self, reason: str, *, lost: bool) -> errors.NexusError:
        return errors.Unavailable(
            "control broke the connection off",
            code="control.unavailable",
            cause=reason,
            retry_after_s=1,
            next_step="look whether the change was made before you send it again",
        )


class HealthHandler(Handler):
    """How this process is; needs no key, so it names nobody's agents."""

    def open(self) -> None:
        world = self.world
        status = "draining" if world.draining else "ok" if world.table.loaded else "starting"
        value = {
            "status": status,
            "gateway": world.settings.number,
            "uptime_s": round(time.time() - world.started_at, 3),
            "routes_version": world.table.version,
            "connected": world.connected,
            "connections": len(world.connections),
            "in_flight": world.counts.in_flight - 1,
            "waiting": world.waiting.count,
            "upstreams": world.pool.open_count,
            "records_pending": world.outbox.pending,
            "records_dropped": world.outbox.dropped,
            "requests": world.counts.requests,
            "refused": world.counts.refused,
            "runs": world.counts.runs,
            "model_calls": world.counts.model_calls,
            "bad_upstream_answers": world.counts.bad_upstream,
        }
        headers, body = answers.render_json(value, self.call)
        self.exchange.reply(200 if status == "ok" else 503, headers, body)


class RunUsageHandler(Handler):
    """What a run's model calls used, as this process counted them, told to the instance that made them."""

    def open(self) -> None:
        caller, match = self.call.caller, self.call.match
        if caller is None or caller.token is None or match is None:
            raise errors.Forbidden("only an instance may ask what its runs used")
        value = self.world.ledger.of_run(caller.token["instance_id"], unquote(match.name))
        headers, body = answers.render_json(value, self.call)
        self.exchange.reply(200, headers, body)


class PreflightHandler(Handler):
    def open(self) -> None:
        self.exchange.reply(204, answers.preflight(self.call), b"")


_HANDLERS: dict[Door, type[Handler]] = {
    Door.RUN: RunHandler,
    Door.HEALTH: HealthHandler,
    Door.MODEL: models_door.ModelHandler,
    Door.MODEL_LIST: models_door.ModelListHandler,
    Door.RUN_USAGE: RunUsageHandler,
    Door.CONTROL: ControlHandler,
    Door.PREFLIGHT: PreflightHandler,
}
