"""The short way of a plain run: the whole request in one read, one instance with a warm connection, the whole answer in one read.

It takes the same decisions as the long way (`stages`), keeps the same rules (`runs_door`) and leaves the same record, at a third
of its cost. A stream begins here and goes on as an exchange; so does whatever turns out to be out of the ordinary (`unfold`).
"""

import time
from typing import TYPE_CHECKING, NamedTuple

from nexus.core import errors
from nexus.gateway import balance, call, http1, limits, lines, mint, routes, runs_door, stages
from nexus.gateway.exchange import Exchange
from nexus.gateway.world import World

if TYPE_CHECKING:
    from nexus.gateway.server import ClientConnection
    from nexus.gateway.upstream import Upstream

_REMEMBERED = 4096
_COMPRESSED_FROM = 1024
_NO_HEADERS: list[http1.Header] = []


class Admission(NamedTuple):
    """What the stages decided for a request line, Host, credential and environment under one route table.

    `told` are the lines about the caller for the worker, `record` the fields about it for the run's record (both ready-made).
    """

    caller: routes.Caller
    tenant: str
    deployment: routes.Deployment
    match: call.Match
    expires_at: float
    limits: tuple[limits.Limit, ...]
    told: bytes
    record: bytes


class Express:
    """One run on the short way: just enough to finish it, or to make an `Exchange` of it."""

    __slots__ = (
        "_admission", "_body", "_data", "_fields", "_given", "_instance", "_quota", "_run_id", "_session_id", "_started",
        "_streams", "_trace", "_upstream", "client", "deadline", "sent_at", "world",
    )  # fmt: skip

    client: "ClientConnection"
    world: World
    deadline: float
    sent_at: float
    _admission: Admission
    _data: bytes
    _given: bool
    _instance: routes.Instance
    _quota: limits.Verdict | None
    _run_id: bytes
    _session_id: bytes
    _started: float
    _streams: bool
    _trace: bytes
    _upstream: "Upstream"
    _fields: list[bytes | None]
    _body: bytes

    def finish(self, data: bytes) -> bool:
        """The answer, when `data` is all of it: sends it on, gives back, records. False leaves everything as it is."""
        world = self.world
        answer = None if self._streams else world.reader.read_answer(data)
        if answer is None:
            return False
        status, onward, body = answer
        client = self.client
        if (len(body) >= _COMPRESSED_FROM and self._fields[lines.CODING] is not None) or world.draining:
            return False
        instance = self._instance
        quota = self._quota
        head = b"Nexus-Run-Id: %b\r\nNexus-Session-Id: %b\r\n%bContent-Length: %d\r\n\r\n" % (
            self._run_id, self._session_id, instance.told, len(body)
        )  # fmt: skip
        client.express = None
        client.transport.write(
            b"".join((http1.status_line(status), *onward, head, body))
            if quota is None
            else b"".join((http1.status_line(status), *onward, limits.render(*quota), head, body))
        )
        now = world.loop.time()
        client.rest(now)
        ended = time.monotonic()
        world.counts.in_flight -= 1
        world.counts.runs += 1
        self._upstream.rest(now)
        instance.active -= 1
        deployment = self._admission.deployment
        threshold = deployment.options.threshold
        if threshold is not None:
            instance.circuit.note_end(threshold, failed=status >= 500, now=now)
            deployment.circuit.note_end(threshold, failed=status >= 500, now=now)
        balance.note_answer(instance, latency_s=ended - self.sent_at, failed=status >= 500)
        if world.waiting.has(deployment.id):
            world.loop.call_soon(world.waiting.look_again, deployment.id)
        world.outbox.add(
            b'{"kind":"run","id":"%b",%b,"version":%b,"instance_id":"%b","session_id":"%b","mode":"sync","outcome":"%b",'
            b'"status":%d,"started_at":%de-6,"duration_s":%de-6,"bytes_in":%d,"bytes_out":%d,"trace_id":"%b"}'
            % (
                self._run_id, self._admission.record, instance.version_json, instance.id_bytes, self._session_id,
                b"completed" if status < 400 else b"failed", status, self._started * 1e6, (ended - self.sent_at) * 1e6,
                len(self._body),
                len(body), self._trace[3:35],
            )
        )  # fmt: skip
        return True

    def abandon(self) -> None:
        """The client's side gives the short way up."""
        self._upstream.express = None
        self.unfold()

    def unfold(self) -> Exchange:
        """This run as an `Exchange` that is relaying, in the connection's and the upstream's hands."""
        client, world, admission = self.client, self.world, self._admission
        client.express = None
        request = call.Call(
            head=_long_head(self._data),
            inside=False,
            peer=client.peer,
            started=self._started,
            match=admission.match,
            caller=admission.caller,
            tenant=admission.tenant,
            deployment=admission.deployment,
            instance=self._instance,
            run_id=self._run_id.decode("ascii"),
            session_id=self._session_id.decode("ascii"),
            session_given=self._given,
            traceparent=self._trace,
            trace_id=self._trace[3:35].decode("ascii"),
            quota=self._quota,
        )
        exchange = Exchange(client, request, world)
        handler = runs_door.RunHandler(exchange)
        handler.resume(sent_at=self.sent_at)
        exchange.resume(handler, self._upstream, self._body, deadline=self.deadline)
        client.current = exchange
        return exchange


