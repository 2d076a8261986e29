"""PostgreSQL that the host brings along: one cluster per home, on a unix socket only, behind a random password.

`locate` says where it is and how to reach it without touching it; `prepare` makes it ready to be started (initdb once,
leftovers of a kill cleared) and says what to execute. The keeper calls the first, `apps.host_postgres` the second.
"""

import contextlib
import hashlib
import json
import os
import pwd
import re
import secrets
import shutil
import subprocess
import tempfile
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from nexus.core import errors
from nexus.kit.home import Home
from nexus.stores import embedded_binaries, embedded_leftovers

USER = DATABASE = "nexus"
_SYSTEM_USER = "nexus-postgres"
OUTSIDE = Path("/var/lib/nexus")
_LONGEST_SOCKET = 107 - len("/.s.PGSQL.5432.lock")
_SETTINGS = """\
# Written at every start by the host. Put settings of your own into tuned.conf beside this file.
listen_addresses = ''
unix_socket_directories = '{sockets}'
unix_socket_permissions = 0700
max_connections = 100
superuser_reserved_connections = 3
shared_buffers = 32MB
work_mem = 4MB
maintenance_work_mem = 32MB
effective_cache_size = 512MB
fsync = on
synchronous_commit = on
recovery_init_sync_method = syncfs
wal_level = minimal
max_wal_senders = 0
max_replication_slots = 0
max_logical_replication_workers = 0
max_wal_size = 256MB
min_wal_size = 32MB
max_worker_processes = 2
max_parallel_workers = 0
max_parallel_workers_per_gather = 0
autovacuum_max_workers = 2
jit = off
huge_pages = off
timezone = 'UTC'
log_timezone = 'UTC'
log_destination = 'stderr'
logging_collector = off
log_line_prefix = '%m [%p] '
log_min_messages = warning
log_checkpoints = off
idle_in_transaction_session_timeout = 60s
{by_version}include_if_exists 'tuned.conf'
"""
_HBA = "# Written by the host: the socket only, and only with the password.\nlocal all all scram-sha-256\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a home's cluster lives. `uri` is a libpq URI and holds the password, so it is never shown."""

    data: Path
    sockets: Path
    user: str | None
    password: str

    @property
    def uri(self) -> str:
        host = urllib.parse.quote(str(self.sockets), safe="")
        return f"postgresql://{USER}:{self.password}@/{DATABASE}?host={host}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What to execute, as whom (None: as oneself), and which PostgreSQL it is."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    user: pwd.struct_passwd | None
    binaries: embedded_binaries.Binaries


def locate(home: Home) -> Place:
    """The place for this home, decided at the first call and kept in `postgres.json` (0600) for ever.

    An ordinary user's data are in the home. As root the server runs as a user of its own; where that user cannot reach
    the home (`/root/.nexus`), the data are in a directory of their own under /var/lib/nexus.
    """
    record = _read_record(home)
    root = os.geteuid() == 0
    if record is None:
        outside = root and not embedded_binaries.is_path_open(home.root.parent.resolve())
        identity = secrets.token_hex(8)
        record = {
            "id": identity,
            "outside": str(OUTSIDE / identity) if outside else "",
            "password": secrets.token_urlsafe(32).replace("-", "a").replace("_", "b"),
        }
        record = _write_record(home, record)
    base = Path(record["outside"]) if record["outside"] else home.root
    return Place(
        data=base / "postgres",
        sockets=_sockets(home, base, record["id"], root=root),
        user=_SYSTEM_USER if root else None,
        password=record["password"],
    )


def is_located(home: Home) -> bool:
    """Whether this home's place was decided already; asking decides nothing."""
    return (home.root / "postgres.json").exists()


def prepare(home: Home) -> Launch:
    """Bring the cluster into a state in which it can be started; blocking, half a second the first time, else milliseconds."""
    place = locate(home)
    claim(home)
    user = _system_user(place) if place.user else None
    major = read_version(place.data)
    binaries = embedded_binaries.choose(embedded_binaries.find_all(), major=major)
    if user is not None:
        _open_outside()
        binaries = embedded_binaries.make_reachable(binaries, shelf=OUTSIDE)
    environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "TZ": "UTC"}
    _open_way(place, user)
    if major is None:
        _initialise(place, binaries, user, environment)
    embedded_leftovers.clear(place.data)
    _make_socket_directory(place.sockets, user)
    _write_owned(place.data / "postgresql.conf", render_settings(place.sockets, binaries.major), user)
    _write_owned(place.data / "pg_hba.conf", _HBA, user)
    if not (place.data / "tuned.conf").exists():
        _write_owned(place.data / "tuned.conf", "# Settings of your own; read last.\n", user)
    return Launch(argv=(str(binaries.postgres), "-D", str(place.data)), environment=environment, user=user, binaries=binaries)


