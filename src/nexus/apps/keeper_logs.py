"""The processes' log files, seen from the keeper: the newest lines merged for a terminal, and a bound on their size."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LARGEST = 8 * 1024 * 1024
_CHUNK = 256 * 1024


@dataclass(slots=True)
class Follower:
    """Whole lines appended to one file since the last look. A file that shrank was turned over and is read from its start."""

    path: Path
    offset: int = 0
    _rest: bytes = b""

    def skip(self) -> None:
        with contextlib.suppress(OSError):
            self.offset = self.path.stat().st_size

    def lines(self) -> Iterator[str]:
        try:
            size = self.path.stat().st_size
            if size == self.offset:
                return
            if size < self.offset:
                self.offset, self._rest = 0, b""
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                chunk = file.read(_CHUNK)
        except OSError:
            return
        self.offset += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _CHUNK:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            yield clean(line.decode("utf-8", "replace"))


def clean(line: str) -> str:
    """A line that cannot move the cursor or change the terminal: control characters are shown as escapes."""
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() or letter == "\t" else repr(letter)[1:-1] for letter in line.rstrip("\r"))


def tail(path: Path, count: int) -> list[str]:
    """The last lines of a file; empty when it cannot be read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 64 * 1024))
            text = file.read()
    except OSError:
        return []
    lines = [clean(line) for line in text.decode("utf-8", "replace").splitlines()]
    return [line for line in lines if line.strip()][-count:]


def bound(paths: Sequence[Path], largest: int = LARGEST) -> None:
    """Turn over every file that grew too large: its content moves to `<name>.1` and it begins again, its writer unaware.

    Writers append (O_APPEND), so cutting the file under them is safe; a line written in that instant may be lost.
    """
    for path in paths:
        with contextlib.suppress(OSError):
            if path.stat().st_size > largest:
                _turn_over(path)


def _turn_over(path: Path) -> None:
    older = path.with_name(f"{path.name}.1")
    try:
        kept = os.open(older, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(kept, "wb") as target, open(path, "rb") as source:
            while chunk := source.read(_CHUNK):
                target.write(chunk)
    except OSError:  # no room for the copy: the bound matters more than the old lines
        older.unlink(missing_ok=True)
    os.truncate(path, 0)
