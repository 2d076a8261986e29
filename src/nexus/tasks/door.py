"""The dispatcher's way into a gateway: `POST /agents/{name}/run` over its door socket.

Connections are kept from one run to the next; leaving before the run's end closes its connection, which cancels the run.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from nexus.core import errors
from nexus.kit import http1, http1_kept
from nexus.ports import task_store
from nexus.wire import headers

_KEPT_S = 20.0  # far below the time after which a gateway closes an idle connection
_MOST_KEPT = 256
_END_S = 1.0  # for the end of an answer whose terminal event was read


class GatewayDoor:
    """`sockets` names the gateways' door sockets; they are tried in turn. `token` is the dispatcher's service token."""

    def __init__(self, *, sockets: Callable[[], Sequence[Path]], token: str, connect_timeout_s: float = 5.0) -> None:
        self._sockets = sockets
        self._token = token
        self._timeout_s = connect_timeout_s
        self._turn = 0
        self._idle: dict[Path, list[http1_kept.Connection]] = {}

    @asynccontextmanager
    async def run(self, claim: task_store.Claim) -> AsyncIterator[http1_kept.Connection]:
        """The answer, its head read. Raises `Unavailable`: `gateway.unreachable` if nothing was sent, else `upstream.failed`."""
        path, connection = await self._connect()
        over = False
        try:
            connection.send(render_request(claim, token=self._token))
            await connection.head()
            yield connection
            over = True
        except (http1.Broken, OSError) as error:
            raise errors.Unavailable("the run was lost on its way", code="upstream.failed", cause=str(error)) from error
        finally:
            if over:
                connection.when_done(_END_S, lambda: self._put_back(path, connection))
            else:
                connection.abort()

    def close(self) -> None:
        """Close what is idle."""
        for idle in self._idle.values():
            for connection in idle:
                connection.abort()
        self._idle.clear()

    def _put_back(self, path: Path, connection: http1_kept.Connection) -> None:
        idle = self._idle.setdefault(path, [])
        if connection.reusable and len(idle) < _MOST_KEPT:
            connection.used = asyncio.get_running_loop().time()
            idle.append(connection)
        else:
            connection.abort()

    def _kept(self, path: Path) -> http1_kept.Connection | None:
        idle, now = self._idle.get(path, []), asyncio.get_running_loop().time()
        while idle:
            connection = idle.pop()
            if not connection.closed and now - connection.used < _KEPT_S:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> tuple[Path, http1_kept.Connection]:
        sockets = list(self._sockets())
        self._turn += 1
        causes = []
        for step in range(len(sockets)):
            path = sockets[(self._turn + step) % len(sockets)]
            if (kept := self._kept(path)) is not None:
                return path, kept
            try:
                async with asyncio.timeout(self._timeout_s):
                    loop = asyncio.get_running_loop()
                    _, made = await loop.create_unix_connection(http1_kept.Connection, str(path))
                    return path, made
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
