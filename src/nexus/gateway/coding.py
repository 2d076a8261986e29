"""Content codings: gzip and zstd, both ways. zstd is the quicker one and wins where a client takes both alike.

Event streams are compressed only where a deployment asks for it, and then by gzip: a compressor holds 32 KiB for as long as its
stream is open. zstd's window is bounded both ways (to 512 KiB and 2 MiB), and its library is loaded when it is first needed.
"""

import importlib
import re
import zlib
from typing import Any

from nexus.core import errors
from nexus.gateway import http1

LEAST_BYTES = 1024
_GOOD_TYPES = re.compile(
    rb"(?:text/(?!event-stream)|application/(?:[a-z0-9.+-]*\+)?(?:json|xml|javascript|x-ndjson|yaml)|image/svg\+xml)",
    re.IGNORECASE,
)
_BAD_STATUSES = (204, 206, 304)
_GZIP_LEVEL, _ZSTD_LEVEL, _ZSTD_WINDOW_LOG = 5, 3, 19
_MOST_WINDOW_LOG = 21
SPOKEN = (b"zstd", b"gzip")
"""Best first. Told in `Accept-Encoding` to whoever sent something else."""


def choose(value: bytes | None, spoken: tuple[bytes, ...] = SPOKEN) -> bytes | None:
    """The coding that an Accept-Encoding likes best of those spoken here; None: as it is (RFC 9110, section 12.5.3)."""
    if not value:
        return None
    weights: dict[bytes, float] = {}
    for item in value.lower().split(b","):
        name, _, weight = item.strip().partition(b";")
        try:
            weights[name.strip().removeprefix(b"x-")] = float(weight.strip().removeprefix(b"q=") or 1)
        except ValueError:
            weights[name.strip()] = 0.0
    others = weights.get(b"*", 0.0)
    best = max(spoken, key=lambda name: weights.get(name, others))
    return best if weights.get(best, others) > 0 else None


def decide_compressor(
    head: http1.RequestHead, status: int, headers: list[http1.Header], length: int | None, *, mode: str
) -> "Compressor | None":
    """What compresses this answer, or None when it goes as it is. `mode` is `auto`, `gzip` (streams too) or `none`."""
    if mode == "none" or head.method == b"HEAD" or not head.modern or status in _BAD_STATUSES:
        return None
    accepted = head.named.get(b"accept-encoding")
    if (length is not None and length < LEAST_BYTES) or not accepted:
        return None
    named = {name.lower(): value for name, value in headers}
    if b"content-encoding" in named or b"no-transform" in named.get(b"cache-control", b"").lower():
        return None
    kind = named.get(b"content-type", b"")
    if kind.lower().startswith(b"text/event-stream"):
        return Compressor(stream=True) if mode == "gzip" and choose(accepted, (b"gzip",)) else None
    coding = choose(accepted) if _GOOD_TYPES.match(kind) else None
    return Compressor(stream=False, coding=coding) if coding is not None else None


class Compressor:
    """One answer's. A stream's (gzip) is small, and gives every event as soon as it came."""

    def __init__(self, *, stream: bool, coding: bytes = b"gzip") -> None:
        self.stream = stream
        self.coding = coding
        self._coder: Any
        if coding == b"zstd":
            zstd = _zstd()
            level, window = zstd.CompressionParameter.compression_level, zstd.CompressionParameter.window_log
            self._coder = zstd.ZstdCompressor(options={level: _ZSTD_LEVEL, window: _ZSTD_WINDOW_LOG})
        elif stream:
            self._coder = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 16 + 12, 5)
        else:
            self._coder = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31)

    def headers(self, headers: list[http1.Header]) -> list[http1.Header]:
        """The answer's headers as they are now: coded, varying, and with a validator that says no more than it may."""
        kept = [
            (name, b"W/" + value if name.lower() == b"etag" and not value.startswith(b"W/") else value)
            for name, value in headers
            if name.lower() not in (b"accept-ranges", b"content-md5", b"content-digest", b"repr-digest")
        ]
        return [*kept, (b"Content-Encoding", self.coding), (b"Vary", b"Accept-Encoding")]

    def feed(self, data: bytes) -> bytes:
        made: bytes = self._coder.compress(data)
        return made + self._coder.flush(zlib.Z_SYNC_FLUSH) if self.stream else made

    def end(self) -> bytes:
        ended: bytes = self._coder.flush()
        return ended


class Expander:
    """A coded request body on its way in, never more than `most` bytes (and one, which tells that it is too much)."""

    def __init__(self, most: int, *, coding: bytes = b"gzip") -> None:
        self._coding = coding
        self._left = most + 1
        self._decoder: Any
        self._broken: tuple[type[Exception], ...] = (zlib.error, EOFError)
        if coding == b"zstd":
            zstd = _zstd()
            self._decoder = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _MOST_WINDOW_LOG})
            self._broken = (zstd.ZstdError, EOFError)
        else:
            self._decoder = zlib.decompressobj(31)

    def feed(self, data: bytes) -> bytes:
        """Raises `Invalid` (`body.coding_invalid`)."""
        if self._left <= 0 or not data:
            return b""
        try:
            made: bytes = self._decoder.decompress(data, self._left)
        except self._broken as error:
            raise self._invalid("something follows the compressed data" if self._decoder.eof else str(error)) from error
        if self._decoder.unused_data:
            raise self._invalid("something follows the compressed data")
        self._left -= len(made)
        return made

    def end(self) -> None:
        """Nothing, or `Invalid` when the compressed data ended early."""
        if self._left > 0 and not self._decoder.eof:
            raise self._invalid("the compressed data ends early")

    def _invalid(self, detail: str) -> errors.Invalid:
        return errors.Invalid(
            f"the body is not valid {self._coding.decode('ascii')}",
            code="body.coding_invalid",
            cause=detail,
            next_step="send it plain",
        )


def decide_expander(head: http1.RequestHead, most: int) -> Expander | None:
    """What a run's body must go through, or `Invalid` (`body.coding_unsupported`)."""
    value = head.named.get(b"content-encoding", b"identity").lower()
    if value == b"identity":
        return None
    if value in (b"gzip", b"x-gzip", b"zstd"):
        return Expander(most, coding=value.removeprefix(b"x-"))
    raise errors.Invalid(
        f"a body in the coding {value[:40].decode('latin-1')!r} cannot be read",
        code="body.coding_unsupported",
        next_step="send it plain, or with Content-Encoding: gzip or zstd",
        extra={"accept_encoding": "zstd, gzip"},
    )


def _zstd() -> Any:
    """The module of the standard library's `compression.zstd` (3.14), for older Pythons too."""
    return importlib.import_module("backports.zstd")
