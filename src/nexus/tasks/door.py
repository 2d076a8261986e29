"""The dispatcher's way into a gateway: `POST /agents/{name}/run` over its door socket, one connection for one run.

Closing the connection is how a run is cancelled, so connections are not shared. HTTP is parsed by httptools.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httptools

from nexus.core import errors
from nexus.ports import task_store
from nexus.wire import headers

_CHUNK = 64 * 1024
_MAX_HEAD = 64 * 1024


class RunStream:
    """One answer: `status` and `fields` (lower-case names) are there, the body comes from `chunks`."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._head_bytes = 0
        self._head_done = False
        self._done = False
        self.status = 0
        self.fields: dict[str, str] = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._head_done = self.status >= 200

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._done = self._head_done

    async def head(self) -> None:
        """Read up to the end of the header. Raises `Unavailable` (code `upstream.failed`)."""
        while not self._head_done:
            self._head_bytes += await self._feed()
            if self._head_bytes > _MAX_HEAD and not self._head_done:
                raise _lost("the gateway's answer has an endless header")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises `Unavailable` (code `upstream.failed`) when it is cut off before its end."""
        while True:
            if self._body:
                pieces, self._body = self._body, []
                yield b"".join(pieces)
            elif self._done:
                return
            else:
                await self._feed()

    async def body(self, limit: int) -> bytes:
        """The whole body, at most `limit` bytes."""
        whole = bytearray()
        async for piece in self.chunks():
            whole += piece
            if len(whole) > limit:
                raise _lost(f"the answer is larger than {limit} bytes")
        return bytes(whole)

    async def _feed(self) -> int:
        try:
            data = await self._reader.read(_CHUNK)
        except OSError as error:
            raise _lost("the connection broke") from error
        if not data:
            raise _lost("the connection ended before the run did")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise _lost(f"the gateway's answer is not HTTP: {error}") from error
        return len(data)


class GatewayDoor:
    """`sockets` names the gateways' door sockets; they are tried in turn. `token` is the dispatcher's service token."""

    def __init__(self, *, sockets: Callable[[], Sequence[Path]], token: str, connect_timeout_s: float = 5.0) -> None:
        self._sockets = sockets
        self._token = token
        self._timeout_s = connect_timeout_s
        self._turn = 0

    @asynccontextmanager
    async def run(self, claim: task_store.Claim) -> AsyncIterator[RunStream]:
        """The answer, its head read. Raises `Unavailable`: `gateway.unreachable` if nothing was sent, else `upstream.failed`."""
        reader, writer = await self._connect()
        try:
            try:
                writer.write(render_request(claim, token=self._token))
                await writer.drain()
            except OSError as error:
                raise _lost("the connection broke while the run was sent") from error
            stream = RunStream(reader)
            await stream.head()
            yield stream
        finally:
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sockets = list(self._sockets())
        self._turn += 1
        causes = []
        for step in range(len(sockets)):
            path = sockets[(self._turn + step) % len(sockets)]
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await asyncio.open_unix_connection(path, limit=4 * _CHUNK)
            except (OSError, TimeoutError) as error:
                causes.append(f"{path.name}: {type(error).__name__}")
        raise errors.Unavailable("no gateway takes runs at the moment", code="gateway.unreachable", cause=", ".join(causes))


def render_request(claim: task_store.Claim, *, token: str) -> bytes:
    """The request as bytes. Every value was validated when the task was submitted."""
    fields = {
        "Host": "localhost",
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Content-Length": str(len(claim.body)),
        "Accept": "text/event-stream",
        "Connection": "close",
        headers.TENANT: claim.lane.tenant,
        headers.ENVIRONMENT: claim.lane.environment,
        headers.RUN_ID: claim.id,
        headers.ATTEMPT: str(claim.attempt),
        headers.PRINCIPAL: claim.principal,
        headers.SESSION_ID: claim.session_id,
        headers.TRACEPARENT: claim.traceparent,
    }
    lines = [f"POST /agents/{claim.lane.agent}/run HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + claim.body


def _lost(why: str) -> errors.Unavailable:
    return errors.Unavailable("the run was lost on its way", code="upstream.failed", cause=why)
