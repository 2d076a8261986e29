"""Starts the relay when somebody wants it: most runs call no model, and a thread for each idle session is memory for nothing.

The port listens from the beginning. A client that connects is seen in Python's own sockets before it does (it may block the very
loop that could see it arrive), or by the loop, which watches the port.
"""

import asyncio
import socket
from typing import Any

from nexus.worker import relay

_LOOPBACK = ("127.0.0.1", "localhost")


def on_connect(wanted: relay.Relay, *, moved_from: int) -> None:
    """`moved_from`: the port that clients know which were made before the relay had its own; they are led to it."""
    for name in ("connect", "connect_ex"):
        _wrap(name, wanted, moved_from)


def _wrap(name: str, wanted: relay.Relay, moved_from: int) -> None:
    original = getattr(socket.socket, name)

    def connect(self: socket.socket, address: Any, /) -> Any:
        if type(address) is tuple and address[0] in _LOOPBACK and address[1] in (wanted.port, moved_from):
            wanted.start()
            address = (address[0], wanted.port)
        return original(self, address)

    setattr(socket.socket, name, connect)


def on_arrival(wanted: relay.Relay, loop: asyncio.AbstractEventLoop) -> None:
    """For clients that connect without Python's sockets (uvloop's own, a subprocess)."""
    number = wanted.fileno()

    def start() -> None:
        loop.remove_reader(number)
        wanted.start()

    if number >= 0:
        loop.add_reader(number, start)
