"""Who keeps the keeper: control watches it, and when it was killed starts another that adopts what runs."""

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Mapping

from nexus.apps import keeper_record
from nexus.kit.home import Home

_LOG = logging.getLogger(__name__)
_PAUSE_S = 1.0
KEEPER = (sys.executable, "-P", "-m", "nexus.apps.keeper")


async def watch(home: Home, *, environ: Mapping[str, str] | None = None) -> None:
    """Runs until cancelled. Without a host record (control started by hand) it only looks now and then."""
    while True:
        record = keeper_record.read(home)
        if record is None or record.stopping:
            await asyncio.sleep(_PAUSE_S)
            continue
        await _wait_for_end(record)
        record = keeper_record.read(home)
        if record is None or record.stopping or keeper_record.is_alive(record) or keeper_record.is_locked(home):
            await asyncio.sleep(_PAUSE_S)
            continue
        _LOG.warning("keeper %d is gone; starting another", record.pid)
        await asyncio.to_thread(start_keeper, home, dict(os.environ if environ is None else environ), after=record.pid)
        await asyncio.sleep(_PAUSE_S)


def start_keeper(home: Home, environ: dict[str, str], *, after: int) -> None:
    """A keeper of its own session that adopts the processes of this home, unless there was another one since process `after`;
    returns once it has left us."""
    subprocess.run(
        [*KEEPER, "--detached", "--adopt", str(after)],
        env={**environ, "NEXUS_HOME": str(home.root)},
        cwd=home.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=30,
        check=False,
    )


async def _wait_for_end(record: keeper_record.HostRecord) -> None:
    handle = keeper_record.open_process(record.pid, record.ticks)
    if handle is None:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)
