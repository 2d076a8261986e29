"""Local models on first use: listens where the gateway looks for one, loads it when a request comes, unloads it when idle.

Lives in the node supervisor. Each request is passed byte for byte over a connection of its own, so answers stream token by token,
a client that leaves ends its generation, and llama.cpp's habit of closing idle connections is never seen by anyone.
"""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import httptools

from nexus.core import errors
from nexus.kit import guard
from nexus.kit import home as homes
from nexus.providers import engine
from nexus.wire import problem

_LOG = logging.getLogger(__name__)
_CHUNK = 65536
_CONNECTIONS = 64
_REQUEST_TIMEOUT_S = 3600.0
_DYING_S = 1.0
_KEEP_ALIVE_S = 900.0


class Activator:
    """An async context manager: inside it, `home.model_socket(model)` answers (0600, its directory 0700).

    `idle_s` without a request unloads the model. While it cannot be had, requests get a problem (503) that says why.
    """

    def __init__(
        self,
        home: homes.Home,
        *,
        model: str = "smollm2",
        idle_s: float = 600.0,
        monotonic: Callable[[], float] = time.monotonic,
        settings: engine.Program | None = None,
        connections: int = _CONNECTIONS,
    ) -> None:
        self._socket = home.model_socket(model)
        self._most = connections
        self._engine = engine.Engine(
            settings
            or engine.Settings(
                model=model,
                weights=home.models / model / "model.gguf",
                socket=home.run / f"engine-{model}.sock",
                log=home.logs / f"model-{model}.log",
            )
        )
        self._idle_s = idle_s
        self._monotonic = monotonic
        self._last_use = monotonic()
        self._active = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._stack = contextlib.AsyncExitStack()

    @property
    def pid(self) -> int | None:
        """The model's process while it is loaded."""
        return self._engine.pid

    async def __aenter__(self) -> Self:
        self._socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._socket.unlink(missing_ok=True)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._engine)
            server = await asyncio.start_unix_server(self._accept, str(self._socket), limit=_CHUNK, backlog=128)
            os.chmod(self._socket, 0o600)
            stack.push_async_callback(self._close, server)
            loops = await stack.enter_async_context(guard.Loops())
            loops.start("unload an idle local model", self._watch_idleness)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    async def unload_if_idle(self) -> bool:
        """One look of the watching loop: unload when nothing is in hand and nothing came for `idle_s`."""
        if self.pid is None or self._active or self._monotonic() - self._last_use < self._idle_s:
            return False
        _LOG.info("the local model was idle for %g s; unloading it", self._idle_s)
        await self._engine.stop()
        return True

    async def _watch_idleness(self) -> None:
        while True:
            await asyncio.sleep(max(0.05, min(5.0, self._idle_s / 4)))
            await self.unload_if_idle()

    async def _close(self, server: asyncio.Server) -> None:
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._socket.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > self._most:
                await _refuse(reader, writer, _too_many(self._most))
            else:
                await self._serve(reader, writer)
        except (OSError, TimeoutError, httptools.HttpParserError) as error:
            _LOG.debug("a connection to the local model ended: %r", error)
        except asyncio.CancelledError:
            pass  # we are closing; asyncio.streams would log it as an error
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(_KEEP_ALIVE_S):
                first = await reader.read(_CHUNK)
            if not first:
                return
            self._active += 1
            try:
                async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                    keep = await self._exchange(first, reader, writer)
            except errors.NexusError as refusal:
                await _refuse(reader, writer, refusal)
                return
            finally:
                self._active -= 1
                self._last_use = self._monotonic()
            if not keep:
                return

    async def _exchange(self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; True when the client's connection may carry another.

        A server that dies before it answers is replaced and asked once more: a generation has no effects to repeat.
        """
        for attempt in (1, 2):
            request, answer = await self._attempt(first, reader, writer)
            if answer.begun or writer.is_closing() or reader.at_eof():
                return answer.complete and answer.keep_alive and request.begun == 1
            if request.more_than_first or attempt == 2:
                break
            await self._engine.settle(within_s=_DYING_S)
        raise errors.Unavailable(
            "the local model ended while it held this request",
            code="model.crashed",
            next_step="send the request again; the model is loaded anew",
            retry_after_s=1,
        )

    async def _attempt(
        self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple["_Request", "_Answer"]:
        upstream_reader, upstream_writer = await self._connect()
        request, answer = _Request(), _Answer()
        try:
            request.parser.feed_data(first)
            upstream_writer.write(first)
            async with asyncio.TaskGroup() as both:
                sending = both.create_task(_pump(reader, upstream_writer, request))
                answering = both.create_task(_relay(upstream_reader, writer, answer))
                await asyncio.wait({sending, answering}, return_when=asyncio.FIRST_COMPLETED)
                sending.cancel()
                answering.cancel()
        except* (OSError, httptools.HttpParserError) as group:
            _LOG.debug("an exchange with the local model was cut: %r", group.exceptions)
        finally:
            upstream_writer.close()
        return request, answer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for attempt in (1, 2):
            path = await self._engine.ready()
            try:
                async with asyncio.timeout(10):
                    return await asyncio.open_unix_connection(str(path), limit=_CHUNK)
            except OSError as error:
                if attempt == 2:
                    raise errors.Unavailable(
                        "the local model takes no connection", code="model.crashed", cause=str(error)
                    ) from error
                await self._engine.stop()
        raise AssertionError("unreachable")


@dataclass(slots=True)
class _Request:
    """What passed upwards. A second request sent ahead of the answer is never answered: the connection ends with the first."""

    begun: int = 0
    more_than_first: bool = False
    parser: httptools.HttpRequestParser = field(init=False)

    def __post_init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self.begun += 1


@dataclass(slots=True)
class _Answer:
    """What httptools' callbacks learn about the answer as it passes."""

    begun: bool = False
    complete: bool = False
    keep_alive: bool = False
    parser: httptools.HttpResponseParser = field(init=False)

    def __post_init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        self.begun = True

    def on_message_complete(self) -> None:
        if self.parser.get_status_code() >= 200:
            self.complete = True
            self.keep_alive = self.parser.should_keep_alive()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: _Request) -> None:
    """The rest of the request. Returns when the client has gone, which ends the exchange."""
    while chunk := await reader.read(_CHUNK):
        request.more_than_first = True
        request.parser.feed_data(chunk)
        writer.write(chunk)
        await writer.drain()


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: _Answer) -> None:
    while chunk := await reader.read(_CHUNK):
        answer.parser.feed_data(chunk)
        writer.write(chunk)
        await writer.drain()
        if answer.complete:
            return


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, error: errors.NexusError) -> None:
    """Answer with the problem and close, having read what the client was still sending (else it sees a reset, not the answer)."""
    shown = problem.render(error)
    # SDKs of model vendors look for `error`; ours look for the problem's own fields.
    shown["error"] = {"message": f"{error.message}. {error.next_step or ''}".strip(), "type": error.kind, "code": error.code}
    body = json.dumps(shown).encode()
    head = [
        f"HTTP/1.1 {problem.status_of(error)} Service Unavailable",
        f"content-type: {problem.CONTENT_TYPE}",
        f"content-length: {len(body)}",
        f"nexus-error-code: {error.code}",
        "connection: close",
    ]
    if error.retry_after_s is not None:
        head.append(f"retry-after: {error.retry_after_s:.0f}")
    writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(2):
            await writer.drain()
            writer.write_eof()
            while await reader.read(_CHUNK):
                pass


def _too_many(most: int) -> errors.NexusError:
    return errors.Exhausted(
        f"the local model has {most} connections already", code="model.busy", next_step="try again", retry_after_s=1
    )
