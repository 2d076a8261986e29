"""Packages: a folder as a deterministic gzipped tar of regular files, its digest, and a safe way back to a folder.

The CLI packs, control checks and stores, a node unpacks. The same files give the same bytes and the same digest anywhere.
"""

import errno
import gzip
import hashlib
import io
import os
import re
import secrets
import shutil
import stat
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nexus.core import errors
from nexus.wire import tar_stream
from nexus.wire.tar_stream import Entry, Limits

__all__ = [
    "DEFAULT_IGNORED",
    "IGNORE_FILE",
    "Entry",
    "Limits",
    "Packed",
    "digest_of",
    "list_files",
    "pack",
    "read_file",
    "unpack",
]

IGNORE_FILE = ".nexusignore"
DEFAULT_IGNORED = (
    ".git/", ".hg/", ".svn/", "__pycache__/", "*.pyc", "*.pyo", ".venv/", "venv/", "node_modules/", ".env", ".env.*",
    "!.env.example", ".nexus/", ".mypy_cache/", ".pytest_cache/", ".ruff_cache/", ".tox/", ".nox/", "/dist/", "/build/",
    "*.egg-info/", ".DS_Store", ".idea/", ".vscode/",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A packed folder. `files` counts files; `warnings` names what was left out and should perhaps not have been."""

    data: bytes
    digest: str
    files: int
    warnings: tuple[str, ...] = ()


def pack(folder: Path, *, limits: Limits | None = None, replace: Mapping[str, bytes] | None = None) -> Packed:
    """The folder without what `DEFAULT_IGNORED` and its `.nexusignore` (gitignore patterns) leave out.

    Links to files inside the folder become files; other links and special files are left out with a warning.
    A file named in `replace` is packed with that content instead of its own.
    Raises `Invalid`: `package.invalid` (not a folder, empty, unreadable) or `package.too_large`.
    """
    limits = limits or Limits()
    if not folder.is_dir():
        raise errors.Invalid(f"{folder} is not a folder", code="package.invalid", next_step="name the folder of the agent")
    found, warnings = _find(folder, limits)
    if not found:
        raise errors.Invalid(
            f"{folder} holds no file to pack", code="package.invalid", next_step="check the folder and its .nexusignore"
        )
    lines: list[tuple[str, bool, str]] = []
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6, mtime=0, filename="") as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in found:
            content, executable = _read(folder / path)
            content = (replace or {}).get(path, content)
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o755 if executable else 0o644
            archive.addfile(entry, io.BytesIO(content))
            lines.append((path, executable, hashlib.sha256(content).hexdigest()))
    return Packed(data=buffer.getvalue(), digest=_digest(lines), files=len(lines), warnings=tuple(warnings))


def digest_of(data: bytes | Path, *, limits: Limits | None = None) -> str:
    """SHA-256 over the sorted (path, executable bit, SHA-256 of content) of a package; checks all of it on the way."""
    lines = []
    with _open(data) as source:
        for entry in tar_stream.entries(source, limits or Limits()):
            content = hashlib.sha256()
            for chunk in entry.chunks():
                content.update(chunk)
            lines.append((entry.path, entry.executable, content.hexdigest()))
    return _digest(lines)


def list_files(data: bytes | Path, *, limits: Limits | None = None) -> list[str]:
    """The paths in a package, in its order."""
    with _open(data) as source:
        return [entry.path for entry in tar_stream.entries(source, limits or Limits())]


def read_file(data: bytes | Path, name: str, *, limits: Limits | None = None, most: int = 16 * 1024 * 1024) -> bytes | None:
    """One file's content out of a package; None when it is not there. `Invalid` when it has more than `most` bytes."""
    with _open(data) as source:
        for entry in tar_stream.entries(source, limits or Limits()):
            if entry.path == name:
                if entry.size > most:
                    raise tar_stream.too_large(f"{name!r} has {entry.size} bytes", f"at most {most} are read")
                return b"".join(entry.chunks())
    return None


def unpack(data: bytes | Path, target: Path, *, limits: Limits | None = None) -> None:
    """The package's files under `target`, which must be absent or empty. All or nothing: a failure leaves no trace.

    Modes become 0644 or 0755. Raises `Invalid` (`package.*`), `Conflict` (`package.exists`), `Exhausted` (`disk.full`).
    """
    building = target.parent / f".{target.name}.{secrets.token_hex(6)}.unpacking"
    try:
        building.mkdir(parents=True, mode=0o755)
        with _open(data) as source:
            for entry in tar_stream.entries(source, limits or Limits()):
                _write(building / entry.path, entry)
        os.rename(building, target)
    except OSError as error:
        raise _translate(error, target) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write(path: Path, entry: Entry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o644), "wb") as file:
        for chunk in entry.chunks():
            file.write(chunk)
        os.fchmod(file.fileno(), 0o755 if entry.executable else 0o644)


