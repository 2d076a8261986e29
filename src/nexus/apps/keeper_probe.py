"""One small HTTP question to a process of the host, over TCP or a unix socket, without an HTTP library. Called by the keeper."""

import contextlib
import json
import socket
from pathlib import Path
from typing import Any

Address = tuple[str, int] | Path
_MOST = 1024 * 1024


def ask(address: Address, path: str, *, timeout_s: float = 0.3, headers: str = "") -> tuple[int, Any] | None:
    """Status and body (parsed when it is JSON, else text), or None when nobody answers in time."""
    question = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept: application/json\r\n{headers}\r\n"
    try:
        with _connect(address, timeout_s) as connection:
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


def _connect(address: Address, timeout_s: float) -> socket.socket:
    if isinstance(address, tuple):
        return socket.create_connection(address, timeout=timeout_s)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(str(address))
    except BaseException:
        connection.close()
        raise
    return connection


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