def discard(home: Home) -> None:
    """Delete the cluster of a stopped host for good, wherever it is; the home itself stays. For those who remove a home."""
    if not is_located(home):
        return
    place = locate(home)
    embedded_leftovers.clear(place.data)
    shutil.rmtree(place.sockets, ignore_errors=True)
    base = place.data.parent
    if base == home.root:
        shutil.rmtree(place.data, ignore_errors=True)
    else:
        claim(home)
        shutil.rmtree(base, ignore_errors=True)
    (home.root / "postgres.json").unlink(missing_ok=True)


def render_settings(sockets: Path, major: int) -> str:
    """The whole postgresql.conf."""
    by_version = "io_method = sync\n" if major >= 18 else ""
    return _SETTINGS.format(sockets=str(sockets).replace("'", "''"), by_version=by_version)


def _initialise(
    place: Place, binaries: embedded_binaries.Binaries, user: pwd.struct_passwd | None, environment: dict[str, str]
) -> None:
    """Make the cluster beside its final place and move it there when it is whole, so that a kill leaves nothing half made."""
    fresh = place.data.with_name("postgres.new")
    embedded_leftovers.clear(fresh)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    _give(fresh, user)
    locale = ["--locale=C"]
    if binaries.major >= 17:
        locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    options = ["--encoding=UTF8", "--auth=trust", "--no-instructions", *locale]
    _run([str(binaries.initdb), "-D", str(fresh), "-U", USER, *options], "", user, environment)
    commands = f"ALTER ROLE {USER} PASSWORD '{place.password}'\nCREATE DATABASE {DATABASE}\n"
    _run([str(binaries.postgres), "--single", "-j", "-D", str(fresh), "postgres"], _statements(commands), user, environment)
    fresh.rename(place.data)


def _statements(commands: str) -> str:
    """Single-user mode with -j ends a statement at a semicolon and an empty line."""
    return "".join(f"{command};\n\n" for command in commands.splitlines())


