"""The way out of a box that has no network: a proxy (HTTP, CONNECT, SOCKS5) on a unix socket, one for each instance.

The box sees loopback ports that lead here (`box_relay`). Names are resolved here, once, and the address that was judged is the
one that is connected to. Every connection is counted, kept to the agent's rate and written into its log with its run.
Made and closed by `instance`.
"""

import asyncio
import contextlib
import ipaddress
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nexus.drivers.process import egress_meter, egress_protocol, egress_rules
from nexus.kit import egress, http_client

SOCKET = "proxy"
_MOST = 200
_HEAD_S = 30.0
_CONNECT_S = 10.0
_IDLE_S = 3600.0
_PINNED_S = 60.0
_PINS = 256
_CHUNK = 64 * 1024
_CREDENTIALS = struct.Struct("3i")

Note = Callable[[str, str, egress_meter.Caller], None]
Whose = Callable[[int], Awaitable[egress_meter.Caller]]
Addresses = Sequence[ipaddress.IPv4Address | ipaddress.IPv6Address]


async def nobody(pid: int) -> egress_meter.Caller:
    """Whose a connection is when nobody can say."""
    return egress_meter.Caller()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What one instance may do: `rules` name hosts, `allowance` opens private addresses, `limit` is bytes a second each way."""

    rules: Sequence[egress_rules.Rule] = ()
    allowance: egress.Allowance = field(default_factory=egress.Allowance)
    limit: float | None = None


class Way:
    """One instance's proxy. `note(message, level, caller)` hears each connection and each refusal; `whose` tells the
    caller by the number of the process that connected."""

    def __init__(self, folder: Path, policy: Policy, *, note: Note, whose: Whose = nobody) -> None:
        self.meter = egress_meter.Meter()
        self._folder = folder
        self._policy = policy
        self._note = note
        self._whose = whose
        self._buckets = (egress_meter.Bucket(policy.limit), egress_meter.Bucket(policy.limit))
        self._pins: dict[str, tuple[float, Addresses]] = {}
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Listening when this returns. The folder is the box's to see and not to change."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o711)
        path = self._folder / SOCKET
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, path, limit=_CHUNK)
        path.chmod(0o666)  # the agent is another user, and its box the only one that has this folder

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for link in list(self._links):
            link.transport.abort()
        with contextlib.suppress(OSError):
            (self._folder / SOCKET).unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._links.add(writer)
        try:
            if len(self._links) > 2 * _MOST:  # too many to hear them out
                return
            async with asyncio.timeout(_HEAD_S):
                call = await egress_protocol.read_call(reader, writer)
            if call is None:
                return
            if len(self._links) > _MOST:
                writer.write(call.refuse("busy", f"an instance has at most {_MOST} connections"))
                return
            await self._answer(call, reader, writer)
        except (OSError, EOFError, http_client.ProtocolError, TimeoutError):
            pass  # whoever left, left
        finally:
            self._links.discard(writer)
            writer.close()

    async def _answer(self, call: egress_protocol.Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Who calls is asked meanwhile: a worker that is busy answers late, and nobody waits for that."""
        asking = asyncio.ensure_future(self._whose(_peer(writer)))
        try:
            target = call.parse()
            egress_rules.check(target, self._policy.rules)
            upstream, outward = await self._connect(target)
        except egress.Refused as error:
            self.meter.total.refused += 1
            writer.write(call.refuse("rules", str(error)))
            what = f"egress refused: {call.how} {_shown(call.wanted)}: {error}"
            await self._tell(asking, egress_meter.Tally(refused=1), what, "warning")
            return
        except (OSError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            writer.write(call.refuse("unreachable", f"{_shown(call.wanted)} cannot be reached: {reason}"))
            what = f"egress failed: {call.how} {_shown(call.wanted)}: {reason}"
            await self._tell(asking, egress_meter.Tally(), what, "warning")
            return
        self._links.add(outward)
        self.meter.total.connections += 1
        own = egress_meter.Tally(connections=1)
        self.meter.open(own, asking)
        try:
            writer.write(call.accept())
            if call.head is not None:
                outward.write(egress_protocol.render(call, target))
            await self._both(own, (reader, outward), (upstream, writer))
        finally:
            self._links.discard(outward)
            outward.close()
            what = f"egress {call.how} {target.host}:{target.port}: {own.sent} bytes out, {own.received} in"
            await self._tell(asking, own, what, "info")

    async def _tell(self, asking: asyncio.Future[egress_meter.Caller], own: egress_meter.Tally, what: str, level: str) -> None:
        """A line for the log, and the counts for the run. The total was counted as it went."""
        caller = await asking
        self.meter.count(caller, own)
        self._note(what, level, caller)

    async def _connect(self, target: egress.Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """To the first address that answers: never to the name, which may mean another one by now."""
        failure: Exception = OSError("no address")
        for address in (await self._resolve(target))[:4]:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    return await asyncio.open_connection(str(address), target.port, limit=_CHUNK)
            except (OSError, TimeoutError) as error:
                failure = error
        raise failure

    async def _resolve(self, target: egress.Target) -> Addresses:
        """Judged addresses, kept for a minute: a name cannot change its meaning between two looks."""
        now = time.monotonic()
        until, addresses = self._pins.get(target.host, (0.0, ()))
        if until > now:
            return addresses
        addresses = await egress.resolve(target, self._policy.allowance)
        if len(self._pins) >= _PINS:
            self._pins.clear()
        self._pins[target.host] = (now + _PINNED_S, addresses)
        return addresses

    async def _both(self, own: egress_meter.Tally, *pairs: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        """Bytes both ways (first out of the box, then into it) until both ends are done or one breaks."""

        async def pump(way: int) -> None:
            source, sink = pairs[way]
            bucket = self._buckets[way]
            while True:
                async with asyncio.timeout(_IDLE_S):
                    piece = await source.read(bucket.piece)
                    if not piece:
                        break
                    for tally in (own, self.meter.total):
                        tally.sent += len(piece) if way == 0 else 0
                        tally.received += len(piece) if way == 1 else 0
                    sink.write(piece)
                    await sink.drain()
                    if pause := bucket.pause(len(piece), time.monotonic()):
                        await asyncio.sleep(pause)
            with contextlib.suppress(OSError, RuntimeError):
                sink.write_eof()

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(pump(0))
                tasks.create_task(pump(1))
        except* (OSError, TimeoutError):
            pass


def _peer(writer: asyncio.StreamWriter) -> int:
    """The process at the other end, as the kernel says."""
    told = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(told)[0])


def _shown(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:200])


def environment(port: int) -> Mapping[str, str]:
    """Variables that ordinary libraries and programs find a proxy by.

    `ALL_PROXY` is the HTTP proxy too: named as SOCKS it would make httpx and requests fail where their SOCKS extras are absent.
    """
    url = f"http://127.0.0.1:{port}"
    values = {"HTTP_PROXY": url, "HTTPS_PROXY": url, "ALL_PROXY": url, "SOCKS_PROXY": f"socks5h://127.0.0.1:{port}"}
    values["NO_PROXY"] = "127.0.0.1,localhost,::1"
    return {**values, **{name.lower(): value for name, value in values.items()}, "NODE_USE_ENV_PROXY": "1"}
