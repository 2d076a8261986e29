"""The host's own settings, read from the environment once and handed on. Called by the keeper and its processes."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nexus.apps import host_tls
from nexus.core import errors
from nexus.kit.home import Home, find_home

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8700
MOST_GATEWAYS = 16
MOST_DISPATCHERS = 8
EXIT_CODES: Mapping[str, int] = {
    "internal": 1,
    "invalid": 2,
    "unauthenticated": 3,
    "forbidden": 4,
    "not_found": 5,
    "conflict": 6,
    "exhausted": 7,
    "agent_failed": 8,
    "unavailable": 9,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """What `nexus up` needs. `database_url` None: PostgreSQL is brought up from the wheel. Port 0: a free one is picked.

    Without `dispatchers` control runs the tasks itself. With `tls_certificate` the port speaks TLS; `tls_name` is then what the
    host is called by.
    """

    home: Home
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    gateways: int = 1
    dispatchers: int = 0
    database_url: str | None = None
    tls_certificate: Path | None = None
    tls_name: str = ""

    @property
    def origin(self) -> str:
        return render_origin(self.host, self.port, tls_name=self.tls_name if self.tls_certificate is not None else None)


def read_settings(environ: Mapping[str, str]) -> HostSettings:
    """Raises Invalid (`setting.invalid`) naming the variable, its value and what is expected."""
    host, certificate = environ.get("NEXUS_HOST") or DEFAULT_HOST, host_tls.read_certificate(environ)
    return HostSettings(
        home=find_home(environ.get("NEXUS_HOME")),
        host=host,
        port=_number(environ, "NEXUS_PORT", DEFAULT_PORT, 0, 65535),
        gateways=_number(environ, "NEXUS_GATEWAYS", count_cores(), 1, MOST_GATEWAYS),
        dispatchers=_number(environ, "NEXUS_DISPATCHERS", 0, 0, MOST_DISPATCHERS),
        database_url=_database(environ.get("NEXUS_DATABASE_URL")),
        tls_certificate=certificate,
        tls_name="" if certificate is None else host_tls.choose_name(certificate, reachable(host)),
    )


def read_dispatcher(environ: Mapping[str, str]) -> int:
    """Which of the host's dispatchers a process is, from 0."""
    return _number(environ, "NEXUS_DISPATCHER", 0, 0, MOST_DISPATCHERS - 1)


def require_database(host: HostSettings, who: str) -> str:
    """The database's URL. Raises Invalid (`setting.invalid`) when there is none."""
    if host.database_url is None:
        raise errors.Invalid(
            f"{who} needs NEXUS_DATABASE_URL",
            code="setting.invalid",
            cause="it does not start a database itself",
            next_step="start the whole host: nexus up",
        )
    return host.database_url


def count_cores() -> int:
    """Cores this process may use, at most `MOST_GATEWAYS`."""
    return max(1, min(MOST_GATEWAYS, len(os.sched_getaffinity(0))))


def render_origin(host: str, port: int, *, tls_name: str | None = None) -> str:
    """The URL a person on this machine types; an address that means "all" is shown as loopback. `tls_name`: it speaks TLS, and
    its certificate is for this name."""
    name = tls_name or reachable(host)
    shown = f"[{name}]" if ":" in name else name
    return f"{'http' if tls_name is None else 'https'}://{shown}:{port}"


def reachable(host: str) -> str:
    """An address at which this machine reaches what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104


def explain(error: errors.NexusError) -> list[str]:
    """An error as lines for a terminal or a log."""
    lines = [f"error: {error.message}  [{error.code}]"]
    if error.phase:
        lines.append(f"  phase: {error.phase}")
    if error.cause:
        lines.append(f"  cause: {error.cause}")
    lines.extend(f"  | {line}" for line in error.log_tail)
    if error.next_step:
        lines.append(f"  next:  {error.next_step}")
    return lines


def _number(environ: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise errors.Invalid(
            f"{name}={text!r} is not usable",
            code="setting.invalid",
            cause=f"a whole number from {least} to {most} is expected",
            next_step=f"correct or unset {name}",
        )
    return int(text)


def _database(url: str | None) -> str | None:
    if not url:
        return None
    if not url.startswith(("postgresql://", "postgres://")):
        raise errors.Invalid(
            "NEXUS_DATABASE_URL does not name a PostgreSQL database",
            code="setting.invalid",
            cause="it must begin with postgresql:// (the value is not shown: it may hold a password)",
            next_step="for example NEXUS_DATABASE_URL=postgresql://nexus@db.internal/nexus",
        )
    return url


def absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()
