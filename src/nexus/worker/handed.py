"""A listening socket whose connections somebody outside accepts and hands in, where this kernel cannot accept them itself.

For containers of gVisor's: `nexus.drivers.process.oci_keeper` is the other end. To whoever accepts it is a listening socket.
"""

import os
import socket
from typing import Any

_EXIT_ALONE = 71


class Handed(socket.socket):
    """Takes over one end of a seqpacket pair by which each message brings one connection."""

    @property
    def type(self) -> socket.SocketKind:
        """That of its connections, which is what an event loop asks for."""
        return socket.SOCK_STREAM

    def listen(self, backlog: int = 0, /) -> None:
        """It does."""

    def accept(self) -> tuple[socket.socket, Any]:
        """As ever. Ends this process when nobody hands anything in any more: it cannot be reached again."""
        data, descriptors, _, _ = socket.recv_fds(self, 16, 1)
        if not data:
            os._exit(_EXIT_ALONE)
        return socket.socket(fileno=descriptors[0]), ""


def take(number: int, *, handed: bool) -> socket.socket:
    """The listening socket that this descriptor is, or stands for."""
    return Handed(fileno=number) if handed else socket.socket(fileno=number)
