"""Requests that have to meet at one gateway process of the node: those with an `Idempotency-Key`.

Each key has one owner among the gateways, by hash. A run that comes to another one is passed to the owner's private socket, so
that two requests with one key meet whichever process they came to. What was counted on the way in is not counted again.
"""

import hashlib

from nexus.core import errors
from nexus.gateway import answers, http1
from nexus.gateway.call import Call
from nexus.gateway.exchange import Exchange
from nexus.gateway.handler import Handler, Phase
from nexus.gateway.world import World

KEY = b"idempotency-key"
_AGAIN_S = 0.05


def decide_owner(call: Call, world: World) -> int | None:
    """The gateway that a run has to be passed to; None when it stays here.

    While this one is settling it passes its own runs to its own sibling socket, which opens when it knows its keys; when it has
    been replaced that socket is its successor's.
    """
    config, elsewhere = world.settings, world.replaced or world.keys.settling
    key, deployment = call.head.named.get(KEY), call.deployment
    if key is None or deployment is None or call.trusted or (call.relayed and not world.replaced):
        return None
    if config.gateways < 2 and not elsewhere:
        return None
    digest = hashlib.sha256(b"\0".join((call.tenant.encode(), deployment.id.encode(), key))).digest()
    owner = int.from_bytes(digest[:4], "big") % config.gateways
    if call.relayed:
        return config.number
    return None if owner == config.number and not elsewhere else owner


class SiblingHandler(Handler):
    """A run on its way to the gateway that owns its key, and the answer on its way back, both as they are."""

    def __init__(self, exchange: Exchange, owner: int) -> None:
        super().__init__(exchange)
        self._owner = owner
        self._address = f"unix:{self.world.settings.home.sibling_socket(owner)}"
        self._began = self.world.loop.time()
        self.compression = "none"

    def open(self) -> None:
        deployment = self.call.deployment
        limits = self.world.settings
        allowed_s = 0.0 if deployment is None else deployment.wait_s + deployment.timeout_s + 2 * limits.deadline_grace_s
        self.exchange.deadline = self._began + limits.collect_timeout_s + allowed_s
        self.exchange.connect(self._address)

    def request_head(self, framing: bytes) -> bytes:
        head = self.call.head
        hop = http1.connection_names(head.named.get(b"connection"))
        out = [b"%b %b HTTP/1.1\r\n" % (head.method, head.target)]
        out += [b"%b: %b\r\n" % (name, value) for name, value in head.headers if name not in http1.HOP and name not in hop]
        if b"traceparent" not in head.named:
            out.append(b"traceparent: %b\r\n" % self.call.traceparent)
        return b"".join((*out, framing, b"\r\n"))

    def answer_headers(self, status: int, headers: list[http1.Header]) -> list[http1.Header]:
        """What the other gateway says, which cleaned it already; the limits that were counted here are told here."""
        kept = [header for header in headers if header[0] not in http1.HOP and header[0] != b"date"]
        return [*kept, *answers.quota_headers(self.call)]

    def unreachable(self, error: Exception) -> None:
        """That gateway is being started again, or replaced: wait a little. Without it nobody knows whether the run was made."""
        if self.world.loop.time() - self._began < self.world.settings.control_patience_s and (
            not self.world.draining or self.world.replaced
        ):
            self.exchange.phase = Phase.WAITING
            self.world.loop.call_later(_AGAIN_S, self._again)
            return
        raise self._lost(type(error).__name__) from error

    def _again(self) -> None:
        if self.exchange.phase is Phase.WAITING:
            self.exchange.connect(self._address)

    def broken(self, reason: str, *, lost: bool) -> errors.NexusError:
        return self._lost(reason)

    def _lost(self, cause: str) -> errors.Unavailable:
        return errors.Unavailable(
            f"gateway {self._owner}, which keeps this Idempotency-Key, does not answer",
            code="idempotency.unavailable",
            cause=cause,
            retry_after_s=1,
            next_step="look whether the run was made (`GET /v1/runs`) before you send it again; see `nexus status`",
        )
