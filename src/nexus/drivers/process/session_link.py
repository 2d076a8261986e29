"""The supervisor's end of the messages that `nexus.worker.session_link` describes: never blocks, tells who sent.

What comes from a box is hostile: it is bounded, and anything that is not a JSON object is the end of the link.
"""

import asyncio
import contextlib
import json
import socket
import struct
from pathlib import Path
from typing import Any

_CREDENTIALS = struct.Struct("3i")
_LONGEST = 256 * 1024
_MOST_DESCRIPTORS = 4
_ROOM = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS)


class Closed(Exception):
    """Nobody is on the other side any more."""


class Link:
    """Takes over a connected seqpacket socket. One reader at a time."""

    def __init__(self, link: socket.socket) -> None:
        link.setblocking(False)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._link = link
        self._waiting: asyncio.Future[None] | None = None
        self.descriptors: list[int] = []

    def send(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Raises `Closed`, also when the other side has stopped reading."""
        try:
            socket.send_fds(self._link, [json.dumps(message).encode()], list(descriptors))
        except OSError as error:
            raise Closed(error.strerror or str(error)) from error

    async def receive(self) -> tuple[dict[str, Any], int]:
        """The next message and the pid, by our numbers, of the process that sent it. Descriptors go to `descriptors`."""
        while True:
            try:
                data, extra, flags, _ = self._link.recvmsg(_LONGEST, _ROOM, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                await self._readable()
                continue
            except OSError as error:
                raise Closed(error.strerror or str(error)) from error
            pid = self._take(extra)
            if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise Closed("it has closed" if not data else "its message is too long")
            try:
                message = json.loads(data)
            except (ValueError, RecursionError):
                message = None
            if not isinstance(message, dict):
                raise Closed("its message is not an object")
            return message, pid

    def close(self) -> None:
        """Whoever waits for a message hears `Closed`: the descriptor's number may be another one's in a moment."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and self._link.fileno() >= 0:
            waiting.get_loop().remove_reader(self._link.fileno())
            if not waiting.done():
                waiting.set_exception(Closed("we have closed it"))
        self._link.close()
        self.drop_descriptors()

    def drop_descriptors(self) -> None:
        for number in self.descriptors:
            with contextlib.suppress(OSError):
                socket.close(number)
        self.descriptors.clear()

    def _take(self, extra: list[tuple[int, int, bytes]]) -> int:
        pid = 0
        for level, kind, content in extra:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0]
            elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(content) // 4
                self.descriptors += struct.unpack(f"{whole}i", content[: 4 * whole])
        return pid

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        number = self._link.fileno()
        if number < 0:
            raise Closed("we have closed it")
        loop.add_reader(number, _resolve, waiting)
        self._waiting = waiting
        try:
            await waiting
        finally:
            if self._waiting is waiting:
                self._waiting = None
                loop.remove_reader(number)


async def connect(path: Path) -> Link:
    """Raises `Closed` when nobody listens there."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.setblocking(False)
    try:
        link.connect(str(path))
    except OSError as error:
        link.close()
        raise Closed(error.strerror or str(error)) from error
    return Link(link)


def pair() -> tuple[Link, socket.socket]:
    """Ours, and the end that a child is given."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Link(ours), theirs


def _resolve(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
