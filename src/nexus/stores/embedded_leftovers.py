"""What a killed PostgreSQL leaves behind: an orphaned server, backends that still hold shared memory, a stale lock file.

The caller holds the host's lock, so whatever runs on this data directory belongs to nobody any more.
"""

import contextlib
import os
import select
import signal
import time
from pathlib import Path

from nexus.core import errors

_FAST_S, _IMMEDIATE_S, _KILL_S = 8.0, 4.0, 5.0


def clear(data: Path) -> list[int]:
    """End every process that works in `data` and remove its lock file; answers the ids of those it ended.

    A server gets the fast shutdown, then the immediate one, then SIGKILL. Raises Unavailable if something cannot be ended.
    """
    ended = []
    postmaster = read_postmaster(data)
    if postmaster is not None and postmaster in processes_in(data):
        ended.append(postmaster)
        for number, patience_s in ((signal.SIGINT, _FAST_S), (signal.SIGQUIT, _IMMEDIATE_S), (signal.SIGKILL, _KILL_S)):
            if _end(postmaster, number, patience_s):
                break
    for pid in processes_in(data):
        ended.append(pid)
        if not _end(pid, signal.SIGKILL, _KILL_S):
            raise errors.Unavailable(
                f"process {pid} still works in {data} and could not be ended",
                code="database.busy",
                cause="it belongs to another user, or hangs in the kernel",
                next_step=f"end process {pid}, then start the host again",
            )
    (data / "postmaster.pid").unlink(missing_ok=True)
    return ended


def read_postmaster(data: Path) -> int | None:
    """The process id in the lock file, alive or not; None when there is no readable one."""
    try:
        return abs(int((data / "postmaster.pid").read_text().splitlines()[0]))
    except (OSError, ValueError, IndexError):
        return None


def processes_in(data: Path) -> list[int]:
    """Processes whose working directory is `data`: every PostgreSQL process changes into it and stays there."""
    wanted = os.path.realpath(data)
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{name}/cwd") == wanted and os.readlink(f"/proc/{name}/exe").endswith("/postgres"):
                    found.append(int(name))
    return found


def _end(pid: int, number: signal.Signals, patience_s: float) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        try:
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        deadline = time.monotonic() + patience_s
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
    finally:
        os.close(handle)
