"""What is kept of a session's work directory while it has no worker: one archive a session, put back before the next one.

The tree belonged to an agent, so nothing in it is trusted: it is walked by descriptors, never through a link, and only regular
files with plain names are taken. Called when every process of the session has ended, in a thread.
"""

import contextlib
import gzip
import hashlib
import os
import secrets
import shutil
import stat
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nexus.core import errors
from nexus.wire import archive, tar_stream

_MOST_FILES = 50_000
_MOST_TOLD = 20
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(slots=True)
class Saved:
    """What was kept, and the first names that were left out with the reason."""

    files: int = 0
    size: int = 0
    left_out: list[str] = field(default_factory=list)

    def leave_out(self, name: str, why: str) -> None:
        if len(self.left_out) < _MOST_TOLD:
            self.left_out.append(f"{name[:120]!r}: {why}")


class KeptFiles:
    """`root` is a folder of the home that no agent sees."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def place(self, tenant: str, agent: str, environment: str, session_id: str) -> Path:
        """Session ids are strangers' text, so the name is their digest."""
        name = hashlib.sha256(session_id.encode()).hexdigest()
        return self._root / tenant / agent / environment / f"{name}.tar.gz"

    def prune(self, *, now: float | None = None, default_s: float) -> int:
        """Forget what nobody came back for within `default_s`, and drafts of a save that was cut short. How many there were."""
        limit, gone = (time.time() if now is None else now) - default_s, 0
        for path in [*self._root.glob("*/*/*/*.tar.gz"), *self._root.glob("*/*/*/.*.draft")]:
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime < limit:
                    path.unlink()
                    gone += 1
        return gone

    def forget_agent(self, tenant: str, agent: str, environment: str | None = None) -> None:
        folder = self._root / tenant / agent
        shutil.rmtree(folder if environment is None else folder / environment, ignore_errors=True)


def save(work: Path, target: Path, *, most_bytes: int) -> Saved:
    """Keep the files under `work` as `target`, or leave what was kept before and raise `Exhausted` (`session.work_too_large`,
    `disk.full`). A save that is cut short leaves the earlier one whole."""
    told = Saved()
    draft = target.with_name(f".{target.name}.{secrets.token_hex(6)}.draft")
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(draft, "xb", opener=lambda path, flags: os.open(path, flags | os.O_CLOEXEC, 0o600)) as file:
            with (
                gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0, filename="") as compressed,
                tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as out,
            ):
                for name, fd in _files(work, told):
                    _add(out, name, fd, told, most_bytes)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except OSError as error:
        raise errors.Exhausted(
            "the work directory of a session cannot be kept",
            code="disk.full" if error.errno in (28, 122) else "session.not_saved",
            phase="stop",
            cause=error.strerror or str(error),
            next_step="free some space on the host's disk",
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return told


def restore(target: Path, work: Path, *, owner: int | None, most_bytes: int) -> bool:
    """Put back what was kept into `work`, which must be absent or empty; False when nothing was. `owner`: whose it becomes.

    Raises `Invalid` (`package.*`) when the archive is not one of ours, `Exhausted` (`disk.full`).
    """
    if not target.exists():
        return False
    with contextlib.suppress(FileNotFoundError):
        work.rmdir()
    limits = tar_stream.Limits(
        files=_MOST_FILES, file_bytes=most_bytes, total_bytes=most_bytes, ratio=1_000_000, ratio_from=most_bytes
    )
    archive.unpack(target, work, limits=limits)
    os.chmod(work, 0o700)
    if owner is not None:
        for folder, _, files in os.walk(work):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                os.chown(path, owner, owner, follow_symlinks=False)
    os.utime(target)
    return True


def _add(out: tarfile.TarFile, name: str, fd: int, told: Saved, most_bytes: int) -> None:
    found = os.fstat(fd)
    told.files, told.size = told.files + 1, told.size + found.st_size
    if told.size > most_bytes or told.files > _MOST_FILES:
        raise errors.Exhausted(
            "the work directory of a session is too large to be kept",
            code="session.work_too_large",
            phase="stop",
            cause=f"it holds more than {most_bytes} bytes or {_MOST_FILES} files, reached at {name[:120]!r}",
            next_step="raise hosting.session.work_size in config.yaml, or remove what is not needed",
        )
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = found.st_size, found.st_mode & 0o700 | 0o600, int(found.st_mtime)
    with open(fd, "rb", closefd=False) as file:
        out.addfile(entry, file)


def _files(work: Path, told: Saved) -> Iterator[tuple[str, int]]:
    """Each regular file with a plain name, by its path and an open descriptor."""
    limits = tar_stream.Limits()
    root = os.open(work, _OPEN_FOLDER)
    stack: list[tuple[str, int]] = [("", root)]
    try:
        while stack:
            prefix, folder = stack.pop()
            try:
                yield from _folder(prefix, folder, stack, told, limits)
            finally:
                os.close(folder)
    finally:
        for _, folder in stack:
            os.close(folder)


def _folder(
    prefix: str, folder: int, stack: list[tuple[str, int]], told: Saved, limits: tar_stream.Limits
) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        path = prefix + name
        try:
            tar_stream.checked_path(path, limits)
        except errors.Invalid as error:
            told.leave_out(path.encode("utf-8", "replace").decode(), error.cause or "its name")
            continue
        try:
            kind = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            if stat.S_ISDIR(kind):
                if len(stack) < 512:
                    stack.append((f"{path}/", os.open(name, _OPEN_FOLDER, dir_fd=folder)))
                else:
                    told.leave_out(path, "too many folders beside each other")
                continue
            if not stat.S_ISREG(kind):
                told.leave_out(path, "only regular files are kept")
                continue
            fd = os.open(name, _OPEN_FILE, dir_fd=folder)
        except OSError as error:
            told.leave_out(path, error.strerror or str(error))
            continue
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                yield path, fd
        finally:
            os.close(fd)
