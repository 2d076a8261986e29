"""`ports.driver.Driver` and `ports.logs.LogSource` by asking the supervisor on its unix socket. Used by control."""

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from nexus.core import errors, instances
from nexus.ports import driver, logs
from nexus.wire import node, problem

_HEARTBEAT_MISSED_S = 10.0
_MOST_STREAMS = 1000


class ProcessDriver:
    """An async context manager that keeps a few connections. Every verb may be called while the supervisor restarts: it then
    raises `Unavailable` (`driver.unreachable`) and may be called again."""

    def __init__(self, socket: Path, *, timeout_s: float = 10.0) -> None:
        self._socket = socket
        self._client = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(
                uds=str(socket), limits=httpx2.Limits(max_connections=_MOST_STREAMS, max_keepalive_connections=8)
            ),
            base_url="http://supervisor",
            timeout=timeout_s,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._client.aclose()

    async def capabilities(self) -> driver.Capabilities:
        found = await self.ask("GET", "/capabilities")
        return driver.Capabilities(**{**found, "missing": tuple(found.get("missing", ()))})

    async def start(self, spec: instances.InstanceSpec) -> None:
        await self.ask("PUT", f"/instances/{spec.id}", content=json.dumps(node.spec_to_json(spec)).encode())

    async def stop(self, instance_id: str, *, grace_s: float) -> None:
        await self.ask("DELETE", f"/instances/{instance_id}", params={"grace_s": f"{grace_s:g}"})

    async def statuses(self) -> Sequence[instances.InstanceStatus]:
        found = await self.ask("GET", "/instances")
        return [node.status_from_json(status) for status in found["instances"]]

    async def watch(self) -> AsyncIterator[instances.InstanceStatus]:
        async with contextlib.aclosing(self.lines("/events", {}, read_timeout_s=_HEARTBEAT_MISSED_S)) as lines:
            async for line in lines:
                yield node.status_from_json(line)

    async def log_tail(self, instance_id: str, *, lines: int) -> Sequence[str]:
        found = await self.ask("GET", f"/instances/{instance_id}/log", params={"lines": str(lines)})
        return [str(line) for line in found["lines"]]

    async def logs(self, query: logs.LogQuery) -> AsyncIterator[node.LogLine]:
        asked = {
            "tenant": query.tenant,
            "agent": query.agent,
            "environment": query.environment,
            "instance": query.instance_id,
            "level": query.level,
            "since": None if query.since is None else repr(query.since),
            "run": query.run_id,
            "session": query.session_id,
            "limit": str(query.limit),
            "follow": "1" if query.follow else None,
        }
        params = {name: value for name, value in asked.items() if value is not None}
        async with contextlib.aclosing(self.lines("/logs", params, read_timeout_s=None)) as lines:
            async for line in lines:
                yield line  # type: ignore[misc]

    async def ask(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        params: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """One question and its answer, or the problem it names. `timeout_s` where it may take longer than others."""
        timeout = httpx2.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s
        try:
            response = await self._client.request(method, path, content=content, params=dict(params or {}), timeout=timeout)
            value = response.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise self._unreachable(error) from error
        if response.status_code >= 400:
            raise problem.parse(value)
        return dict(value)

    async def lines(
        self, path: str, params: Mapping[str, str], *, read_timeout_s: float | None, content: bytes | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """An answer of JSON lines as they come; with `content` it is posted."""
        timeout, method = httpx2.Timeout(10.0, read=read_timeout_s), "GET" if content is None else "POST"
        try:
            async with self._client.stream(method, path, params=dict(params), timeout=timeout, content=content) as response:
                if response.status_code >= 400:
                    raise problem.parse(json.loads(await response.aread()))
                async for line in response.aiter_lines():
                    if line:
                        yield json.loads(line)
        except (httpx2.HTTPError, ValueError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> errors.Unavailable:
        return errors.Unavailable(
            "the node supervisor cannot be asked",
            code="driver.unreachable",
            cause=f"{type(error).__name__} on {self._socket.name}",
            next_step="see the host's processes with: nexus status",
            retry_after_s=1.0,
        )
