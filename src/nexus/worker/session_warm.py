"""What a zygote does once so that no session has to: first uses import, build and specialise code, in memory that all share.

`rehearse` sends requests through all of our own code, against no agent's. `warm_agent` runs what the author declared safe, a
function `warm` (plain or async, without arguments) beside the entry point, and imports what libraries import on first use.
"""

import asyncio
import dataclasses
import importlib
import inspect
import logging
import os
import signal
import socket
import sys
from typing import Any

import uvicorn

from nexus.core import errors
from nexus.worker import execution, logs, main, settings

_LOG = logging.getLogger("nexus.worker")
_TIMES = 12
_ANSWER_S = 10.0
_LATE = {
    "langgraph": (
        "langchain_core.tracers.context", "langchain_core.tracers.run_collector", "langchain_core.tracers.stdout",
        "langchain_core.tracers.langchain", "langchain_core.callbacks.manager", "langgraph.pregel.main",
    ),
}  # fmt: skip
_SESSION = "rehearsal"
_BODY = b'{"input": {"text": "rehearsal"}, "context": {}}'
NAME = "warm"


class Nobody:
    """The adapter of no agent."""

    name = "none"
    uses_state = False

    async def run(self, run: Any) -> Any:
        run.emit("progress", {"message": "rehearsal"})
        return {"output": 1}


def rehearse(config: settings.Settings, capture: logs.Capture) -> None:
    """A whole worker from start to end, with runs and streams. What it leaves in the environment is put back."""
    environ = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    door = config.door and "/nobody"  # nothing is asked there
    bare = dataclasses.replace(config, token="none", door=door, status_file=None, session_id=_SESSION, traces=False)  # noqa: S106
    listener = _listen()
    tasks: list[asyncio.Task[None]] = []

    def begin() -> None:
        tasks.append(asyncio.get_running_loop().create_task(_ask(listener.getsockname())))

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.CRITICAL)
    try:
        worker = main.Worker(bare, capture, on_ready=begin)
        worker.live_with(Nobody, lambda: listener)
    except Exception as error:  # noqa: BLE001 - a warm start is a gain, not a need
        _LOG.debug("the first request of each session is a little slower: %r", error)
    finally:
        logging.getLogger().setLevel(level)
        listener.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(environ)
    if (ssl := sys.modules.get("ssl")) is not None:
        ssl.RAND_bytes(16)


def warm_agent(module: str) -> None:
    """Raises `AgentFailed` (`entrypoint.import_failed`) when the author's `warm` fails: its import has failed then."""
    for library, late in _LATE.items():
        if library in sys.modules:
            for name in late:
                try:
                    importlib.import_module(name)
                except ImportError:
                    continue
    function = getattr(sys.modules.get(module), NAME, None)
    if not callable(function):
        return
    try:
        if inspect.iscoroutinefunction(function):
            asyncio.run(function())
        else:
            function()
    except BaseException as error:
        raise errors.AgentFailed(
            f"{module}.{NAME}() failed",
            code="entrypoint.import_failed",
            phase="import",
            cause=f"{type(error).__name__}: {error}",
            next_step="it runs once while the agent is imported; leave out what cannot be done then",
        ) from error


async def rehearse_here(server: uvicorn.Server, executor: execution.Executor, config: settings.Settings) -> None:
    """In a worker that waits for its session: two requests through its own server, and what the author declared safe once more.
    What they touch, the session's first run finds touched."""
    real, executor.adapter = executor.adapter, Nobody()
    try:
        async with asyncio.timeout(_ANSWER_S):
            for accept in ("application/json", "text/event-stream"):
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
                await asyncio.get_running_loop().connect_accepted_socket(lambda: _protocol(server), theirs)
                await _exchange(ours, accept)
        function = getattr(sys.modules.get(config.entrypoint.partition(":")[0]), NAME, None)
        if callable(function):
            made = function()
            if inspect.isawaitable(made):
                await made
    except Exception as error:  # noqa: BLE001 - a warm start is a gain, not a need
        _LOG.debug("the first request of this session is a little slower: %r", error)
    finally:
        executor.adapter = real


def _protocol(server: uvicorn.Server) -> asyncio.Protocol:
    """What the server makes for each connection."""
    kind: Any = server.config.http_protocol_class
    made: asyncio.Protocol = kind(config=server.config, server_state=server.server_state, app_state={})
    return made


def _listen() -> socket.socket:
    """An abstract name: no file, and gone with the socket. Ours, for gVisor's kernel chooses none."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(b"\0nexus-warm-" + os.urandom(12).hex().encode())
    listener.setblocking(False)
    return listener


async def _ask(address: bytes) -> None:
    try:
        async with asyncio.timeout(_ANSWER_S):
            for accept in ("application/json", "text/event-stream") * _TIMES:
                client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                client.connect(address)
                await _exchange(client, accept)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


async def _exchange(client: socket.socket, accept: str) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=client)
    head = (
        f"POST /run HTTP/1.1\r\nHost: instance\r\nNexus-Session-Id: {_SESSION}\r\nNexus-Run-Id: run_rehearsal\r\n"
        f"Nexus-Tenant: none\r\nContent-Type: application/json\r\nAccept: {accept}\r\nConnection: close\r\n"
        f"Content-Length: {len(_BODY)}\r\n\r\n"
    )
    writer.write(head.encode() + _BODY)
    await reader.read()
    writer.close()
