"""The host's record on disk (`host.json`), the lock that makes it the only one, and process identities that survive a kill."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nexus.core import errors
from nexus.kit.home import Home


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """One process. `ticks` is its start time as the kernel counts it: pid and ticks together never name another process."""

    name: str
    pid: int
    ticks: int
    started_at: float
    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRecord:
    """What is running. `database` is `embedded` or `external`; `stopping` tells the guardian not to start a new keeper.

    `tls_certificate` is the file (PEM) with which the port speaks TLS; clients on this machine trust it.
    """

    origin: str
    pid: int
    ticks: int
    started_at: float
    host: str
    port: int
    gateways: int
    database: str
    boot: str
    version: str
    processes: tuple[ProcessRecord, ...] = ()
    ready: bool = False
    stopping: bool = False
    tls_certificate: str | None = None
    dispatchers: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


def certificate_of(record: HostRecord) -> Path | None:
    return None if record.tls_certificate is None else Path(record.tls_certificate)


def read(home: Home) -> HostRecord | None:
    """The record, or None when there is none, it is torn, or it is from before a reboot."""
    try:
        value = json.loads(home.host_record.read_text())
        processes = tuple(ProcessRecord(**entry) for entry in value.pop("processes"))
        record = HostRecord(**value, processes=processes)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return record if record.boot == boot_id() else None


def write(home: Home, record: HostRecord) -> None:
    """Replace the record as a whole (0600). Raises OSError when the disk is full; the old record then stands."""
    fresh = home.host_record.with_name(f".host.json.{os.getpid()}")
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(record), file, indent=1)
        fresh.replace(home.host_record)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def remove(home: Home) -> None:
    home.host_record.unlink(missing_ok=True)


def boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def ticks_of(pid: int) -> int | None:
    """When process `pid` started, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def open_process(pid: int, ticks: int) -> int | None:
    """A pidfd of exactly this process, or None when it is gone (the id may have been given to another since)."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return None
    if ticks_of(pid) != ticks:
        os.close(handle)
        return None
    return handle


def is_alive(process: ProcessRecord | HostRecord) -> bool:
    return ticks_of(process.pid) == process.ticks


@contextlib.contextmanager
def hold_lock(home: Home, *, patience_s: float = 0.0) -> Iterator[None]:
    """Be the only keeper of this home. Raises Conflict (`host.running`) that names the running one.

    `patience_s`: a keeper that is just ending gets that long to let go.
    """
    handle = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + patience_s
        while not _try_lock(handle):
            if time.monotonic() >= deadline:
                raise _running(home)
            time.sleep(0.02)
        yield
    finally:
        os.close(handle)


def is_locked(home: Home) -> bool:
    """Whether a keeper holds the lock at this moment."""
    try:
        handle = os.open(home.lock, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(handle)
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _running(home: Home) -> errors.Conflict:
    record = read(home)
    where = f" at {record.origin}, process {record.pid}" if record else ""
    return errors.Conflict(
        f"a host is running already{where}",
        code="host.running",
        cause=f"it holds the lock of {home.root}",
        next_step="use it as it is, stop it with nexus down, or give the second one a NEXUS_HOME and a --port of its own",
    )
