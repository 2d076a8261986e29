"""One keeper taking over from another: it is asked to leave, and what it keeps is kept on as it was. Called by the keeper."""

import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from nexus.apps import keeper_record, settings
from nexus.core import errors


def ask_to_leave(host: settings.HostSettings) -> None:
    """Tell the running keeper, if any, that this one takes over. Raises Invalid (`setting.invalid`) when this environment
    could not keep that host."""
    running = keeper_record.read(host.home)
    if running is None or not keeper_record.is_alive(running):
        return
    if running.database == "external" and host.database_url is None:
        raise errors.Invalid(
            "the running host keeps its state in a database that this environment does not name",
            code="setting.invalid",
            next_step="set NEXUS_DATABASE_URL as it was when the host was started",
        )
    handle = keeper_record.open_process(running.pid, running.ticks)
    if handle is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGUSR1)
        os.close(handle)


def plan_host(
    host: settings.HostSettings, earlier: keeper_record.HostRecord, environ: Mapping[str, str], *, replaces: bool
) -> settings.HostSettings:
    """The host that runs, kept on: its address, gateways and database stay. Who `replaces` it brings a certificate and, when
    NEXUS_DISPATCHERS says so, another number of dispatchers."""
    host = replace(
        host,
        host=earlier.host,
        port=earlier.port,
        gateways=earlier.gateways,
        database_url=host.database_url if earlier.database == "external" else None,
    )
    if not (replaces and environ.get("NEXUS_DISPATCHERS")):
        host = replace(host, dispatchers=earlier.dispatchers)
    if not replaces:
        certificate, name = keeper_record.certificate_of(earlier), urlsplit(earlier.origin).hostname or ""
        host = replace(host, tls_certificate=certificate, tls_name=name)
    return host
