"""What the box may say to its way out: an HTTP proxy's request (CONNECT, or plain) or SOCKS5 without a login, on one port.

`read_call` reads either and gives one `Call`; its `accept` and `refuse` are the answers in the same protocol.
Sources: RFC 9110 (CONNECT), RFC 9112 (framing), RFC 1928 (SOCKS5).
"""

import asyncio
import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from nexus.drivers.process import egress_rules
from nexus.kit import egress, http_client

_SOCKS, _CONNECT, _NO_LOGIN, _NO_METHOD = 5, 1, 0, 0xFF
_IPV4, _NAME, _IPV6 = 1, 3, 4
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_DROPPED = frozenset(
    {"connection", "keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate", "host", "upgrade"}
)
Reason = Literal["rules", "unreachable", "busy"]
_STATUS: dict[Reason, tuple[int, str]] = {"rules": (403, "Forbidden"), "unreachable": (502, "Bad Gateway"), "busy": (503, "Busy")}
_REPLY: dict[Reason, int] = {"rules": 2, "unreachable": 4, "busy": 1}
_WRONG_COMMAND, _WRONG_ADDRESS = 7, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What was asked for. `wanted` is shown in logs; `parse` judges it. `head` None: a tunnel that begins after `accept`."""

    how: str
    wanted: str
    head: http_client.Head | None = None

    def parse(self) -> egress.Target:
        """Where it leads. Raises `egress.Refused` for what is no host and port."""
        return egress_rules.parse_call("CONNECT" if self.how == "SOCKS" else self.how, self.wanted)[0]

    def accept(self) -> bytes:
        if self.how == "SOCKS":
            return _reply(0)
        return b"HTTP/1.1 200 Connection established\r\n\r\n" if self.head is None else b""

    def refuse(self, reason: Reason, text: str) -> bytes:
        if self.how == "SOCKS":
            return _reply(_REPLY[reason])
        status, phrase = _STATUS[reason]
        body = f"{text}\n".encode("utf-8", "replace")
        head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {len(body)}\r\n"
        return f"{head}connection: close\r\n\r\n".encode() + body


async def read_call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Call | None:
    """The one call of a connection; None when it ended, or asked for what SOCKS5 refuses before a host is named."""
    first = await reader.read(1)
    if not first:
        return None
    if first[0] == _SOCKS:
        return await _read_socks(reader, writer)
    head = await http_client.read_head(_Begun(reader, first))  # type: ignore[arg-type]  # `readuntil` is all it uses
    if head is None:
        return None
    method, wanted, _ = head.line
    return Call(how=method, wanted=wanted, head=None if method == "CONNECT" else head)


def render(call: Call, target: egress.Target) -> bytes:
    """A plain call as its server wants it: one for each connection, without what was meant for a proxy."""
    assert call.head is not None
    if not _HEADER.fullmatch(call.how):
        raise http_client.ProtocolError("not a method")
    lines = [f"{call.how} {target.path} HTTP/1.1", f"host: {target.authority}", "connection: close"]
    for name, value in call.head.headers:
        if name not in _DROPPED:
            if not _HEADER.fullmatch(name) or any(character in value for character in "\r\n\0"):
                raise http_client.ProtocolError("not a header")
            lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class _Begun:
    """A reader whose first byte was looked at."""

    def __init__(self, reader: asyncio.StreamReader, first: bytes) -> None:
        self._reader = reader
        self._first = first

    async def readuntil(self, separator: bytes) -> bytes:
        return self._first + await self._reader.readuntil(separator)


async def _read_socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Call | None:
    methods = await reader.readexactly((await reader.readexactly(1))[0])
    writer.write(bytes((_SOCKS, _NO_LOGIN if _NO_LOGIN in methods else _NO_METHOD)))
    if _NO_LOGIN not in methods:
        return None
    version, command, _, kind = await reader.readexactly(4)
    if version != _SOCKS or command != _CONNECT:
        writer.write(_reply(_WRONG_COMMAND))
        return None
    if kind == _NAME:
        host = (await reader.readexactly((await reader.readexactly(1))[0])).decode("ascii", "backslashreplace")
    elif kind == _IPV4:
        host = str(ipaddress.IPv4Address(await reader.readexactly(4)))
    elif kind == _IPV6:
        host = f"[{ipaddress.IPv6Address(await reader.readexactly(16))}]"
    else:
        writer.write(_reply(_WRONG_ADDRESS))
        return None
    port = int.from_bytes(await reader.readexactly(2), "big")
    return Call(how="SOCKS", wanted=f"{host}:{port}")


def _reply(code: int) -> bytes:
    return bytes((_SOCKS, code, 0, _IPV4, 0, 0, 0, 0, 0, 0))