def _run(argv: list[str], text: str, user: pwd.struct_passwd | None, environment: dict[str, str]) -> None:
    """Raises Unavailable with the last lines of the program's own words."""
    try:
        answer = subprocess.run(
            argv,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            cwd="/",
            timeout=120,
            check=False,
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
            umask=0o077,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise errors.Unavailable(
            f"{os.path.basename(argv[0])} could not be run", code="database.init_failed", cause=str(error)
        ) from error
    if answer.returncode or re.search(r"^.*(FATAL|PANIC|ERROR): ", answer.stdout, re.MULTILINE):
        lines = [line for line in answer.stdout.splitlines() if line.strip()]
        raise errors.Unavailable(
            f"{os.path.basename(argv[0])} failed while the database was being made",
            code="database.init_failed",
            phase="database",
            cause=lines[-1] if lines else f"exit code {answer.returncode}",
            log_tail=lines[-10:],
            next_step="run nexus doctor: it names what is missing (disk space, permissions), or set NEXUS_DATABASE_URL",
        )


def read_version(data: Path) -> int | None:
    """The major version that wrote these data; None when there are none. Raises Unavailable (`database.unreadable`)."""
    try:
        return int((data / "PG_VERSION").read_text().split(".")[0])
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise errors.Unavailable(
            f"the database at {data} cannot be read", code="database.unreadable", cause=str(error)
        ) from error


def _read_record(home: Home) -> dict[str, str] | None:
    try:
        record = json.loads((home.root / "postgres.json").read_text())
        return {name: str(record[name]) for name in ("id", "outside", "password")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.Unavailable(
            f"{home.root}/postgres.json cannot be read, and it holds the password of the database",
            code="database.unreadable",
            cause=f"{type(error).__name__}: {error}",
            next_step="restore the file from a backup of this home",
        ) from error


def _write_record(home: Home, record: dict[str, str]) -> dict[str, str]:
    """Whoever links the file first decides; everybody then reads the same one."""
    home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = home.root / f".postgres.json.{os.getpid()}"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    try:
        with contextlib.suppress(FileExistsError):
            os.link(fresh, home.root / "postgres.json")
    finally:
        fresh.unlink(missing_ok=True)
    return _read_record(home) or record


def _sockets(home: Home, base: Path, identity: str, *, root: bool) -> Path:
    """As oneself inside the private run directory; for a user of its own beside the data, or under /tmp when that is too deep."""
    if not root:
        return home.run / "pg"
    beside = base / "postgres-run"
    if len(os.fsencode(beside)) <= _LONGEST_SOCKET:
        return beside
    return Path("/tmp") / f"nexus-pg-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"  # noqa: S108 - owner is checked


def claim(home: Home) -> None:
    """A copied home must not start a second server on the data that the first one keeps outside (`database.shared`)."""
    base = locate(home).data.parent
    if base == home.root:
        return
    remove_abandoned()
    _open_outside()
    base.mkdir(mode=0o711, exist_ok=True)
    mark = base / "home"
    with contextlib.suppress(FileNotFoundError):
        other = Home(Path(mark.read_text()))
        if other.root != home.root and (other.root / "postgres.json").exists() and _read_record(other) == _read_record(home):
            raise errors.Conflict(
                f"the database of {home.root} belongs to {other.root}",
                code="database.shared",
                cause=f"{home.root} is a copy of that home, and its data are kept in {base}",
                next_step=f"use NEXUS_HOME={other.root}, or remove {home.root}/postgres.json to begin with an empty database",
            )
    mark.write_text(str(home.root))


def _open_outside() -> None:
    """The folder of all such data, which the server's user has to pass through whatever this process' umask is."""
    OUTSIDE.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not OUTSIDE.stat().st_mode & 0o001:
        OUTSIDE.chmod(0o755)


def find_abandoned() -> list[tuple[Path, Path]]:
    """Folders kept outside whose home is gone, each with the path of that home."""
    found = []
    for mark in sorted(OUTSIDE.glob("*/home")):
        with contextlib.suppress(OSError):
            home = Path(mark.read_text().strip())
            if not (home / "postgres.json").exists():
                found.append((mark.parent, home))
    return found


def remove_abandoned() -> None:
    """Delete the data of homes in the temporary directory that are gone: nobody can come back to them.

    A home that is gone from elsewhere may be on a disk that is not mounted, so its data stay and the doctor names them.
    """
    temporary = Path(tempfile.gettempdir()).resolve()
    for folder, home in find_abandoned():
        if temporary in home.parents and not embedded_leftovers.processes_in(folder / "postgres"):
            shutil.rmtree(folder, ignore_errors=True)


def _system_user(place: Place) -> pwd.struct_passwd:
    """The user that owns the data already, else our own, made when absent, else nobody."""
    with contextlib.suppress(FileNotFoundError, KeyError):
        if (owner := place.data.stat().st_uid) != 0:
            return pwd.getpwuid(owner)
    for name in (_SYSTEM_USER, "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
        if name == _SYSTEM_USER and (useradd := shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin")):
            subprocess.run(
                [useradd, "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", _SYSTEM_USER],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=20,
                check=False,
            )
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name)
    raise errors.Unavailable(
        "PostgreSQL refuses to run as root and there is no other user to run it as",
        code="database.no_user",
        next_step=f"useradd --system {_SYSTEM_USER}, or set NEXUS_DATABASE_URL",
    )


def _open_way(place: Place, user: pwd.struct_passwd | None) -> None:
    """Let the server's user pass through the folder that holds its data; files in there stay private by their own modes."""
    base = place.data.parent
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    if user is not None and not base.stat().st_mode & 0o001:
        base.chmod(base.stat().st_mode | 0o111)


def _make_socket_directory(path: Path, user: pwd.struct_passwd | None) -> None:
    """0700 and owned by the server's user; one that somebody else made first (under /tmp) is refused."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    owner = user.pw_uid if user else os.geteuid()
    found = path.lstat()
    if path.is_symlink() or found.st_uid not in (owner, os.geteuid()):
        raise errors.Unavailable(
            f"{path} belongs to somebody else", code="home.unsafe", next_step=f"remove {path} and start again"
        )
    path.chmod(0o700)
    _give(path, user)
    for name in (".s.PGSQL.5432", ".s.PGSQL.5432.lock"):
        (path / name).unlink(missing_ok=True)


def _write_owned(path: Path, text: str, user: pwd.struct_passwd | None) -> None:
    fresh = path.with_name(f"{path.name}.fresh")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(text)
    _give(fresh, user)
    fresh.rename(path)


def _give(path: Path, user: pwd.struct_passwd | None) -> None:
    if user is not None:
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
