"""The rules of HTTP/1.1 as this gateway keeps them, without I/O: what a request head must look like, what may cross a
hop, how a head and a chunk are written. Source: RFC 9110, RFC 9112. Parsing itself is llhttp's, in its strict mode."""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from nexus.core import errors

Header = tuple[bytes, bytes]

_TARGET = re.compile(rb"/[!-\"$-~]*")
_HOST = re.compile(
    rb"(?:(?=[A-Za-z0-9._-]{1,253}(?::|\Z))[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?"
)
_WEBSOCKET_KEY = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==")
_DISGUISED = re.compile(rb"//|/\.{1,2}(?:/|$)|\\|;|%(?:2f|5c|2e|3b|00|0a|0d)", re.IGNORECASE)
_STATUS_LINE = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}

SINGLE = frozenset(
    {
        b"host", b"content-length", b"transfer-encoding", b"content-type", b"authorization", b"x-api-key", b"expect", b"origin",
        b"nexus-session-id", b"nexus-environment", b"nexus-version", b"nexus-user-id", b"nexus-run-id", b"nexus-tenant",
        b"nexus-attempt", b"idempotency-key", b"last-event-id", b"upgrade", b"sec-websocket-key", b"sec-websocket-version",
    }
)  # fmt: skip
HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
        b"transfer-encoding", b"upgrade", b"http2-settings", b"content-length", b"expect",
    }
)  # fmt: skip
LONGEST_TARGET = 16 * 1024


@dataclass(slots=True, kw_only=True)
class RequestHead:
    """One checked request head. Header names are in lower case; `named` holds each name's first value.

    `length` is the Content-Length (0 when there is no body), None when the body is chunked. `upgrade`: it asks for a WebSocket.
    """

    method: bytes
    target: bytes
    path: bytes
    headers: list[Header]
    named: dict[bytes, bytes]
    length: int | None
    modern: bool
    keep_alive: bool
    upgrade: bool = False


def parse_request(*, method: bytes, target: bytes, headers: list[Header], version: str, keep_alive: bool) -> RequestHead:
    """A checked head, or `Invalid` (`request.malformed`) saying which rule was broken: the caller answers and closes."""
    if version not in ("1.1", "1.0"):
        raise malformed(f"HTTP/{version} is not spoken here", next_step="use HTTP/1.1")
    modern = version == "1.1"
    named: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in named:
            if name in SINGLE:
                raise malformed(f"the header {name.decode('ascii', 'replace')} was sent twice")
        else:
            named[name] = value
    host = named.get(b"host")
    if host is None:
        if modern:
            raise malformed("the Host header is missing")
    elif _HOST.fullmatch(host) is None:
        raise malformed("the Host header is not a name or address with an optional port")
    if len(target) > LONGEST_TARGET:
        raise errors.Exhausted(
            f"the request target is longer than {LONGEST_TARGET} bytes", code="headers.too_large", next_step="shorten the URL"
        )
    if _TARGET.fullmatch(target) is None and not (target == b"*" and method == b"OPTIONS"):
        raise malformed("the request target must be an absolute path such as /agents/my-agent/run")
    return RequestHead(
        method=method,
        target=target,
        path=target.partition(b"?")[0],
        headers=headers,
        named=named,
        length=_body_length(named, modern=modern),
        modern=modern,
        keep_alive=keep_alive and modern,
    )


def check_websocket(head: RequestHead) -> None:
    """Nothing, or an error: a request that wants to switch protocols must be a WebSocket handshake (RFC 6455, section 4.2.1)."""
    named = head.named
    if head.method == b"CONNECT" or named.get(b"upgrade", b"").lower() != b"websocket":
        raise errors.Unavailable(
            "this gateway switches to no protocol but WebSocket (not to h2c, and there is no CONNECT)",
            code="upgrade.unsupported",
            next_step="use HTTP/1.1; events are streamed as text/event-stream from /agents/{name}/stream",
        )
    if head.method != b"GET" or not head.modern or head.length != 0 or b"transfer-encoding" in named:
        raise malformed("a WebSocket begins with a GET that has no body")
    if b"upgrade" not in connection_names(named.get(b"connection")):
        raise malformed("Connection does not say upgrade")
    if named.get(b"sec-websocket-version") != b"13":
        raise malformed("Sec-WebSocket-Version is not 13", next_step="send Sec-WebSocket-Version: 13")
    if _WEBSOCKET_KEY.fullmatch(named.get(b"sec-websocket-key", b"")) is None:
        raise malformed("Sec-WebSocket-Key is not 16 bytes in base64")


def websocket_accept(key: bytes) -> bytes:
    """What a server must answer in Sec-WebSocket-Accept."""
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())  # noqa: S324 - RFC 6455


def _body_length(named: dict[bytes, bytes], *, modern: bool) -> int | None:
    coding = named.get(b"transfer-encoding")
    length = named.get(b"content-length")
    if coding is not None:
        if length is not None or not modern or coding.lower() != b"chunked":
            raise malformed("Transfer-Encoding must be chunked, alone, and without Content-Length")
        return None
    if length is None:
        return 0
    if not length.isdigit() or len(length) > 15:
        raise malformed("Content-Length is not a number")
    return int(length)


def malformed(detail: str, *, next_step: str | None = None) -> errors.Invalid:
    return errors.Invalid(f"the request is not well-formed HTTP: {detail}", code="request.malformed", next_step=next_step)


def is_disguised(path: bytes) -> bool:
    """Whether a path has other spellings (`//`, `/../`, `%2f` …), so that two programs might read it differently."""
    return _DISGUISED.search(path) is not None


def render_head(status: int, headers: Iterable[Header]) -> bytes:
    line = _STATUS_LINE.get(status) or b"HTTP/1.1 %d Status\r\n" % status
    return line + b"".join([b"%b: %b\r\n" % header for header in headers]) + b"\r\n"


def status_line(status: int) -> bytes:
    return _STATUS_LINE.get(status) or b"HTTP/1.1 %d Status\r\n" % status


def chunk(parts: Sequence[bytes]) -> bytes:
    """Several pieces of a body as one chunk. Never called with nothing: an empty chunk would end the body."""
    data = b"".join(parts)
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def connection_names(value: bytes | None) -> frozenset[bytes]:
    """The header names that a Connection header declares to be for this hop only."""
    if not value or value.lower() in (b"keep-alive", b"close"):
        return frozenset()
    return frozenset(name.strip().lower() for name in value.split(b","))
