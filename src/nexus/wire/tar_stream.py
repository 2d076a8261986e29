"""Regular files out of a gzipped tar, one at a time, trusting nothing in it. Called by `nexus.wire.archive`.

Reads ustar, pax and GNU long names by itself, because what matters is what it refuses: links, devices, sparse files,
absolute or climbing names, duplicates, and anything past the limits, before memory or disk is spent on it.
Source: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Header Block".
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from nexus.core import errors

_BLOCK = 512
_CHUNK = 256 * 1024
_LONGEST_HEADER = 64 * 1024
_FILE, _DIRECTORY = (b"0", b"\0", b"7"), b"5"
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a character device", b"4": "a block device", b"6": "a FIFO"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most a package may hold once unpacked. `ratio` counts only above `ratio_from` bytes."""

    files: int = 20_000
    file_bytes: int = 512 * 1024 * 1024
    total_bytes: int = 1024 * 1024 * 1024
    ratio: int = 250
    ratio_from: int = 64 * 1024 * 1024
    name_bytes: int = 1024
    depth: int = 64


@dataclass(slots=True)
class Entry:
    """One regular file. Read it by `chunks()` before asking for the next entry, or leave it: the rest is skipped."""

    path: str
    size: int
    executable: bool
    _source: "_Inflated"
    _left: int = 0

    def chunks(self) -> Iterator[bytes]:
        while self._left:
            chunk = self._source.read(min(self._left, _CHUNK), self.path)
            self._left -= len(chunk)
            yield chunk


def entries(source: BinaryIO, limits: Limits) -> Iterator[Entry]:
    """Every regular file in order. Raises `Invalid` with code `package.unsafe`, `package.too_large` or `package.invalid`."""
    inflated = _Inflated(source, limits)
    seen = _Names(limits)
    total = 0
    for header, name in _headers(inflated):
        size, kind = header.size, header.kind
        path = checked_path(name, limits)
        if kind == _DIRECTORY:
            inflated.skip(_padded(size), path)
            continue
        if kind not in _FILE:
            raise unsafe(path, f"it is {_KINDS.get(kind, 'of an unknown type')}; only regular files are taken")
        seen.add(path)
        total += size
        if size > limits.file_bytes:
            raise too_large(f"{path!r} has {size} bytes", f"one file may have {limits.file_bytes} bytes")
        if total > limits.total_bytes:
            raise too_large(f"the package unpacks to more than {limits.total_bytes} bytes", f"reached at {path!r}")
        entry = Entry(path, size, bool(header.mode & 0o111), inflated, size)
        yield entry
        inflated.skip(entry._left + _padded(size) - size, path)


def checked_path(name: str, limits: Limits) -> str:
    """The name as a relative path, or `Invalid` (code `package.unsafe`) saying what is wrong with it."""
    path = name.removeprefix("./").rstrip("/")
    if path in ("", "."):
        return "."
    problem = None
    if path.startswith("/"):
        problem = "its name is absolute"
    elif "\\" in path:
        problem = "its name holds a backslash"
    elif any(ord(letter) < 32 or ord(letter) == 127 or 0xD800 <= ord(letter) <= 0xDFFF for letter in path):
        problem = "its name holds a control character or is not UTF-8"
    elif any(part in ("", ".", "..") for part in path.split("/")):
        problem = "its name holds '..', '.' or an empty part"
    elif len(path.encode()) > limits.name_bytes or any(len(part.encode()) > 255 for part in path.split("/")):
        problem = f"its name is longer than {limits.name_bytes} bytes, or one part of it longer than 255"
    elif path.count("/") > limits.depth:
        problem = f"it lies deeper than {limits.depth} folders"
    if problem:
        raise unsafe(path, problem)
    return path


def unsafe(path: str, cause: str) -> errors.Invalid:
    shown = path if len(path) <= 120 else path[:117] + "..."
    return errors.Invalid(
        f"the package entry {shown!r} is refused",
        code="package.unsafe",
        cause=cause,
        next_step="pack plain files only, for instance with: nexus ai agent deploy",
    )


def too_large(message: str, cause: str) -> errors.Invalid:
    return errors.Invalid(
        message,
        code="package.too_large",
        cause=cause,
        next_step="name what the agent does not need in a .nexusignore file",
    )


def invalid(cause: str) -> errors.Invalid:
    return errors.Invalid(
        "the package is not a readable gzipped tar", code="package.invalid", cause=cause, next_step="pack it again"
    )


@dataclass(slots=True)
class _Names:
    """Refuses a name that comes twice, and a file that is also a folder of another."""

    limits: Limits
    files: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)

    def add(self, path: str) -> None:
        if path == ".":
            raise unsafe(path, "it has no name")
        parents = [path[:at] for at, letter in enumerate(path) if letter == "/"]
        if path in self.files or path in self.folders or any(parent in self.files for parent in parents):
            raise unsafe(path, "its name comes twice")
        self.files.add(path)
        self.folders.update(parents)
        if len(self.files) > self.limits.files:
            raise too_large(f"the package holds more than {self.limits.files} files", f"reached at {path!r}")


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    mode: int
    size: int
    kind: bytes


