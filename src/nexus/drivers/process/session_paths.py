"""Where sessions with workers of their own keep things: short socket names in the run folder, the rest beside their instance.

A session's address is made from instance and session, so it stays while workers come and go; a worker's own name is random.
"""

import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from nexus.drivers.process import paths
from nexus.kit.home import Home

_NAME = 24
_BACKLOG = 512


@dataclass(frozen=True, slots=True)
class SessionPaths:
    """Those of one instance. `sockets` is the folder of all sessions' sockets, which no box sees."""

    sockets: Path
    root: Path

    def address(self, instance_id: str, session_id: str) -> Path:
        digest = hashlib.sha256(f"{instance_id}\0{session_id}".encode()).hexdigest()[:_NAME]
        return self.sockets / f"{digest}.sock"

    def orders(self, box: str) -> Path:
        """Where the zygote of that box takes orders, by the random part of its name: a socket's path has 107 bytes at most."""
        return self.sockets / orders_name(box)

    def commands(self, worker: str) -> Path:
        """Where a session's keeper takes commands."""
        return self.sockets / f"{worker}.ctl"

    def output(self, worker: str) -> Path:
        """The FIFO that a session's worker prints into: ours, so that no session can read another's."""
        return self.root / f"{worker}.fifo"

    def folder(self, worker: str) -> Path:
        """What belongs to a worker that stands in a whole box of its own."""
        return self.root / worker

    def record(self, worker: str) -> Path:
        return self.root / f"{worker}.json"

    def archive(self, worker: str) -> Path:
        """Where a work directory is put together before it is kept."""
        return self.root / f"{worker}.tar"


def of_instance(home: Home, instance_id: str) -> SessionPaths:
    return SessionPaths(home.run / "s", paths.of_instance(home, instance_id).root / "sessions")


def orders_name(box: str) -> str:
    return f"{box.rpartition('.')[2]}.zyg"


def new_name() -> str:
    """For a box or a worker."""
    return os.urandom(_NAME // 2).hex()


def listen(path: Path, *, kind: socket.SocketKind) -> socket.socket:
    """A listening unix socket that only its owner may connect to."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
