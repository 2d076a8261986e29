"""One small HTTP question to a process of the host, over TCP (TLS where the port speaks it) or a unix socket, without an HTTP
library. Called by the keeper."""

import contextlib
import functools
import json
import socket
import ssl
from pathlib import Path
from typing import Any

from nexus.kit import tls

Address = tuple[str, int] | Path
_MOST = 1024 * 1024


def ask(
    address: Address, path: str, *, timeout_s: float = 0.3, headers: str = "", certificate: Path | None = None
) -> tuple[int, Any] | None:
    """Status and body (parsed when it is JSON, else text), or None when nobody answers in time. `certificate`: the address
    speaks TLS and shows this one, whatever name it is for."""
    question = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: application/json\r\n{headers}\r\n"
    try:
        with _connect(address, timeout_s, certificate) as connection:
            connection.sendall(question.encode("latin-1"))
            answer = _read_all(connection)
    except (OSError, UnicodeError):
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split()
    if len(words) < 2 or not words[1].isdigit():
        return None
    if b"transfer-encoding: chunked" in head.lower():
        body = _unchunk(body)
    with contextlib.suppress(ValueError):
        return int(words[1]), json.loads(body)
    return int(words[1]), body.decode("utf-8", "replace")


def _connect(address: Address, timeout_s: float, certificate: Path | None) -> socket.socket:
    if isinstance(address, tuple):
        plain = socket.create_connection(address, timeout=timeout_s)
        if certificate is None:
            return plain
        try:
            return _context(certificate, certificate.stat().st_mtime_ns).wrap_socket(plain, server_hostname=address[0])
        except BaseException:
            plain.close()
            raise
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(str(address))
    except BaseException:
        connection.close()
        raise
    return connection


@functools.lru_cache(maxsize=1)
def _context(certificate: Path, changed_ns: int) -> ssl.SSLContext:
    return tls.trusting(certificate, named=False)


def _read_all(connection: socket.socket) -> bytes:
    parts, size = [], 0
    while size < _MOST and (part := connection.recv(65536)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _unchunk(body: bytes) -> bytes:
    parts = []
    while body:
        size_line, _, rest = body.partition(b"\r\n")
        try:
            size = int(size_line.split(b";")[0], 16)
        except ValueError:
            break
        if size == 0:
            break
        parts.append(rest[:size])
        body = rest[size + 2 :]
    return b"".join(parts)
