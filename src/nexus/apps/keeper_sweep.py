"""Ending what a forced stop leaves: agents whose supervisor was killed before it could stop them."""

import contextlib
import os
import signal

from nexus.drivers.process import cgroups
from nexus.kit.home import Home


def find_agents(home: Home) -> list[int]:
    """Processes that were started as instances of this home, told by the socket they were given to listen on."""
    mark = b"NEXUS_SOCKET=" + os.fsencode(home.run / "i") + b"/"
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                if any(entry.startswith(mark) for entry in file.read().split(b"\0")):
                    found.append(int(name))
    return found


def kill_agents(home: Home) -> int:
    """SIGKILL them until none is left; answers how many there were. Looks a few times, since one may just have forked."""
    killed = 0
    for _ in range(5):
        agents = find_agents(home)
        if not agents:
            break
        for pid in agents:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                cgroups.thaw(pid)
                killed += 1
    return killed
