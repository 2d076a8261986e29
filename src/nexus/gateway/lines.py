"""Reading whole, plain messages by remembering lines: most header lines of a client or a worker come again and again.

Anything out of the ordinary (a body that is not there yet, Transfer-Encoding, Upgrade, a name twice, a byte outside of plain
ASCII) gives None: then `httptools` reads the same bytes and judges them. So this reader is stricter than the other, never laxer.
"""

import re
from typing import Any

from nexus.gateway import endings, http1

_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}): ?([!-~](?:[ -~]{0,1022}[!-~])?)")
_REQUEST_LINE = re.compile(rb"POST (/[!-\"$-~]{0,510}) HTTP/1\.1")
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5]\d\d) [ -~]{0,100}")
_SESSION = re.compile(rb"[A-Za-z0-9._:@-]{1,256}")
VISIBLE = bytes(range(0x21, 0x7F))
SESSION_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:@-"
_LONGEST_HEAD = 8192
_MOST_LINES = 64
_REMEMBERED = 8192

HOST, LENGTH, AUTHORIZATION, API_KEY, ENVIRONMENT, SESSION, TRACE, ACCEPT, CODING, TYPE, USER, USAGE = range(1, 13)
_KINDS = {
    b"host": HOST, b"content-length": LENGTH, b"authorization": AUTHORIZATION, b"x-api-key": API_KEY,
    b"nexus-environment": ENVIRONMENT, b"nexus-session-id": SESSION, b"traceparent": TRACE, b"accept": ACCEPT,
    b"accept-encoding": CODING, b"content-type": TYPE, b"nexus-user-id": USER,
}  # fmt: skip
_NOT_PLAIN = (http1.HOP | http1.SINGLE | {b"origin", b"cookie", b"content-encoding"}) - set(_KINDS)
_ANSWER_NOT_PLAIN = http1.HOP - {b"content-length"}

Known = tuple[int, bytes, bytes]
"""The kind of a line (0: of no interest), its value, and the line as it goes on (empty: it does not)."""


Whole = tuple[bytes, list[bytes | None], list[bytes], bytes]
"""A request that came whole: its first line, its values by kind, its lines for the worker, its body."""

Answer = tuple[int, list[bytes], bytes]
"""A worker's answer that came whole: its status, its lines for the client, its body."""


class Reader:
    """One per process. `withheld` are the names (and prefixes) of request headers that never go on, `cleaned` of answers."""

    def __init__(
        self,
        *,
        withheld: frozenset[bytes],
        withheld_prefixes: tuple[bytes, ...],
        cleaned: frozenset[bytes],
        cleaned_prefixes: tuple[bytes, ...],
    ) -> None:
        self._requests: dict[bytes, Known | None] = {}
        self._answers: dict[bytes, Known | None] = {}
        self._statuses: dict[bytes, int] = {}
        self._withheld, self._withheld_prefixes = withheld, withheld_prefixes
        self._cleaned, self._cleaned_prefixes = cleaned, cleaned_prefixes

    def read_request(self, data: bytes) -> Whole | None:
        """The POST that `data` is, exactly; None when it is anything else or more."""
        end = data.find(b"\r\n\r\n", 0, _LONGEST_HEAD)
        if end < 0:
            return None
        lines = data[:end].split(b"\r\n", _MOST_LINES)
        known_lines = self._requests
        fields: list[bytes | None] = [None] * 13
        onward: list[bytes] = []
        first = lines[0]
        del lines[0]
        for line in lines:
            known = known_lines.get(line)
            if known is None:
                if line[:18] == b"Nexus-Session-Id: " and not line[18:].translate(None, SESSION_BYTES) and 18 < len(line) < 275:
                    if fields[SESSION] is not None:
                        return None
                    fields[SESSION] = line[18:]
                    continue
                if (known := self._learn_request(line)) is None:
                    return None
            kind, value, passed = known
            if kind:
                if fields[kind] is not None:
                    return None
                fields[kind] = value
            if passed:
                onward.append(passed)
        length = fields[LENGTH]
        if length is None or fields[HOST] is None or len(data) - end - 4 != int(length):
            return None
        return first, fields, onward, data[end + 4 :]

    def read_answer(self, data: bytes) -> Answer | None:
        """The answer with a length that `data` is, exactly; None when it is anything else, a part or more."""
        end = data.find(b"\r\n\r\n", 0, _LONGEST_HEAD)
        if end < 0:
            return None
        lines = data[:end].split(b"\r\n", _MOST_LINES)
        known_lines = self._answers
        onward: list[bytes] = []
        length, used = None, False
        first = lines[0]
        del lines[0]
        for line in lines:
            known = known_lines.get(line)
            if known is None and (known := self._learn_answer(line)) is None:
                return None
            kind, value, passed = known
            if kind == LENGTH:
                if length is not None:
                    return None
                length = value
            elif kind == USAGE:
                if used:
                    return None
                used = True
            if passed:
                onward.append(passed)
        status = self._statuses.get(first) or self._learn_status(first)
        if length is None or not status or len(data) - end - 4 != int(length):
            return None
        return status, onward, data[end + 4 :]

    def _learn_request(self, line: bytes) -> Known | None:
        found = _LINE.fullmatch(line)
        if found is None:
            return None
        name, value = found[1].lower(), found[2]
        kind = _KINDS.get(name, 0)
        if name in _NOT_PLAIN and not (name == b"connection" and value.lower() == b"keep-alive"):
            return None
        if kind == SESSION and _SESSION.fullmatch(value) is None:
            return None
        if kind == LENGTH and not (value.isdigit() and len(value) < 10):
            return None
        kept = name not in self._withheld and not name.startswith(self._withheld_prefixes) and b"_" not in name
        kept = kept or name == b"nexus-user-id"  # whom the run is for is the caller's to say
        known = (kind, value, b"%b: %b\r\n" % (name, value) if kept else b"")
        if kind == USER and value.translate(None, VISIBLE):
            return None
        if kind not in (TRACE, SESSION, USER):
            _remember(self._requests, line, known)
        return known

    def _learn_answer(self, line: bytes) -> Known | None:
        found = _LINE.fullmatch(line)
        if found is None:
            return None
        name, value = found[1].lower(), found[2]
        if name == b"connection":
            if value.lower() != b"keep-alive":
                return None
        elif name in _ANSWER_NOT_PLAIN or name == b"nexus-error-code":
            return None
        elif name == b"nexus-usage":
            return None if endings.read_usage(value) is None else (USAGE, value, b"")
        if name == b"content-length" and not (value.isdigit() and len(value) < 10):
            return None
        if name == b"content-type" and value.lower().startswith((b"text/event-stream", b"application/problem+json")):
            return None
        kept = name not in self._cleaned and not name.startswith(self._cleaned_prefixes)
        known = (LENGTH if name == b"content-length" else 0, value, b"%b: %b\r\n" % (name, value) if kept else b"")
        _remember(self._answers, line, known)
        return known

    def _learn_status(self, line: bytes) -> int:
        found = _STATUS_LINE.fullmatch(line)
        status = int(found[1]) if found is not None else 0
        if status in (204, 304):
            return 0
        _remember(self._statuses, line, status)
        return status


def is_plain_request_line(line: bytes) -> bool:
    return _REQUEST_LINE.fullmatch(line) is not None


def _remember(where: dict[bytes, Any], line: bytes, what: Any) -> None:
    if len(where) >= _REMEMBERED:
        where.clear()
    if len(line) <= 512:
        where[line] = what
