"""The way out of a box that has no network: an HTTP proxy (CONNECT and plain) on a unix socket, one for each instance.

The box sees a loopback port that leads here (`box_relay`). Names are resolved here, once, and the address that was judged is the
one that is connected to; every connection is written into the instance's log. Made and closed by `instance`.
"""

import asyncio
import contextlib
import ipaddress
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from nexus.drivers.process import egress_rules
from nexus.kit import egress, http_client

SOCKET = "proxy"
_MOST = 200
_HEAD_S = 30.0
_CONNECT_S = 10.0
_IDLE_S = 3600.0
_CHUNK = 64 * 1024
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_DROPPED = frozenset(
    {"connection", "keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate", "host", "upgrade"}
)

Note = Callable[[str, str], None]


class Way:
    """One instance's proxy. `note(message, level)` hears each connection and each refusal."""

    def __init__(self, folder: Path, rules: Sequence[egress_rules.Rule], *, allowance: egress.Allowance, note: Note) -> None:
        self._folder = folder
        self._rules = rules
        self._allowance = allowance
        self._note = note
        self._open = 0
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
            if len(self._links) > _MOST:
                await _refuse(writer, 503, f"an instance has at most {_MOST} connections")
                return
            await self._call(reader, writer)
        except (OSError, http_client.ProtocolError, TimeoutError):
            pass  # whoever left, left
        finally:
            self._links.discard(writer)
            writer.close()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_HEAD_S):
            head = await http_client.read_head(reader)
        if head is None:
            return
        method, wanted, _ = head.line
        try:
            target, tunnel = egress_rules.parse_call(method, wanted)
            egress_rules.check(target, self._rules)
            addresses = await egress.resolve(target, self._allowance)
        except egress.Refused as error:
            self._note(f"egress refused: {method} {_shown(wanted)}: {error}", "warning")
            await _refuse(writer, 403, str(error))
            return
        except (OSError, TimeoutError) as error:
            await _refuse(writer, 502, f"{target.host} cannot be resolved: {error}")
            return
        link = await _connect(addresses, target.port)
        if link is None:
            await _refuse(writer, 502, f"{target.authority} cannot be connected to")
            return
        upstream, outward = link
        self._links.add(outward)
        try:
            if tunnel:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                outward.write(_render(method, target, head))
            sent, received = await _both(reader, outward, upstream, writer)
            self._note(f"egress {method} {target.host}:{target.port}: {sent} bytes out, {received} in", "info")
        finally:
            self._links.discard(outward)
            outward.close()


async def _connect(
    addresses: Sequence[ipaddress.IPv4Address | ipaddress.IPv6Address], port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """To the first of these addresses that answers: never to the name, which may mean another one by now."""
    for address in addresses[:4]:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CONNECT_S):
                return await asyncio.open_connection(str(address), port, limit=_CHUNK)
    return None


async def _both(
    reader: asyncio.StreamReader, outward: asyncio.StreamWriter, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[int, int]:
    """Bytes both ways until both ends are done or one breaks: how many went out and came in."""
    counts = [0, 0]

    async def pump(place: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(_IDLE_S):
                piece = await source.read(_CHUNK)
                if not piece:
                    break
                counts[place] += len(piece)
                sink.write(piece)
                await sink.drain()
        with contextlib.suppress(OSError, RuntimeError):
            sink.write_eof()

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pump(0, reader, outward))
            tasks.create_task(pump(1, upstream, writer))
    except* (OSError, TimeoutError):
        pass
    return counts[0], counts[1]


def _render(method: str, target: egress.Target, head: http_client.Head) -> bytes:
    """The request as its server wants it: one for each connection, without what was meant for a proxy."""
    if not _HEADER.fullmatch(method):
        raise http_client.ProtocolError("not a method")
    lines = [f"{method} {target.path} HTTP/1.1", f"host: {target.authority}", "connection: close"]
    for name, value in head.headers:
        if name not in _DROPPED:
            if not _HEADER.fullmatch(name) or any(character in value for character in "\r\n\0"):
                raise http_client.ProtocolError("not a header")
            lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _refuse(writer: asyncio.StreamWriter, status: int, reason: str) -> None:
    body = f"{reason}\n".encode("utf-8", "replace")
    head = f"HTTP/1.1 {status} Refused\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {len(body)}\r\n"
    with contextlib.suppress(OSError):
        writer.write(f"{head}connection: close\r\n\r\n".encode() + body)
        await writer.drain()


def _shown(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:200])


def environment(port: int) -> dict[str, str]:
    """Variables that ordinary libraries and programs find a proxy by."""
    url = f"http://127.0.0.1:{port}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    found = {name: url for upper in names for name in (upper, upper.lower())}
    return {**found, "NO_PROXY": "127.0.0.1,localhost,::1", "no_proxy": "127.0.0.1,localhost,::1"}
