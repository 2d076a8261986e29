"""A session's work directory as one tar stream: packed and unpacked in the session's own box, by its own user.

Nothing is judged here: whatever stands in the archive can only reach what the session can reach anyway. Links are kept as links,
sockets, FIFOs and devices are left out, files that vanish while they are read are passed over.
"""

import io
import os
import stat
import tarfile
from typing import IO

_BLOCK = 1024 * 1024


class TooLarge(Exception):
    """The work directory has more bytes than may be kept."""


def pack(folder: str, file: IO[bytes], *, most: int) -> int:
    """Write the archive; the bytes written. Raises `TooLarge` before it has written more than `most`, OSError."""
    counted = _Counted(file, most)
    with tarfile.open(fileobj=counted, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for directory, folders, names in os.walk(folder):
            for name in sorted([*folders, *names]):
                path = os.path.join(directory, name)
                _add(archive, path, os.path.relpath(path, folder))
    return counted.written


def _add(archive: tarfile.TarFile, path: str, name: str) -> None:
    try:
        found = os.lstat(path)
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            return
        archive.add(path, name, recursive=False)
    except (FileNotFoundError, PermissionError):
        return


def unpack(file: IO[bytes], folder: str) -> None:
    """Put everything of the archive below `folder`; what would land elsewhere, and what cannot be made, is passed over."""
    trusted = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}  # Python 3.11.4 and later
    with tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            member.name, member.mode = os.path.normpath(member.name), member.mode & 0o777
            outside = member.name.startswith(("/", "..")) or member.name == "."
            if outside or not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
                continue
            try:
                archive.extract(member, folder, **trusted)  # type: ignore[arg-type]
            except (tarfile.TarError, OSError):
                continue


class _Counted(io.RawIOBase):
    """A writer that ends when there is too much."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        super().__init__()
        self._file, self._most = file, most
        self.written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        self.written += len(data)
        if self.written > self._most:
            raise TooLarge(f"more than {self._most} bytes")
        self._file.write(data)
        return len(data)
