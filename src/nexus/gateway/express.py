"""The short way of a plain run: the whole request in one read, one instance with a warm connection, the whole answer in one read.

It takes the same decisions as the long way (`stages`), keeps the same rules (`runs_door`) and leaves the same record, at a third
of its cost. A stream begins here and goes on as an exchange; so does whatever turns out to be out of the ordinary (`unfold`).
"""

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from nexus.core import errors
from nexus.gateway import balance, call, endings, http1, limits, lines, mint, routes, runs_door, sessions, shapes, stages
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


class Opening(NamedTuple):
    """What a request head means under one route table: who may run what, `head` (the lines for the worker that are the same for
    all requests with this head), whether it wants a stream, and whether its client reads compressed answers.

    `homes`: where sessions of the deployment live, when a session that is found there may go there without further questions
    than whether the instance has fewer than `room` runs.
    """

    admission: Admission
    head: bytes
    streams: bool
    codes: bool
    deployment: routes.Deployment
    homes: Mapping[str, routes.Instance]
    room: float
    limits: tuple[limits.Limit, ...]
    seconds: float


class Express:
    """One run on the short way: just enough to finish it, or to make an `Exchange` of it.

    `_ids` are its `Nexus-Run-Id` and `Nexus-Session-Id` lines, `_started` is seconds since the epoch.
    """

    __slots__ = (
        "_data", "_given", "_ids", "_instance", "_opening", "_place", "_quota", "_run_id", "_session_id", "_size", "_started",
        "_trace", "_upstream", "client", "deadline", "sent_at", "world",
    )  # fmt: skip

    client: "ClientConnection"
    world: World
    deadline: float
    sent_at: float
    _opening: Opening
    _data: bytes
    _given: bool
    _ids: bytes
    _instance: routes.Instance
    _place: sessions.Place | None
    _quota: limits.Verdict | None
    _run_id: bytes
    _session_id: bytes
    _size: int
    _started: float
    _trace: bytes
    _upstream: "Upstream"

    def finish(self, data: bytes) -> bool:
        """The answer, when `data` is all of it: sends it on, gives back, records. False leaves everything as it is."""
        world, instance = self.world, self._instance
        admission, _, streams, codes, deployment, _, _, _, _ = self._opening
        if streams or world.draining:
            return False
        shape = instance.shape
        if shape is None or (values := shape.fit(data)) is None:
            shape = _read_answer(data, instance, world)
            if shape is None or (values := shape.fit(data)) is None:
                return False
        used, body = values[2], values[3]
        size = len(body)
        if codes and size >= _COMPRESSED_FROM:
            return False
        status, head = shape.meaning
        client, quota, upstream = self.client, self._quota, self._upstream
        told = b"" if quota is None else limits.render(*quota)
        client.express = None
        client.transport.write(b"%b%b%bContent-Length: %d\r\n\r\n%b" % (head, told, self._ids, size, body))
        now = time.monotonic()
        took_s = now - self.sent_at
        client.deadline = now + world.settings.keep_alive_s
        upstream.express = None
        upstream.idle_since = now
        world.pool.keep(upstream)
        counts = world.counts
        counts.in_flight -= 1
        counts.runs += 1
        instance.active -= 1
        failed = status >= 500
        if (threshold := deployment.options.threshold) is not None:
            instance.circuit.note_end(threshold, failed=failed, now=now)
            deployment.circuit.note_end(threshold, failed=failed, now=now)
        balance.note_answer(instance, latency_s=took_s, failed=failed)
        if world.waiting:
            world.loop.call_soon(world.waiting.look_again, deployment.id)
        world.outbox.add(
            b'{"kind":"run","id":"%b",%b,"version":%b,"instance_id":"%b","session_id":"%b","mode":"sync","outcome":"%b",'
            b'"status":%d,"started_at":%de-6,"duration_s":%de-6,"bytes_in":%d,"bytes_out":%d,"trace_id":"%b"%b}'
            % (
                self._run_id, admission.record, instance.version_json, instance.id_bytes, self._session_id,
                b"completed" if status < 400 else b"failed", status, int(self._started * 1e6), int(took_s * 1e6),
                self._size, size, self._trace[3:35],
                b"" if used is None else b',"cpu_s":%.6f' % (endings.read_usage(used) or 0.0),
            )
        )  # fmt: skip
        return True

    def abandon(self) -> None:
        """The client's side gives the short way up."""
        self._upstream.express = None
        self.unfold()

    def unfold_in_time(self) -> None:
        """A stream will need an exchange: better made while the worker thinks than when its first event is here."""
        if self.client.express is self:
            self.abandon()

    def unfold(self) -> Exchange:
        """This run as an `Exchange` that is relaying, in the connection's and the upstream's hands."""
        client, world, admission = self.client, self.world, self._opening.admission
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
        handler.resume(sent_at=self.sent_at, place=self._place)
        body = self._data[len(self._data) - self._size :]
        exchange.resume(handler, self._upstream, body, deadline=self.deadline)
        client.current = exchange
        return exchange


