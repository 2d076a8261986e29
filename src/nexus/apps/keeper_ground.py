"""What a host stands on before anything starts: a port that is free, and directories that are its own. Called by the keeper."""

import os
import socket

from nexus.core import errors
from nexus.kit.home import Home


def check_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises Conflict (`host.port_in_use`) or Invalid (`setting.invalid`).

    The gateways share their port (SO_REUSEPORT), so a stranger on it would otherwise go unnoticed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
            return int(probe.getsockname()[1])
    except socket.gaierror as error:
        raise errors.Invalid(
            f"{host!r} is not an address to listen on",
            code="setting.invalid",
            cause=str(error),
            next_step="pass --host 127.0.0.1",
        ) from error
    except OSError as error:
        raise errors.Conflict(
            f"port {port} on {host} cannot be used",
            code="host.port_in_use",
            cause=os.strerror(error.errno or 0),
            next_step=f"see who listens there with ss -ltnp 'sport = :{port}', or pass another --port",
        ) from error


def make_directories(home: Home) -> None:
    """The home and its private directories. Raises Invalid (`home.unusable`) or Unavailable (`home.unsafe`)."""
    try:
        for path in (home.root, home.run, home.run / "i", home.logs):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = path.lstat()
            if path == home.run and (found.st_uid != os.geteuid() or path.is_symlink()):
                raise errors.Unavailable(f"{path} belongs to somebody else", code="home.unsafe", next_step=f"remove {path}")
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(13, "no permission to write in it", str(path))
    except OSError as error:
        raise errors.Invalid(
            f"the home {home.root} cannot be used",
            code="home.unusable",
            cause=f"{error.strerror}: {error.filename}",
            next_step="set NEXUS_HOME to a directory that you may write",
        ) from error