def _translate(error: OSError, target: Path) -> errors.NexusError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.Exhausted(
            f"no space left to unpack into {target.parent}",
            code="disk.full",
            cause=os.strerror(error.errno or 0),
            next_step="free some space, then try again",
        )
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
        return errors.Conflict(f"{target} exists already", code="package.exists", next_step="remove it or choose another folder")
    return errors.Internal(f"cannot unpack into {target}", code="package.unpack_failed", cause=str(error))


@contextmanager
def _open(data: bytes | Path) -> Iterator[BinaryIO]:
    if isinstance(data, Path):
        try:
            source: BinaryIO = data.open("rb")
        except OSError as error:
            raise errors.NotFound(f"there is no package {data.name}", code="package.not_found", cause=error.strerror) from error
    else:
        source = io.BytesIO(data)
    with source:
        yield source


def _digest(lines: list[tuple[str, bool, str]]) -> str:
    whole = hashlib.sha256()
    for path, executable, content in sorted(lines):
        whole.update(f"{path}\0{int(executable)}\0{content}\n".encode())
    return whole.hexdigest()


def _read(path: Path) -> tuple[bytes, bool]:
    try:
        with path.open("rb") as file:
            return file.read(), bool(os.fstat(file.fileno()).st_mode & 0o111)
    except OSError as error:
        raise errors.Invalid(f"cannot read {path}", code="package.invalid", cause=error.strerror) from error


def _find(folder: Path, limits: Limits) -> tuple[list[str], list[str]]:
    """Relative paths to pack, sorted, and warnings."""
    ignored = _Ignored([*DEFAULT_IGNORED, *_ignore_lines(folder)])
    found: list[str] = []
    warnings: list[str] = []
    total = 0
    root = folder.resolve()
    for where, folders, files in os.walk(folder):
        at = os.path.relpath(where, folder)
        prefix = "" if at == "." else at + "/"
        _keep_folders(Path(where), prefix, folders, ignored, warnings)
        for name in sorted(files):
            path = prefix + name
            if ignored.matches(path, folder=False) or not _is_packable(folder / path, path, root, warnings):
                continue
            tar_stream.checked_path(path, limits)
            size = (folder / path).stat().st_size
            total += size
            found.append(path)
            if size > limits.file_bytes:
                raise tar_stream.too_large(f"{path!r} has {size} bytes", f"one file may have {limits.file_bytes} bytes")
            if total > limits.total_bytes or len(found) > limits.files:
                raise tar_stream.too_large(
                    f"{folder} has more than {limits.total_bytes} bytes or {limits.files} files", f"reached at {path!r}"
                )
    return sorted(found), warnings


def _keep_folders(where: Path, prefix: str, folders: list[str], ignored: "_Ignored", warnings: list[str]) -> None:
    kept = []
    for name in sorted(folders):
        if ignored.matches(prefix + name, folder=True):
            continue
        if (where / name).is_symlink():
            warnings.append(f"{prefix}{name}: a link to a folder is left out")
            continue
        kept.append(name)
    folders[:] = kept


def _is_packable(file: Path, path: str, root: Path, warnings: list[str]) -> bool:
    try:
        target = file.resolve(strict=True)
        mode = target.stat().st_mode
    except OSError as error:
        warnings.append(f"{path}: left out ({error.strerror or 'a link that leads nowhere'})")
        return False
    if file.is_symlink() and not target.is_relative_to(root):
        warnings.append(f"{path}: a link that leads outside the folder is left out")
        return False
    if not stat.S_ISREG(mode):
        warnings.append(f"{path}: not a regular file, left out")
        return False
    return True


def _ignore_lines(folder: Path) -> list[str]:
    try:
        return (folder / IGNORE_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


class _Ignored:
    """Gitignore patterns of one folder: the last one that matches decides; `!` takes back. Source: gitignore(5)."""

    def __init__(self, lines: list[str]) -> None:
        self._rules: list[tuple[re.Pattern[str], bool, bool]] = []
        for line in lines:
            pattern = line.strip()
            if not pattern or pattern.startswith("#"):
                continue
            keep = pattern.startswith("!")
            pattern = pattern[1:] if keep else pattern
            only_folder = pattern.endswith("/")
            self._rules.append((re.compile(_pattern(pattern.rstrip("/"))), only_folder, keep))

    def matches(self, path: str, *, folder: bool) -> bool:
        ignored = False
        for pattern, only_folder, keep in self._rules:
            if (folder or not only_folder) and pattern.fullmatch(path):
                ignored = not keep
        return ignored


def _pattern(glob: str) -> str:
    anchored = "/" in glob
    glob = glob.removeprefix("/")
    out, at = ("" if anchored else "(?:.*/)?"), 0
    while at < len(glob):
        if glob.startswith("**/", at):
            out, at = out + "(?:.*/)?", at + 3
        elif glob.startswith("**", at):
            out, at = out + ".*", at + 2
        elif glob[at] == "[" and "]" in glob[at + 2 :]:
            end = glob.index("]", at + 2)
            letters = glob[at + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            out, at = out + "[" + ("^" + letters[1:] if letters[0] == "!" else letters) + "]", end + 1
        else:
            out, at = out + {"*": "[^/]*", "?": "[^/]"}.get(glob[at], re.escape(glob[at])), at + 1
    return out
