"""Messages between the supervisor and the processes of a session's box: JSON objects with descriptors, over seqpacket sockets.

One `send` is one `receive`, so nothing has to be framed. Used by the zygote, the keeper and the session's worker.
"""

import json
import socket
from typing import Any

LONGEST = 256 * 1024
MOST_DESCRIPTORS = 16


class Gone(Exception):
    """The other side has closed."""


def send(link: socket.socket, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """Raises OSError when nobody is there."""
    data = json.dumps(message).encode()
    if descriptors:
        socket.send_fds(link, [data], list(descriptors))
    else:
        link.sendall(data)


def receive(link: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message and the descriptors that came with it, which are the caller's to close. Raises `Gone` at the end."""
    try:
        data, descriptors, _, _ = socket.recv_fds(link, LONGEST, MOST_DESCRIPTORS)
    except ConnectionError:
        raise Gone from None
    if not data:
        raise Gone
    return json.loads(data), descriptors
