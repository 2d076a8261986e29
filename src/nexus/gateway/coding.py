"""Content codings: gzip, both ways. Brotli and zstd are not spoken: no library for them is light enough for this process.

Event streams are compressed only where a deployment asks for it: a compressor holds 32 KiB for as long as its stream is open.
"""

import re
import zlib

from nexus.core import errors
from nexus.gateway import http1

LEAST_BYTES = 1024
_GOOD_TYPES = re.compile(
    rb"(?:text/(?!event-stream)|application/(?:[a-z0-9.+-]*\+)?(?:json|xml|javascript|x-ndjson|yaml)|image/svg\+xml)",
    re.IGNORECASE,
)
_BAD_STATUSES = (204, 206, 304)
_LEVEL = 5


def accepts_gzip(value: bytes | None) -> bool:
    """Whether an Accept-Encoding takes gzip (RFC 9110, section 12.5.3)."""
    if not value:
        return False
    best: dict[bytes, float] = {}
    for item in value.lower().split(b","):
        name, _, weight = item.strip().partition(b";")
        try:
            best[name.strip()] = float(weight.strip().removeprefix(b"q=") or 1)
        except ValueError:
            best[name.strip()] = 0.0
    return best.get(b"gzip", best.get(b"x-gzip", best.get(b"*", 0.0))) > 0


def decide_compressor(
    head: http1.RequestHead, status: int, headers: list[http1.Header], length: int | None, *, mode: str
) -> "Compressor | None":
    """What compresses this answer, or None when it goes as it is. `mode` is `auto`, `gzip` (streams too) or `none`."""
    if mode == "none" or head.method == b"HEAD" or not head.modern or status in _BAD_STATUSES:
        return None
    if (length is not None and length < LEAST_BYTES) or not accepts_gzip(head.named.get(b"accept-encoding")):
        return None
    named = {name.lower(): value for name, value in headers}
    if b"content-encoding" in named or b"no-transform" in named.get(b"cache-control", b"").lower():
        return None
    kind = named.get(b"content-type", b"")
    if kind.lower().startswith(b"text/event-stream"):
        return Compressor(stream=True) if mode == "gzip" else None
    return Compressor(stream=False) if _GOOD_TYPES.match(kind) else None


class Compressor:
    """One answer's. A stream's is small, and gives every event as soon as it came."""

    def __init__(self, *, stream: bool) -> None:
        self.stream = stream
        self._deflate = (
            zlib.compressobj(_LEVEL, zlib.DEFLATED, 16 + 12, 5) if stream else zlib.compressobj(_LEVEL, zlib.DEFLATED, 31)
        )

    def headers(self, headers: list[http1.Header]) -> list[http1.Header]:
        """The answer's headers as they are now: coded, varying, and with a validator that says no more than it may."""
        kept = [
            (name, b"W/" + value if name.lower() == b"etag" and not value.startswith(b"W/") else value)
            for name, value in headers
            if name.lower() not in (b"accept-ranges", b"content-md5", b"content-digest", b"repr-digest")
        ]
        return [*kept, (b"Content-Encoding", b"gzip"), (b"Vary", b"Accept-Encoding")]

    def feed(self, data: bytes) -> bytes:
        made = self._deflate.compress(data)
        return made + self._deflate.flush(zlib.Z_SYNC_FLUSH) if self.stream else made

    def end(self) -> bytes:
        return self._deflate.flush(zlib.Z_FINISH)


class Expander:
    """A gzip request's body on its way in, never more than `most` bytes (and one, which tells that it is too much)."""

    def __init__(self, most: int) -> None:
        self._inflate = zlib.decompressobj(31)
        self._left = most + 1

    def feed(self, data: bytes) -> bytes:
        """Raises `Invalid` (`body.coding_invalid`)."""
        if self._left <= 0:
            return b""
        try:
            made = self._inflate.decompress(data, self._left)
        except zlib.error as error:
            raise _invalid(str(error)) from error
        if self._inflate.unused_data:
            raise _invalid("something follows the compressed data")
        self._left -= len(made)
        return made

    def end(self) -> None:
        """Nothing, or `Invalid` when the compressed data ended early."""
        if self._left > 0 and not self._inflate.eof:
            raise _invalid("the compressed data ends early")


def decide_expander(head: http1.RequestHead, most: int) -> Expander | None:
    """What a run's body must go through, or `Invalid` (`body.coding_unsupported`)."""
    value = head.named.get(b"content-encoding", b"identity").lower()
    if value == b"identity":
        return None
    if value in (b"gzip", b"x-gzip"):
        return Expander(most)
    raise errors.Invalid(
        f"a body in the coding {value[:40].decode('latin-1')!r} cannot be read",
        code="body.coding_unsupported",
        next_step="send it plain, or with Content-Encoding: gzip",
        extra={"accept_encoding": "gzip"},
    )


def _invalid(detail: str) -> errors.Invalid:
    return errors.Invalid("the body is not valid gzip", code="body.coding_invalid", cause=detail, next_step="send it plain")
