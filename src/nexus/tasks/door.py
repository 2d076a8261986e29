"""The dispatcher's way into a gateway: `POST /agents/{name}/run` over its door socket, one connection for one run.

Closing the connection is how a run is cancelled, so connections are not shared. The caller reads the answer inside the context.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from nexus.core import errors
from nexus.kit import http1
from nexus.ports import task_store
from nexus.wire import headers


class GatewayDoor:
    """`sockets` names the gateways' door sockets; they are tried in turn. `token` is the dispatcher's service token."""

    def __init__(self, *, sockets: Callable[[], Sequence[Path]], token: str, connect_timeout_s: float = 5.0) -> None:
        self._sockets = sockets
        self._token = token
        self._timeout_s = connect_timeout_s
        self._turn = 0

    @asynccontextmanager
    async def run(self, claim: task_store.Claim) -> AsyncIterator[http1.AnswerStream]:
        """The answer, its head read. Raises `Unavailable`: `gateway.unreachable` if nothing was sent, else `upstream.failed`."""
        reader, writer = await self._connect()
        try:
            writer.write(render_request(claim, token=self._token))
            await writer.drain()
            stream = http1.AnswerStream(reader)
            await stream.head()
            yield stream
        except (http1.Broken, OSError) as error:
            raise errors.Unavailable("the run was lost on its way", code="upstream.failed", cause=str(error)) from error
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
                    return await asyncio.open_unix_connection(path, limit=256 * 1024)
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
