"""What a zygote does once so that no session has to: first uses import, build and specialise code, in memory that all share.

`rehearse` sends requests through all of our own code and the framework's, against no agent's. `warm_agent` runs what the author
declared safe, a function `warm` (plain or async, without arguments) beside the entry point, and imports what libraries import on
first use.
"""

import asyncio
import dataclasses
import importlib
import inspect
import json
import logging
import os
import signal
import socket
import sys
from typing import Any

import uvicorn

from nexus.core import errors
from nexus.kit import session_tokens
from nexus.worker import adapters, execution, logs, main, session_nobody, settings
from nexus.worker import door as doors
from nexus.worker.adapters import stand_ins

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
_TOKEN = session_tokens.mint("", instance_id="ins_rehearsal", session_id=_SESSION, expires_at=0.0)  # opens nothing
_BODY = json.dumps({"input": stand_ins.INPUT, "context": {}}).encode()
_KINDS = ("application/json", "text/event-stream")
NAME = "warm"


def rehearse(
    config: settings.Settings, capture: logs.Capture, adapter: adapters.Adapter | None = None, *, times: int = _TIMES
) -> None:
    """A whole worker from start to end, with runs and streams of `adapter`. What it leaves in the environment is put back."""
    environ = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    listener, door = session_nobody.listen(), session_nobody.door_path()
    at = config.door and door
    bare = dataclasses.replace(config, token=_TOKEN, door=at, status_file=None, session_id=_SESSION, traces=False)
    tasks: list[asyncio.Task[None]] = []

    def begin() -> None:
        tasks.append(asyncio.get_running_loop().create_task(_ask(listener.getsockname(), door, times)))

    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.CRITICAL)
    try:
        worker = main.Worker(bare, capture, on_ready=begin)
        worker.live_with(lambda: adapter or session_nobody.Nobody(), lambda: listener)
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


def stand_in(adapter: adapters.Adapter) -> adapters.Adapter | None:
    """Nobody's agent of the same framework, if one can be made."""
    try:
        return stand_ins.find(adapter)
    except Exception as error:  # noqa: BLE001 - a framework of another age
        _LOG.debug("the first run of each session is a little slower: %r", error)
        return None


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


async def rehearse_here(
    server: uvicorn.Server, executor: execution.Executor, config: settings.Settings, adapter: adapters.Adapter | None
) -> None:
    """In a worker that waits for its session: requests through its own server, and what the author declared safe once more.
    What they touch, the session's first run finds touched."""
    loop = asyncio.get_running_loop()
    listener, door = session_nobody.listen(), session_nobody.door_path()
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.CRITICAL)
    try:
        async with asyncio.timeout(_ANSWER_S):
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, _ignore)
                loop.remove_signal_handler(number)
            serving = await loop.create_unix_server(lambda: _protocol(server), sock=listener)
            async with session_nobody.door(door):
                with executor.instead(adapter or session_nobody.Nobody(), doors.Door(door, _TOKEN)):
                    for accept in _KINDS:
                        await _request(listener.getsockname(), accept)
            serving.close()
        function = getattr(sys.modules.get(config.entrypoint.partition(":")[0]), NAME, None)
        if callable(function):
            made = function()
            if inspect.isawaitable(made):
                await made
    except Exception as error:  # noqa: BLE001 - a warm start is a gain, not a need
        _LOG.debug("the first request of this session is a little slower: %r", error)
    finally:
        logging.getLogger().setLevel(level)
        listener.close()


def _ignore() -> None:
    """Its signal means nothing yet."""


def _protocol(server: uvicorn.Server) -> asyncio.Protocol:
    """What the server makes for each connection."""
    kind: Any = server.config.http_protocol_class
    made: asyncio.Protocol = kind(config=server.config, server_state=server.server_state, app_state={})
    return made


async def _ask(address: bytes, door: str, times: int) -> None:
    try:
        async with asyncio.timeout(_ANSWER_S), session_nobody.door(door):
            for accept in _KINDS * times:
                await _request(address, accept)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


async def _request(address: bytes, accept: str) -> None:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(address)
    reader, writer = await asyncio.open_unix_connection(sock=client)
    head = (
        f"POST /run HTTP/1.1\r\nHost: instance\r\nNexus-Session-Id: {_SESSION}\r\nNexus-Run-Id: run_rehearsal\r\n"
        f"Nexus-Tenant: none\r\nContent-Type: application/json\r\nAccept: {accept}\r\nConnection: close\r\n"
        f"Content-Length: {len(_BODY)}\r\n\r\n"
    )
    writer.write(head.encode() + _BODY)
    await reader.read()
    writer.close()