def begin(client: "ClientConnection", data: bytes) -> bool:
    """Start a run on the short way if `data` is one that can take it; False, and nothing done, if not."""
    world = client.world
    whole = world.reader.read_request(data)
    if whole is None or world.draining:
        return False
    first, fields, onward, body = whole
    key = (first, fields[1], fields[3], fields[4], fields[5])
    admission = world.admitted.get(key) or _admit(key, data, world)
    if admission is None or len(body) > world.table.max_body_bytes:
        return False
    started = world.clock()
    accept, session = fields[lines.ACCEPT], fields[lines.SESSION]
    if admission.expires_at <= started or session in (b".", b".."):
        return False
    told = admission.told
    streams = admission.match.stream or (accept is not None and b"text/event-stream" in accept)
    if streams:
        onward = [line for line in onward if line[:7] != b"accept:"]
        told += b"Accept: text/event-stream\r\n"
    now = world.loop.time()
    reserved = _reserve(admission, session, world, now)
    if reserved is None:
        return False
    run = Express()
    run.client, run.world, run._admission, run._fields, run._body, run._data = client, world, admission, fields, body, data
    run._instance, run._upstream, run._quota = instance, upstream, _ = reserved
    trace = fields[lines.TRACE]
    if trace is None or mint.parse_traceparent(trace) is None:
        trace = world.minter.traceparent_bytes()
    run._trace, run._started, run._given, run._streams = trace, started, session is not None, streams
    run._run_id = world.minter.run_id_bytes()
    run._session_id = world.minter.session_id(instance.tag).encode("ascii") if session is None else session
    run.sent_at = time.monotonic()
    seconds = admission.deployment.timeout_s
    run.deadline = now + seconds + world.settings.deadline_grace_s
    counts = world.counts
    counts.requests += 1
    counts.in_flight += 1
    instance.active += 1
    client.express = run
    upstream.carry(run)
    upstream.transport.write(
        b"".join(
            (
                b"POST /run HTTP/1.1\r\nHost: agent\r\n", *onward, told,
                b"Nexus-Run-Id: %b\r\nNexus-Session-Id: %b\r\nNexus-Deadline: %d\r\ntraceparent: %b\r\nContent-Length: %d\r\n\r\n"
                % (run._run_id, run._session_id, (started + seconds) * 1000, trace, len(body)),
                body,
            )
        )
    )  # fmt: skip
    return True


def _reserve(
    admission: Admission, session: bytes | None, world: World, now: float
) -> "tuple[routes.Instance, Upstream, limits.Verdict | None] | None":
    """Instance, a warm connection to it and what the limits leave; None, and nothing taken, when one of them is not to be had."""
    deployment = admission.deployment
    threshold = deployment.options.threshold
    if world.waiting.has(deployment.id) or (threshold is not None and not deployment.circuit.may_pass(threshold, now)):
        return None
    session_id = None if session is None else session.decode("ascii")
    version = None
    if len(deployment.versions) > 1:
        if session_id is None:
            return None
        version = balance.decide_version(deployment, session_id=session_id, user="", pins=world.pins, draw=world.draw)
    turn = deployment.turn.at
    instance = balance.decide_instance(deployment, session_id=session_id, now=now, version=version)
    upstream = None if instance is None else world.pool.take(instance.address, now)
    if instance is None or upstream is None:
        deployment.turn.at = turn
        return None
    quota = None
    if admission.limits:
        quota = world.rates.take_all(admission.limits, now)
        if quota[1] < 0:
            world.pool.give_back(upstream)
            return None
    if session_id is not None and session_id not in deployment.pinned:
        balance.note_session(deployment, session_id, instance, world.pins, world.clock())
    if threshold is not None:
        instance.circuit.note_start(threshold)
        deployment.circuit.note_start(threshold)
    return instance, upstream, quota


def _admit(key: tuple[bytes | None, ...], data: bytes, world: World) -> Admission | None:
    """Ask the stages whose answer can be remembered; None when one of them objects (the long way will say why)."""
    first = key[0]
    if first is None or not lines.is_plain_request_line(first):
        return None
    try:
        request = call.Call(head=_long_head(data), inside=False, peer="", started=world.clock())
    except errors.NexusError:
        return None
    if not stages.admit(request, world):
        return None
    caller, match, deployment = request.caller, request.match, request.deployment
    if (
        caller is None
        or match is None
        or deployment is None
        or match.door is not call.Door.RUN
        or not deployment.plain
        or caller.service
    ):
        return None
    admission = Admission(
        caller=caller,
        tenant=request.tenant,
        deployment=deployment,
        match=match,
        expires_at=float("inf") if caller.expires_at is None else caller.expires_at,
        limits=stages.limits_of_caller(caller, request.tenant, world) + stages.limits_of_deployment(deployment),
        told=runs_door.render_caller(request),
        record=runs_door.render_record_start(request),
    )
    if len(world.admitted) >= _REMEMBERED:
        world.admitted.clear()
    world.admitted[key] = admission
    return admission


def _long_head(data: bytes) -> http1.RequestHead:
    """The head of a request that `lines` has read, in the long way's form."""
    first, *rest = data[: data.index(b"\r\n\r\n")].split(b"\r\n")
    method, target, _ = first.split(b" ")
    headers = [(name.lower(), value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in rest)]
    return http1.parse_request(method=method, target=target, headers=headers, version="1.1", keep_alive=True)
