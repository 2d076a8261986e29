"""The host's side of the box: make `<target>/<digest>/{boot.py, lib/, site/}` from the packages the host itself runs on.

Called by the supervisor and by `nexus ai agent dev`. Standard library only. A copy is built beside its final name and
renamed, so it is whole or absent; the digest covers every byte, so another host version makes another copy.
"""

import compileall
import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import nexus
from nexus.core import errors

LIGHT = ("core", "kit", "ports", "wire", "ai", "client", "worker")
REQUIRED = ("uvicorn", "h11", "click", "typing_extensions")
OPTIONAL = (
    "httptools",
    "uvloop",
    "opentelemetry-api",
    "opentelemetry-sdk",
    "opentelemetry-semantic-conventions",
    "importlib_metadata",
    "zipp",
)
BOX = ("__init__", "box_calls", "box_filter", "box_landlock", "box_relay", "box_root", "box_session")  # of drivers.process
_SKIPPED_SUFFIXES = (".pyc", ".pyi", ".pyx", ".pxd", ".c", ".h")
_SKIPPED_FOLDERS = frozenset({"__pycache__", "tests", "test"})


def build_worker_copy(target: Path) -> Path:
    """The copy's folder, built unless it is there. Safe to call from several processes at once.

    Raises `Unavailable` (code `worker.incomplete`) when the host lacks a package the worker needs, OSError when the disk refuses.
    """
    files = sorted(_collect())
    digest = _digest(files)
    final = target / digest
    if (final / "boot.py").is_file():
        return final
    target.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=target))
    try:
        for name, source in files:
            place = building / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)
        compileall.compile_dir(building, quiet=2, stripdir=building, prependdir=final)
        _open_to_readers(building)
        with contextlib.suppress(OSError):
            building.rename(final)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    if not (final / "boot.py").is_file():
        raise OSError(f"the worker copy {final} could not be put in place; remove it and try again")
    return final


def _collect() -> Iterator[tuple[str, Path]]:
    """Every file of the copy: its name inside, and where it comes from."""
    package = Path(nexus.__file__).resolve().parent
    yield "boot.py", package / "worker" / "boot.py"
    driver = package / "drivers" / "process"
    for name in ("session_boot.py", "oci_start.py"):
        yield name, driver / name
    yield "lib/nexus/drivers/__init__.py", package / "drivers" / "__init__.py"
    for name in BOX:
        yield f"lib/nexus/drivers/process/{name}.py", driver / f"{name}.py"
    yield "lib/nexus/__init__.py", package / "__init__.py"
    for part in LIGHT:
        for path in sorted((package / part).rglob("*")):
            if path.is_file() and path.suffix == ".py":
                yield f"lib/nexus/{path.relative_to(package).as_posix()}", path
    for name in REQUIRED:
        found = list(_distribution_files(name))
        if not found:
            raise errors.Unavailable(
                f"the package {name} is missing on the host",
                code="worker.incomplete",
                phase="build",
                next_step="reinstall: pip install --force-reinstall 'nexus-agent-hosting[server]'",
            )
        yield from found
    for name in OPTIONAL:
        yield from _distribution_files(name)


def _distribution_files(name: str) -> Iterator[tuple[str, Path]]:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return
    for entry in distribution.files or ():
        if entry.is_absolute() or ".." in entry.parts or _skipped(entry.parts):
            continue
        path = Path(str(distribution.locate_file(entry)))
        if path.is_file():
            yield f"site/{entry.as_posix()}", path


def _skipped(parts: Sequence[str]) -> bool:
    return (
        parts[-1].endswith(_SKIPPED_SUFFIXES)
        or not _SKIPPED_FOLDERS.isdisjoint(parts)
        or parts[-1] in ("RECORD", "direct_url.json")
    )


def _digest(files: Sequence[tuple[str, Path]]) -> str:
    whole = hashlib.sha256()
    for name, path in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        whole.update(f"{name}\0{content}\n".encode())
    return whole.hexdigest()[:32]


def _open_to_readers(folder: Path) -> None:
    """Whoever runs agents may read the copy, and nobody but the host's user may change it."""
    for directory, _, names in os.walk(folder):
        Path(directory).chmod(0o755)
        for name in names:
            Path(directory, name).chmod(0o644)
