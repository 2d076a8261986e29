"""One keeper taking over from another: it is asked to leave, and what it keeps is kept on as it was. Called by the keeper."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from nexus.apps import keeper_record, settings
from nexus.core import errors

_LEAVES_WITHIN_S = 10.0
_ASK_S, _ADOPT_S = 0.5, 2.0


@contextlib.contextmanager
def hold_lock(host: settings.HostSettings, *, replaces: bool, adopts: bool) -> Iterator[None]:
    """`keeper_record.hold_lock`: at once, or after whoever keeps this host was asked to leave, or with patience for one that
    is just ending. Raises as that does."""
    deadline = time.monotonic() + (_LEAVES_WITHIN_S if replaces else 0.0)
    patience_s = _ASK_S if replaces else _ADOPT_S if adopts else 0.0
    with contextlib.ExitStack() as held:
        while True:
            if replaces:
                ask_to_leave(host)  # again and again: control may have started a keeper in place of the one that left
            try:
                held.enter_context(keeper_record.hold_lock(host.home, patience_s=patience_s))
                break
            except errors.Conflict:
                if time.monotonic() >= deadline:
                    raise
        yield


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
