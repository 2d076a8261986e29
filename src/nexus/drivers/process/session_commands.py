"""Commands to a session's keeper: one connection each, as `nexus.worker.session_keeper` describes."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nexus.core import errors
from nexus.drivers.process import session_link

_ANSWER_S = 5.0


async def hold(at: Path, listener: int) -> None:
    """Let it keep the session's listening socket, for a supervisor to come. Raises `Closed`, TimeoutError."""
    await _ask(at, {"do": "hold"}, (listener,), timeout_s=_ANSWER_S)


async def fetch_listener(at: Path) -> socket.socket | None:
    """The listening socket that it keeps; None when it keeps none. Raises `Closed`, TimeoutError."""
    link = await session_link.connect(at)
    try:
        link.send({"do": "tell"})
        async with asyncio.timeout(_ANSWER_S):
            await link.receive()
        if not link.descriptors:
            return None
        listener = socket.socket(fileno=link.descriptors.pop())
        listener.setblocking(False)
        return listener
    finally:
        link.close()


async def execute(at: Path, command: list[str], descriptors: tuple[int, ...], *, timeout_s: float) -> int:
    """Run a program in the box with these as its input, output and error; its exit code. Raises `Unavailable`, TimeoutError."""
    return await _exit_code(at, {"do": "exec", "command": command}, descriptors, timeout_s=timeout_s)


async def pack(at: Path, output: int, *, most: int, timeout_s: float, sent: Callable[[], None]) -> int:
    """Write the work directory to `output`: 0 done, 2 too large, else failed. Raises `Unavailable`, TimeoutError.

    `sent` is called once the keeper has the descriptor.
    """
    return await _exit_code(at, {"do": "pack", "most": most}, (output,), timeout_s=timeout_s, sent=sent)


async def _exit_code(
    at: Path, order: dict[str, Any], descriptors: tuple[int, ...], *, timeout_s: float, sent: Callable[[], None] | None = None
) -> int:
    try:
        said = await _ask(at, order, descriptors, timeout_s=timeout_s, sent=sent)
    except session_link.Closed as error:
        raise errors.Unavailable(
            "the session's box does not take commands",
            code="session.no_keeper",
            cause=str(error),
            next_step="see it with: nexus ai agent sessions show",
        ) from error
    code = said.get("exit")
    if not isinstance(code, int):
        raise errors.Unavailable("the command could not be run", code="session.exec_failed", cause=str(said.get("failed"))[:300])
    return code


async def _ask(
    at: Path, order: dict[str, Any], descriptors: tuple[int, ...], *, timeout_s: float, sent: Callable[[], None] | None = None
) -> dict[str, Any]:
    link = await session_link.connect(at)
    try:
        link.send(order, descriptors)
        if sent is not None:
            sent()
        async with asyncio.timeout(timeout_s):
            said, _ = await link.receive()
        return said
    finally:
        link.close()
