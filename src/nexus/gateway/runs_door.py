"""A run at the gateway: finds its instance, sends the body on untouched, cleans the answer, keeps and replays it where that is
wanted (`Idempotency-Key`, a caching deployment), and records how it ended."""

import json
import re

from nexus.core import errors
from nexus.gateway import answers, balance, coding, endings, ends, http1, kept, lines, routes, sessions, stages, waiting, waking
from nexus.gateway.call import Call
from nexus.gateway.exchange import Exchange
from nexus.gateway.handler import Handler, Phase
from nexus.kit import guard
from nexus.wire import runs as wire_runs

_PRIVATE = http1.HOP | {
    b"host", b"authorization", b"x-api-key", b"cookie", b"forwarded", b"via", b"x-real-ip", b"x-original-url", b"x-rewrite-url",
    b"x-http-method-override", b"x-http-method", b"x-method-override", b"traceparent", b"origin", b"referer",
    b"accept-encoding", b"content-encoding", b"idempotency-key",
}  # fmt: skip
_UNTRUSTED_ANSWER = http1.HOP | {
    b"set-cookie", b"set-cookie2", b"server", b"via", b"alt-svc", b"strict-transport-security", b"clear-site-data", b"nel",
    b"report-to", b"reporting-endpoints", b"service-worker-allowed", b"public-key-pins", b"www-authenticate", b"refresh",
    b"content-security-policy", b"x-content-type-options", b"x-powered-by", b"location",
}  # fmt: skip
_IDEMPOTENCY_KEY = re.compile(rb"[!-~]{1,255}")
_NOT_TO_KEEP = re.compile(rb"no-store|no-cache|private")
_MOST_ATTEMPTS = 2
_MOST_ASKS = 2


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
        self._ending = endings.Ending()
        self._latency_s = 0.0
        self._scans = False
        self._place: sessions.Place | None = None
        self._asks = 0
        caller = self.call.caller
        self.waits_as = self.call.tenant if caller is None or self.call.trusted else caller.principal.id
        self._key = self._idempotency_key(deployment.id)
        self._cache_key: bytes | None = None
        self._caches = self._may_cache()
        self._owns_key = self._replayed = False
        self._headers: tuple[http1.Header, ...] = ()
        self._copy: bytearray | None = None
        self.compression = deployment.options.compression
        self.collects = self._key is not None or self._caches

    def expander(self) -> coding.Expander | None:
        return coding.decide_expander(self.call.head, self.max_body_bytes)

    def _idempotency_key(self, deployment_id: str) -> tuple[str, str, bytes] | None:
        given = self.call.head.named.get(b"idempotency-key")
        if given is None or self.call.trusted:
            return None
        if _IDEMPOTENCY_KEY.fullmatch(given) is None:
            raise errors.Invalid(
                "Idempotency-Key is 1 to 255 visible ASCII characters",
                code="header.invalid",
                next_step="send a UUID, the same one with every repetition",
            )
        return self.call.tenant, deployment_id, given

    def _may_cache(self) -> bool:
        call, deployment = self.call, self.call.deployment
        if deployment is None or deployment.options.cache is None or self._stream or call.session_given or call.trusted:
            return False
        return _NOT_TO_KEEP.search(call.head.named.get(b"cache-control", b"").lower()) is None

    def resume(self, *, sent_at: float, place: sessions.Place | None) -> None:
        """Go on with what the short way (`express`) began: an instance is held and the request was sent."""
        deployment = self.call.deployment
        self._began = self._sent_at = sent_at
        self._holding, self._place = True, place
        self._seconds = deployment.timeout_s if deployment is not None else 0.0

    def open(self) -> None:
        if self.collects and self._reuse():
            return
        if self.call.instance is None:
            self._wait()
        else:
            self._go()

    def _reuse(self) -> bool:
        """With the whole body at hand: answer from what is kept; else choose the instance again, for time has passed."""
        call, world = self.call, self.world
        body = b"".join(self.exchange.parts)
        self.exchange.parts[:] = [body] if body else []
        now = world.loop.time()
        if self._key is not None:
            accept, version = b"stream" if self._stream else b"", (call.version or "").encode()
            answer = world.keys.begin(self._key, kept.digest((body, accept, version) if version else (body, accept)), now)
            if answer is not None:
                self._replayed = True
                self._replay(answer, [*answer.headers, (b"Idempotency-Replayed", b"true")])
                return True
            self._owns_key = True
        if not stages.refresh_deployment(call, world):
            raise errors.NotFound("the deployment was deleted meanwhile", code="agent.not_found")
        stages.choose_instance(call, world)
        deployment, cache = call.deployment, call.deployment.options.cache if call.deployment is not None else None
        if not self._caches or deployment is None or cache is None or call.instance is None:
            return False
        named = call.head.named
        parts = (call.tenant.encode(), deployment.id.encode(), call.instance.version.encode(), named.get(b"content-type", b""))
        self._cache_key = kept.digest(
            (*parts, named.get(b"accept", b""), *(named.get(name, b"") for name in cache.headers), body)
        )
        found = deployment.cache.find(self._cache_key, cache.ttl_s, now)
        if found is None:
            return False
        age = int(now - found.at)
        told = [(b"Age", b"%d" % age), (b"Cache-Status", b"nexus; hit; ttl=%d" % max(0, int(cache.ttl_s) - age))]
        headers = [header for header in found.headers if header[0] not in (b"Nexus-Run-Id", b"Nexus-Session-Id")]
        self._replay(found, headers + told + self._ids())
        return True

    def _ids(self) -> list[http1.Header]:
        call = self.call
        return [
            (b"Nexus-Run-Id", call.run_id.encode("latin-1")), (b"Nexus-Session-Id", (call.session_id or "").encode("latin-1"))
        ]  # fmt: skip

    def _replay(self, answer: kept.Answer, headers: list[http1.Header]) -> None:
        call = self.call
        self.exchange.reply(answer.status, headers + answers.quota_headers(call) + answers.cors(call), answer.body)

    def _wait(self) -> None:
        deployment = self.call.deployment
        if deployment is None:
            raise errors.Internal("a run waits for no deployment")
        self.call.tried.clear()
        self.exchange.deadline = self._began + deployment.wait_s
        now = self.world.loop.time()
        if deployment.wait_s <= 0 or (self.call.trusted and waiting.is_busy(deployment, self.call, now)):
            raise waiting.refusal(self.call, now)  # a task waits in its queue, where it is counted, not here
        self.world.waiting.join(self, deployment)
        self.exchange.phase = Phase.WAITING
        if self._stream and not self.call.trusted and self.call.awaited is not None:
            waking.watch(self.exchange)

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
        deployment = self.call.deployment
        if deployment is not None and deployment.options.isolated and not self._find_place(deployment):
            return
        instance = self.call.instance
        if instance is None or deployment is None:
            return
        instance.active += 1
        self._holding = True
        self._sent_at = self.world.loop.time()
        threshold = deployment.options.threshold
        if threshold is not None:
            instance.circuit.note_start(threshold)
            if self.call.version is None:  # a named version's runs say nothing about what others get
                deployment.circuit.note_start(threshold)
        seconds = deployment.timeout_s
        given = self.call.head.named.get(b"nexus-deadline") if self.call.trusted else None
        if given is not None and given.isdigit() and len(given) < 16:
            seconds = max(0.0, min(seconds, int(given) / 1000 - self.world.clock()))
        self._seconds = seconds
        self.exchange.deadline = self._sent_at + seconds + self.world.settings.deadline_grace_s
        self.exchange.connect(self._place.address if self._place is not None else instance.address)

    def _find_place(self, deployment: routes.Deployment) -> bool:
        """Whether it is known where this session's own worker listens; else the supervisor is asked, and `_go` called again."""
        if self._place is None:
            if self._stream and not self.call.trusted and not self._asks:
                waking.watch(self.exchange)
            key = (deployment.id, self.call.session_id or "")
            known = self.world.places.find(key)
            if known is None or not self._settle(deployment, known):
                self.world.places.forget(key)
                self._asks += 1
                self.exchange.phase = Phase.DIALING
                if self.call.instance is not None:
                    self.call.instance.active += 1  # its room is this run's while the place is asked for
                guard.spawn(self._ask_place(deployment, key), name=f"place {self.call.run_id}", owner=self.world.tasks)
                return False
        return True

    def _settle(self, deployment: routes.Deployment, place: sessions.Place) -> bool:
        """The session lives there, if that instance is the one that was chosen, or one of the deployment's still."""
        chosen = self.call.instance
        home = chosen if chosen is not None and chosen.id == place.instance_id else deployment.by_id.get(place.instance_id)
        if home is None:
            return False
        self._place, self.call.instance = place, home
        return True

    async def _ask_place(self, deployment: routes.Deployment, key: sessions.Key) -> None:
        held = self.call.instance
        wanted = sessions.plan_order(deployment, held, self.call.tried)
        problem: errors.NexusError | None = None
        try:
            homes = sessions.find_homes(deployment, wanted) if self.call.version is None else ()
            place = await self.world.places.ask(self.world.settings.home.supervisor_socket, key, wanted, homes)
        except errors.NexusError as error:
            problem = error
        finally:
            if held is not None:
                held.active -= 1
        if self.exchange.phase is not Phase.DIALING:
            return  # the client left meanwhile
        try:
            if problem is not None:
                raise problem
            if not self._settle(deployment, place):
                raise sessions.moved(deployment.agent)
            self._go()
        except errors.NexusError as error:
            self.exchange.fail(error)

    def _give_back(self, *, failed: bool | None) -> None:
        """Let go of the instance. `failed` None: how the run went says nothing about the agent."""
        instance, deployment = self.call.instance, self.call.deployment
        if self._holding and instance is not None:
            self._holding = False
            instance.active -= 1
            threshold = deployment.options.threshold if deployment is not None else None
            if deployment is not None and threshold is not None:
                now = self.world.loop.time()
                instance.circuit.note_end(threshold, failed=failed, now=now)
                if self.call.version is None:
                    deployment.circuit.note_end(threshold, failed=failed, now=now)
            if self.world.waiting.has(self._deployment_id):
                self.world.loop.call_soon(self.world.waiting.look_again, self._deployment_id)

    def unreachable(self, error: Exception) -> None:
        """That instance refuses connections: leave it out for a moment and take another; nothing was sent to it."""
        call, instance, place = self.call, self.call.instance, self._place
        self._give_back(failed=None)
        if place is not None:
            self.world.places.forget((self._deployment_id, call.session_id or ""))
            self._place = None
        if place is not None and self._asks < _MOST_ASKS and stages.refresh_deployment(call, self.world):
            self._go()  # its worker has ended since: the supervisor makes another one
            return
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

    def repeat(self) -> bool:
        """The connection broke before any answer. A run under an Idempotency-Key is declared safe to repeat: once, elsewhere."""
        call, instance = self.call, self.call.instance
        if not self._owns_key or instance is None or int(call.attempt) >= _MOST_ATTEMPTS or self.world.draining:
            return False
        self._give_back(failed=True)
        self._place = None
        call.tried.add(instance.id)
        call.attempt = str(int(call.attempt) + 1)
        if not stages.refresh_deployment(call, self.world):
            return False
        stages.choose_instance(call, self.world)
        if call.instance is not None:
            self._go()
        else:
            self._wait()
        return True

    def request_head(self, framing: bytes) -> bytes:
        call, head = self.call, self.call.head
        hop = http1.connection_names(head.named.get(b"connection"))
        out = [b"POST /run HTTP/1.1\r\nHost: agent\r\n"]
        for name, value in head.headers:
            if name in _PRIVATE or name in hop or name[:5] == b"nexus" or name[:11] == b"x-forwarded":
                continue
            if b"_" in name:  # CGI and WSGI read it like a hyphen: it would pass for one of the names above
                continue
            if self._stream and name == b"accept":
                continue
            out.append(b"%b: %b\r\n" % (name, value))
        deadline = int((self.world.clock() + self._seconds) * 1000)
        told = f"Nexus-Run-Id: {call.run_id}\r\nNexus-Session-Id: {call.session_id}\r\nNexus-Deadline: {deadline}\r\n"
        out.append(told.encode("latin-1"))
        out.append(render_caller(call))
        if (user := head.named.get(b"nexus-user-id")) is not None:
            out.append(b"Nexus-User-Id: %b\r\n" % user)
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
                self._ending.read_header(name, value)
                continue
            if name == b"content-type" and value.startswith((b"text/event-stream", b"application/problem+json")):
                self._scans = self.watches = True
            out.append((name, value))
        instance = call.instance
        out.append((b"X-Content-Type-Options", b"nosniff"))
        out.append((b"Content-Security-Policy", b"sandbox"))
        out.append((b"Nexus-Version", instance.version.encode("latin-1", "replace") if instance is not None else b""))
        out.extend(self._ids())
        if self._owns_key or self._cache_key is not None:
            self._headers, self._copy, self.watches = tuple(out), bytearray(), True
            if self._cache_key is not None:
                out.append((b"Cache-Status", b"nexus; fwd=miss"))
        out.extend(answers.quota_headers(call))
        out.extend(answers.cors(call))
        return out

    def watch(self, part: bytes) -> None:
        if self._copy is not None:
            self._copy = self._copy + part if len(self._copy) + len(part) <= kept.LONGEST_KEPT else None
        if not self._scans:
            return
        if self.exchange.status >= 400:
            self._ending.read_problem(part)
        else:
            self._ending.read_events(part)

    def expired(self) -> None:
        deployment = self.call.deployment
        if self.exchange.phase is Phase.WAITING:
            raise waiting.refusal(self.call, self.world.loop.time())
        raise errors.Exhausted(
            f"the run took longer than {self._seconds:g} s",
            code="run.timeout",
            next_step="raise hosting.timeout in config.yaml, or submit it as a task",
            extra={"timeout_s": deployment.timeout_s if deployment is not None else self._seconds},
        )

    def ask_why(self, reason: str) -> bool:
        instance = self.call.instance
        if instance is None:
            return False
        guard.spawn(self._explain(reason, instance.id), name=f"why {self.call.run_id}", owner=self.world.tasks)
        return True

    async def _explain(self, reason: str, instance_id: str) -> None:
        since = self.world.clock() - (self.world.loop.time() - self._sent_at)
        own = self.call.session_id if self._place is not None else None
        told = await ends.fetch_end(self.world.settings.home.supervisor_socket, instance_id, since=since, session_id=own)
        self.exchange.fail(told or self.broken(reason, lost=True))

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
        failed = status >= 500 or self._ending.outcome == "failed"
        if self._holding and instance is not None and outcome != "cancelled":
            balance.note_answer(instance, latency_s=self._latency_s, failed=status >= 500)
        self._give_back(failed=None if outcome == "cancelled" or self._ending.outcome == "cancelled" else failed)
        self._keep(whole=not code, status=status)
        if self._replayed:
            return
        self.world.counts.runs += 1
        code = code or self._ending.code
        final: wire_runs.Outcome = outcome  # type: ignore[assignment]
        if outcome == "completed" and self._ending.outcome:
            final = "cancelled" if self._ending.outcome == "cancelled" else "failed"
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
        if self._ending.cpu_s is not None:
            record["cpu_s"] = self._ending.cpu_s
        self.world.outbox.add(json.dumps(record, separators=(",", ":")).encode())

    def _keep(self, *, whole: bool, status: int) -> None:
        """What becomes of the answer: kept under its key and in the cache, or the key is free again."""
        answer = None
        if self._copy is not None and whole:
            answer = kept.Answer(status, self._headers, bytes(self._copy), self.world.loop.time())
        if self._owns_key and self._key is not None:
            if whole and status < 500:
                self.world.keys.finish(self._key, answer)
            else:
                self.world.keys.release(self._key)
        deployment = self.call.deployment
        cache = deployment.options.cache if deployment is not None else None
        if self._cache_key is None or answer is None or status != 200 or self._replayed or deployment is None or cache is None:
            return
        named = dict(self._headers)
        if _NOT_TO_KEEP.search(named.get(b"cache-control", b"").lower()) is None and b"vary" not in named and not self._scans:
            deployment.cache.put(self._cache_key, answer, cache)