def _headers(inflated: "_Inflated") -> Iterator[tuple[_Header, str]]:
    """Headers with the name that counts; pax and GNU long-name blocks are taken into the header they precede."""
    long_name: str | None = None
    size: int | None = None
    for _ in iter(int, 1):
        block = inflated.read_block()
        if block is None or not any(block):
            return
        header = _parse_header(block)
        if header.kind in (b"L", b"x", b"X", b"g"):
            content = _small(inflated, header)
            if header.kind == b"L":
                long_name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif header.kind != b"g":
                records = _pax_records(content)
                if any(name.startswith("GNU.sparse") for name in records):
                    raise unsafe(header.name, "it is a sparse file")
                long_name = records.get("path", long_name)
                size = _number(records["size"]) if "size" in records else size
            continue
        if size is not None:
            header = _Header(header.name, header.mode, size, header.kind)
        yield header, header.name if long_name is None else long_name
        long_name = size = None


def _small(inflated: "_Inflated", header: _Header) -> bytes:
    if header.size > _LONGEST_HEADER:
        raise invalid(f"an extended header has {header.size} bytes")
    content = b"".join(inflated.pieces(header.size, "an extended header"))
    inflated.skip(_padded(header.size) - header.size, "an extended header")
    return content


def _parse_header(block: bytes) -> _Header:
    stored = _octal(block[148:156])
    if stored != sum(block) - sum(block[148:156]) + 8 * 32:
        raise invalid("a header's checksum is wrong")
    name = block[:100].split(b"\0", 1)[0]
    if block[257:262] == b"ustar" and block[257:265] != b"ustar  \0":
        prefix = block[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    return _Header(name.decode("utf-8", "surrogateescape"), _octal(block[100:108]), _octal(block[124:136]), block[156:157])


def _octal(value: bytes) -> int:
    text = value.split(b"\0", 1)[0].strip()
    if not text:
        return 0
    if not all(48 <= digit <= 55 for digit in text):
        raise invalid("a number in a header is not octal")
    return int(text, 8)


def _pax_records(content: bytes) -> dict[str, str]:
    records = {}
    while content:
        length, _, _ = content.partition(b" ")
        size = _number(length.decode("ascii", "replace"))
        record = content[len(length) + 1 : size]
        if size <= len(length) + 1 or size > len(content) or not record.endswith(b"\n") or b"=" not in record:
            raise invalid("a pax header is malformed")
        name, _, value = record[:-1].partition(b"=")
        records[name.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        content = content[size:]
    return records


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise invalid("a number in a pax header is malformed")
    return int(text)


def _padded(size: int) -> int:
    return (size + _BLOCK - 1) // _BLOCK * _BLOCK


class _Inflated:
    """The uncompressed stream, counted: never more is inflated than the limits allow, and never much at once."""

    def __init__(self, source: BinaryIO, limits: Limits) -> None:
        self._source = source
        self._limits = limits
        self._most = limits.total_bytes + limits.files * 4 * _BLOCK + 1024 * 1024
        self._inflater = zlib.decompressobj(wbits=31)
        self._buffer = b""
        self._taken = self._made = 0

    def read(self, count: int, what: str) -> bytes:
        """Between 1 and `count` bytes; the end of the stream here is an error."""
        if not self._buffer and not self._fill():
            raise invalid(f"it ends in the middle of {what!r}")
        chunk, self._buffer = self._buffer[:count], self._buffer[count:]
        return chunk

    def pieces(self, count: int, what: str) -> Iterator[bytes]:
        while count:
            chunk = self.read(min(count, _CHUNK), what)
            count -= len(chunk)
            yield chunk

    def skip(self, count: int, what: str) -> None:
        for _ in self.pieces(count, what):
            pass

    def read_block(self) -> bytes | None:
        if not self._buffer and not self._fill():
            return None
        return b"".join(self.pieces(_BLOCK, "a header"))

    def _fill(self) -> bool:
        while not self._buffer:
            if self._inflater.eof:
                return False
            data = self._inflater.unconsumed_tail or self._source.read(_CHUNK)
            if not self._inflater.unconsumed_tail:
                self._taken += len(data)
            try:
                self._buffer = self._inflater.decompress(data, _CHUNK)
            except zlib.error as error:
                raise invalid(f"gzip: {error}") from error
            if not data and not self._buffer and not self._inflater.eof:
                raise invalid("the compressed data ends early")
            self._made += len(self._buffer)
            self._check()
        return True

    def _check(self) -> None:
        limits = self._limits
        if self._made > self._most:
            raise too_large(
                f"the package unpacks to more than {limits.total_bytes} bytes", "its contents or headers are too long"
            )
        if self._made > limits.ratio_from and self._made > limits.ratio * max(self._taken, 1):
            raise too_large(
                f"the package unpacks to more than {limits.ratio} times its size", "it looks like a decompression bomb"
            )