def begin(client: "ClientConnection", data: bytes) -> bool:
    """Start a run on the short way if `data` is one that can take it; False, and nothing done, if not."""
    world = client.world
    if world.draining:
        return False
    shape, table = client.shape, world.table
    if shape is not None and shape.table is table and (values := shape.fit(data)) is not None:
        opening = shape.meaning
        session, trace, user, body = values
    elif (read := _read(client, data)) is not None:
        opening, session, trace, user, body = read
    else:
        return False
    admission, head, streams, _, deployment, homes, room, limiting, seconds = opening
    started, now, size = world.clock(), time.monotonic(), len(body)
    if size > table.max_body_bytes or admission.expires_at <= started:
        return False
    quota: limits.Verdict | None = None
    place: sessions.Place | None = None
    if (
        session is None
        or world.waiting
        or deployment.outage.until > now
        or (home := homes.get(session.decode("ascii"))) is None
        or home.active >= room
        or (upstream := world.pool.take(home.address, now)) is None
    ):
        reserved = _reserve(opening, session, world, now)
        if reserved is None:
            return False
        instance, upstream, quota, place = reserved
    else:
        instance = home
        if limiting:
            quota = world.rates.take_all(limiting, now)
            if quota[1] < 0:
                world.pool.give_back(upstream)
                return False
    minter = world.minter
    run_id = minter.run_id_bytes(started)
    run = Express()
    run._given = session is not None
    session = session or minter.session_id_bytes(instance.tag_bytes, started)
    trace = trace or minter.traceparent_bytes()
    run._ids = ids = b"Nexus-Run-Id: %b\r\nNexus-Session-Id: %b\r\n" % (run_id, session)
    run.client, run.world, run._opening, run._data, run._size = client, world, opening, data, size
    run._instance, run._place, run._upstream, run._quota = instance, place, upstream, quota
    run._run_id, run._session_id, run._trace, run._started, run.sent_at = run_id, session, trace, started, now
    run.deadline = now + seconds + world.settings.deadline_grace_s
    counts = world.counts
    counts.requests += 1
    counts.in_flight += 1
    instance.active += 1
    client.express = upstream.express = run
    upstream.answered = False
    if user is not None:
        ids += b"Nexus-User-Id: %b\r\n" % user
    upstream.transport.write(
        b"%b%bNexus-Deadline: %d\r\ntraceparent: %b\r\nContent-Length: %d\r\n\r\n%b"
        % (head, ids, int((started + seconds) * 1000), trace, size, body)
    )
    if streams:
        world.loop.call_soon(run.unfold_in_time)
    return True


def _read(client: "ClientConnection", data: bytes) -> tuple[Opening, bytes | None, bytes | None, bytes | None, bytes] | None:
    """Read a request line by line, and learn its shape for the next one on this connection."""
    world = client.world
    whole = world.reader.read_request(data)
    if whole is None or whole[1][lines.SESSION] in (b".", b".."):
        return None
    first, fields, onward, body = whole
    key = (first, fields[lines.HOST], fields[lines.AUTHORIZATION], fields[lines.API_KEY], fields[lines.ENVIRONMENT])
    admission = world.admitted.get(key) or _admit(key, data, world)
    if admission is None:
        return None
    accept, trace = fields[lines.ACCEPT], fields[lines.TRACE]
    streams = admission.match.stream or (accept is not None and b"text/event-stream" in accept)
    told = admission.told
    if streams:
        onward = [line for line in onward if line[:7] != b"accept:"]
        told += b"Accept: text/event-stream\r\n"
    head = b"".join((b"POST /run HTTP/1.1\r\nHost: agent\r\n", *onward, told))
    deployment = admission.deployment
    opening = Opening(
        admission, head, streams, fields[lines.CODING] is not None, deployment, deployment.open_homes,
        math.inf if deployment.max_concurrency is None else deployment.max_concurrency, admission.limits, deployment.timeout_s,
    )  # fmt: skip
    client.misses += 1
    if shapes.is_worth_learning(client.misses):
        client.shape = world.requests.learn(data, meaning=opening, table=world.table)
    return opening, fields[lines.SESSION], trace if mint.parse_traceparent(trace) is not None else None, fields[lines.USER], body


def _read_answer(data: bytes, instance: routes.Instance, world: World) -> shapes.Shape[tuple[int, bytes]] | None:
    """Read an answer line by line, and learn its shape for the next one of this instance."""
    answer = world.reader.read_answer(data)
    if answer is None:
        return None
    status, onward, _ = answer
    head = b"".join((http1.status_line(status), *onward, instance.told))
    parts = shapes.cut(data, shapes.IN_ANSWERS)
    if parts is not None:
        instance.shape = shapes.Shape(*parts, meaning=(status, head), table=None)
        return instance.shape
    return None


def _reserve(
    opening: Opening, session: bytes | None, world: World, now: float
) -> "tuple[routes.Instance, Upstream, limits.Verdict | None, sessions.Place | None] | None":
    """Instance, a warm connection to it (or to the session's own worker, at a place), and what the limits leave; None, and
    nothing taken, when one of them is not to be had."""
    admission, deployment = opening.admission, opening.deployment
    threshold = deployment.options.threshold
    if world.waiting.has(deployment.id) or (threshold is not None and not deployment.circuit.may_pass(threshold, now)):
        return None
    session_id = None if session is None else session.decode("ascii")
    turn, place = deployment.turn.at, None
    if deployment.options.isolated:
        place = None if session_id is None or opening.streams else world.places.find((deployment.id, session_id))
        instance = None if place is None else deployment.by_id.get(place.instance_id)
        if instance is not None and instance.active >= opening.room:
            return None
    else:
        instance = _choose(deployment, session_id, world, now)
    address = instance.address if instance is not None and place is None else place.address if place is not None else ""
    upstream = None if instance is None else world.pool.take(address, now)
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
    return instance, upstream, quota, place


def _choose(deployment: routes.Deployment, session_id: str | None, world: World, now: float) -> routes.Instance | None:
    version = None
    if len(deployment.versions) > 1:
        if session_id is None:
            return None
        version = balance.decide_version(deployment, session_id=session_id, user="", pins=world.pins, draw=world.draw)
    elif session_id is not None and deployment.kept:
        version = balance.decide_version(deployment, session_id=session_id, user="", pins=world.pins, draw=world.draw)
    return balance.decide_instance(deployment, session_id=session_id, now=now, version=version)


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
