"""The processes of a host as a table, and one of them as something that is started, adopted, watched and stopped."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nexus.apps import keeper_record, settings
from nexus.kit.home import Home

_PASSED_ON = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "OTEL_EXPORTER_OTLP_ENDPOINT",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
})  # fmt: skip
_PASSED_PREFIXES = ("NEXUS_", "UV_", "PIP_", "LC_", "XDG_")
_WITHHELD = ("NEXUS_DATABASE_URL", "NEXUS_MASTER_KEY", "NEXUS_MASTER_KEY_FILE", "NEXUS_API_KEY")
_QUIET_LIFE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One row: what to start and how to end it. `rank` orders the stop: the lowest goes first."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    log: Path
    directory: Path
    rank: int
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 10.0


@dataclass(slots=True, kw_only=True)
class Process:
    """A child that runs (`pidfd` set) or waits to be started again at `due` (monotonic seconds). `relieved`: another serves in
    its place, or is about to, so it is not started again."""

    child: Child
    pid: int = 0
    ticks: int = 0
    pidfd: int | None = None
    started_at: float = 0.0
    restarts: int = 0
    failures: int = 0
    due: float = 0.0
    last_exit: str = ""
    adopted: bool = False
    relieved: bool = False
    _own: "subprocess.Popen[bytes] | None" = None
    _born: float = 0.0

    def start(self) -> None:
        """Start it in a session of its own, its output appended to its log. Raises OSError."""
        output = os.open(self.child.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._own = subprocess.Popen(
                list(self.child.argv),
                env=dict(self.child.environment),
                cwd=self.child.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                umask=0o077,
            )
        finally:
            os.close(output)
        self.pid, self.adopted = self._own.pid, False
        self.ticks = keeper_record.ticks_of(self.pid) or 0
        self.pidfd = os.pidfd_open(self.pid)
        self.started_at, self._born = time.time(), time.monotonic()

    def adopt(self, record: keeper_record.ProcessRecord) -> bool:
        """Watch a process that an earlier keeper started. False when it is gone."""
        handle = keeper_record.open_process(record.pid, record.ticks)
        if handle is None:
            return False
        self.pid, self.ticks, self.pidfd, self.adopted = record.pid, record.ticks, handle, True
        self.started_at, self.restarts, self._born = record.started_at, record.restarts, time.monotonic()
        return True

    def is_wanted(self, now: float) -> bool:
        """Whether it is to be started now."""
        return not self.relieved and now >= self.due

    def ended(self) -> None:
        """It has exited: note how, and when to start it again (at once the first time, then after growing pauses)."""
        code = self._own.poll() if self._own is not None else None
        self.last_exit = _describe_exit(code)
        if self.pidfd is not None:
            os.close(self.pidfd)
        now = time.monotonic()
        self.failures = 1 if now - self._born > _QUIET_LIFE_S else self.failures + 1
        self.due = now + pause_s(self.failures)
        self.pidfd, self._own, self.restarts = None, None, self.restarts + 1

    def send(self, number: signal.Signals) -> None:
        if self.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)

    def record(self) -> keeper_record.ProcessRecord:
        return keeper_record.ProcessRecord(
            name=self.child.name, pid=self.pid, ticks=self.ticks, started_at=self.started_at, restarts=self.restarts
        )


def pause_s(failures: int) -> float:
    """Nothing before the first restart, then 0.1 s doubling up to 5 s."""
    return 0.0 if failures <= 1 else min(5.0, 0.1 * 2 ** min(failures - 2, 16))


def plan_children(host: settings.HostSettings, environ: Mapping[str, str], database_url: str) -> list[Child]:
    """The table of a whole host, in the order in which it is started: what others wait for comes first."""
    shared = plan_environment(environ)
    shared |= {
        "NEXUS_HOME": str(host.home.root),
        "NEXUS_HOST": host.host,
        "NEXUS_PORT": str(host.port),
        "NEXUS_GATEWAYS": str(host.gateways),
        "NEXUS_DISPATCHERS": str(host.dispatchers),
    }
    full = {**environ, **shared, "NEXUS_DATABASE_URL": database_url}
    children = [] if host.database_url else [
        _child(host.home, "postgres", "host_postgres", shared, rank=3, stop_signal=signal.SIGINT, grace_s=8.0)
    ]  # fmt: skip
    children.append(_child(host.home, "control", "control", full, rank=1))
    children.append(_child(host.home, "supervisor", "supervisor", shared, rank=2, grace_s=25.0))
    for number in range(host.dispatchers):
        environment = {**shared, "NEXUS_DISPATCHER": str(number), "NEXUS_DATABASE_URL": database_url}
        children.append(_child(host.home, f"dispatcher-{number}", "dispatcher", environment, rank=0))
    for number in range(host.gateways):
        environment = {**shared, "NEXUS_GATEWAY": str(number)}
        children.append(_child(host.home, f"gateway-{number}", "gateway", environment, rank=0, grace_s=15.0))
    return children


def plan_retired(home: Home, name: str) -> Child:
    """The row of a process that still runs and has no place in the host any more."""
    return _child(home, name, "", {}, rank=0)


def plan_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What every process may see: no provider's key and no password; control has those, and dispatchers the database's."""
    passed = {
        name: value
        for name, value in environ.items()
        if (name in _PASSED_ON or name.startswith(_PASSED_PREFIXES)) and name not in _WITHHELD
    }
    return {"MALLOC_ARENA_MAX": "2", "PYTHONUNBUFFERED": "1", **passed}


def _child(
    home: Home,
    name: str,
    module: str,
    environment: Mapping[str, str],
    *,
    rank: int,
    stop_signal: signal.Signals = signal.SIGTERM,
    grace_s: float = 10.0,
) -> Child:
    return Child(
        name=name,
        argv=(sys.executable, "-P", "-m", f"nexus.apps.{module}"),
        environment={"MALLOC_ARENA_MAX": "2", "PYTHONUNBUFFERED": "1", **environment},
        log=home.logs / f"{name}.log",
        directory=home.root,
        rank=rank,
        stop_signal=stop_signal,
        grace_s=grace_s,
    )


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "ended"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
