"""What each kind of request does once the stages have let it through: health, a run's usage, control, preflight; runs and models
have modules of their own."""

import os
import re
import time
from urllib.parse import unquote

from nexus.core import errors
from nexus.gateway import answers, http1, models_door, runs_door, siblings, socket_door
from nexus.gateway.call import Door
from nexus.gateway.exchange import Exchange
from nexus.gateway.handler import Handler, Phase

_LONGEST_PACKAGE = 512 * 1024 * 1024
_PACKAGE_PATH = re.compile(rb"/v1/agents/[a-z0-9-]{1,63}/versions")


def open_handler(exchange: Exchange) -> Handler:
    """The handler for a call that passed all stages."""
    match = exchange.call.match
    if match is None:
        raise errors.Internal("a request was opened without a door")
    if match.door is Door.RUN and (owner := siblings.decide_owner(exchange.call, exchange.world)) is not None:
        return siblings.SiblingHandler(exchange, owner)
    return _HANDLERS[match.door](exchange)


class ControlHandler(Handler):
    """Everything control answers, streamed both ways. Control may be restarting: connecting is tried for a few seconds."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self._address = f"unix:{self.world.settings.home.control_socket}"
        self._scheme = b"https" if self.world.settings.tls_certificate is not None and not self.call.inside else b"http"
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
            if (
                name in http1.HOP
                or (name in hop and name[:14] != b"sec-websocket-")
                or name[:11] == b"x-forwarded"
                or name in (b"forwarded", b"x-real-ip")
            ):
                continue
            if name in (b"nexus-tenant", b"nexus-principal", b"nexus-deadline", b"nexus-attempt") and not call.trusted:
                continue
            out.append(b"%b: %b\r\n" % (name, value))
        if b"host" not in head.named:
            out.append(b"Host: localhost\r\n")
        if head.upgrade:
            out.append(b"Connection: Upgrade\r\nUpgrade: websocket\r\n")
        out.append(b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n" % (call.peer.encode("latin-1"), self._scheme))
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

    def tunnel_headers(self, headers: list[http1.Header]) -> list[http1.Header]:
        return self.answer_headers(101, headers)

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
        if self.call.inside:
            value["pid"] = os.getpid()
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
    Door.RUN: runs_door.RunHandler,
    Door.SOCKET: socket_door.SocketHandler,
    Door.HEALTH: HealthHandler,
    Door.MODEL: models_door.ModelHandler,
    Door.MODEL_LIST: models_door.ModelListHandler,
    Door.RUN_USAGE: RunUsageHandler,
    Door.CONTROL: ControlHandler,
    Door.PREFLIGHT: PreflightHandler,
}
