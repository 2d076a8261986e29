"""uvicorn around our app: whichever parser and loop can be imported, our own signals and our own socket.

The agent's own uvicorn may be older or newer than the host's; only what has been stable since 0.22 is used.
"""

import asyncio
import contextlib
import functools
import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from nexus.worker import settings


class Server(uvicorn.Server):
    """Leaves signals to us, and wakes up for nothing but requests and its end."""

    _ending: asyncio.Event | None = None
    _ends = False

    @property
    def should_exit(self) -> bool:
        return self._ends

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        self._ends = value
        if value and self._ending is not None:
            self._ending.set()

    async def main_loop(self) -> None:
        """Instead of looking ten times a second whether it is time to end."""
        self._ending = asyncio.Event()
        if self._ends:
            return
        await self._ending.wait()

    def install_signal_handlers(self) -> None:
        """uvicorn before 0.29."""

    def stop_accepting(self) -> None:
        """Close the listeners; connections that are open go on."""
        for listener in getattr(self, "servers", ()):
            listener.close()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def build(app: Any, config: settings.Settings) -> Server:
    parser = "httptools" if _can_import("httptools") else "h11"
    return Server(
        uvicorn.Config(
            app,
            http=parser,
            loop="none",
            ws="auto" if getattr(app, "takes_sockets", False) else "none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            date_header=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=24 * 3600,
            timeout_graceful_shutdown=2,
        )
    )


def loop_factory(config: settings.Settings) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop when it is there and not refused (`NEXUS_LOOP=asyncio`); None means asyncio's own."""
    if config.loop == "asyncio" or not _can_import("uvloop"):
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def bind(config: settings.Settings) -> socket.socket:
    """A listening socket: the unix socket (0600) of `NEXUS_SOCKET`, or `PORT`."""
    if config.socket is not None:
        Path(config.socket).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            listener.bind(config.socket)
        finally:
            os.umask(before)
        return listener
    listener = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((config.host, config.port or 0))
    return listener


@functools.cache
def _can_import(name: str) -> bool:
    if importlib.util.find_spec(name) is None:
        return False
    try:
        __import__(name)
    except Exception:  # noqa: BLE001 - built for another interpreter, or broken: the pure one is used
        return False
    return True
