"""Unix sockets that only their owner may connect to, from the moment they have a name."""

import os
import secrets
import socket
from pathlib import Path

BACKLOG = 512


def listen(path: Path) -> socket.socket:
    """A listening socket at `path` (0600, its directory 0700), in place of one that a dead process left. Does not block."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{secrets.token_hex(4)}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.bind(str(draft))
        os.chmod(draft, 0o600)
        listener.listen(BACKLOG)
        # Nobody can connect to a name that is not there yet, and a client finds either the old socket or this one.
        os.replace(draft, path)
    except BaseException:
        listener.close()
        draft.unlink(missing_ok=True)
        raise
    return listener
