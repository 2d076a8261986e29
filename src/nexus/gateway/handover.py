"""The listening sockets pass from a gateway process to the one that replaces it, so that no connection is refused or lost.

The older process waits on a unix socket of its own. The newer asks there, gets the file descriptors (SCM_RIGHTS), and says when
it serves; then the older stops accepting and finishes what it has. The kernel's queues of new connections belong to the sockets
and not to a process, so they simply go on.
"""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_LOG = logging.getLogger(__name__)
_TIMEOUT_S = 10.0
_ASK, _SERVING = b"give\n", b"serving\n"
_CREDENTIALS = struct.Struct("3i")


@dataclass(slots=True)
class Taken:
    """What the older process gave: its listening sockets (TCP, then door). Call `serving` when they are being accepted from; on
    `line` the older one then tells what else it knows (`key_handover`)."""

    tcp: socket.socket
    door: socket.socket
    line: socket.socket

    def close(self) -> None:
        """Leave everything as it was."""
        for one in (self.tcp, self.door, self.line):
            one.close()

    def serving(self) -> None:
        with contextlib.suppress(OSError):
            self.line.sendall(_SERVING)
        self.line.setblocking(False)


def take(path: Path) -> Taken | None:
    """The listening sockets of the process that serves now, or None when there is none (any more)."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    line.settimeout(_TIMEOUT_S)
    try:
        line.connect(str(path))
        line.sendall(_ASK)
        message, descriptors, _, _ = socket.recv_fds(line, 16, 2)
    except OSError:
        line.close()
        return None
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    if message != b"here\n" or len(sockets) != 2 or sockets[0].family == socket.AF_UNIX:
        for one in (*sockets, line):
            one.close()
        return None
    return Taken(sockets[0], sockets[1], line)


class Offer:
    """Waits for a successor. `on_taken` is called once, when the successor serves, with the line to it, which is then its own."""

    def __init__(self, path: Path, sockets: Sequence[socket.socket], on_taken: Callable[[socket.socket], None]) -> None:
        self._path = path
        self._sockets = sockets
        self._on_taken = on_taken
        self._listener: socket.socket | None = None

    def open(self) -> None:
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._listener.bind(str(self._path))
        self._path.chmod(0o600)
        self._listener.listen(1)
        self._listener.setblocking(False)

    async def follow(self) -> None:
        """Endless: serve one who asks after another. One that fails to start leaves everything as it was."""
        loop = asyncio.get_running_loop()
        while self._listener is not None:
            line, _ = await loop.sock_accept(self._listener)
            taken = False
            try:
                taken = await self._give(loop, line)
            except (OSError, TimeoutError) as error:
                _LOG.warning("a successor did not take over (%s); this process goes on", error or type(error).__name__)
            finally:
                if not taken:
                    line.close()

    async def _give(self, loop: asyncio.AbstractEventLoop, line: socket.socket) -> bool:
        pid, uid, _ = _CREDENTIALS.unpack(line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid != os.geteuid():
            _LOG.warning("a process of another user (%d) asked for the listening sockets", uid)
            return False
        line.setblocking(False)
        async with asyncio.timeout(_TIMEOUT_S):
            if await loop.sock_recv(line, 16) != _ASK:
                return False
            socket.send_fds(line, [b"here\n"], [one.fileno() for one in self._sockets])
            said = await loop.sock_recv(line, 16)
        if said == _SERVING:
            _LOG.info("process %d serves in this one's place", pid)
            self._on_taken(line)
            return True
        _LOG.warning("process %d took the listening sockets and ended before it served", pid)
        return False

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
