"""`ports.session_node.SessionNode` by asking the supervisor on its unix socket. Used by control."""

import contextlib
import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from nexus.core import sessions as nouns
from nexus.core import usage
from nexus.drivers.process import client
from nexus.ports import session_node
from nexus.wire import node as node_wire
from nexus.wire import session_node as wire

_SLOW_S = 90.0
_BESIDE_S = 10.0
_RUNS_AT_ONCE = 200


class ProcessSessions:
    """Shares the connections of the driver it is given."""

    def __init__(self, driver: client.ProcessDriver) -> None:
        self._driver = driver

    async def place(self, instances: Sequence[str], session_id: str, *, homes: Sequence[str] = ()) -> nouns.SessionPlace:
        body = {"instances": list(instances), "session": session_id, "homes": list(homes)}
        return wire.place_from_json(await self._post("/sessions", body, timeout_s=_SLOW_S))

    async def sessions(self, query: session_node.SessionQuery) -> Sequence[nouns.SessionStatus]:
        found = await self._driver.ask("GET", "/sessions", params=_fields(query))
        return [wire.status_from_json(one) for one in found["sessions"]]

    async def usage(self, after: str) -> tuple[str, Sequence[usage.UsageRow]]:
        """See `ports.session_usage.UsageNode`."""
        found = await self._driver.ask("GET", "/usage", params={"after": after})
        return str(found["token"]), [node_wire.usage_from_json(row) for row in found["rows"]]

    async def run_traffic(self, instance_id: str, run_ids: Collection[str]) -> Mapping[str, tuple[int, int]]:
        """What each of these runs received and sent by the instance's way out, as far as it is known."""
        path, found = f"/instances/{quote(instance_id, safe='')}/network", dict[str, tuple[int, int]]()
        chosen = sorted(run_ids)
        for start in range(0, len(chosen), _RUNS_AT_ONCE):
            asked = {"runs": ",".join(chosen[start : start + _RUNS_AT_ONCE])}
            told = (await self._driver.ask("GET", path, params=asked)).get("runs", {})
            found |= {run_id: (int(tally["received"]), int(tally["sent"])) for run_id, tally in told.items()}
        return found

    async def stop_session(self, instance_id: str, session_id: str, *, grace_s: float) -> nouns.SessionStatus:
        path = f"{_path(instance_id, session_id)}/stop?grace_s={grace_s:g}"
        return wire.status_from_json(await self._post(path, {}, timeout_s=grace_s + _SLOW_S))

    async def kill_session(self, instance_id: str, session_id: str) -> nouns.SessionStatus:
        return wire.status_from_json(await self._post(f"{_path(instance_id, session_id)}/kill", {}))

    async def kill_sessions(self, query: session_node.SessionQuery) -> int:
        return int((await self._post("/sessions:kill", _fields(query)))["killed"])

    async def forget_sessions(self, *, tenant: str, agent: str, environment: str, session_id: str | None) -> int:
        body = {"tenant": tenant, "agent": agent, "environment": environment, "session": session_id}
        return int((await self._post("/sessions:forget", body))["killed"])

    async def exec(
        self, instance_id: str, session_id: str, command: Sequence[str], *, stdin: str | None, timeout_s: float
    ) -> AsyncIterator[Mapping[str, Any]]:
        body = {"command": list(command), "timeout_s": timeout_s} | ({} if stdin is None else {"stdin": stdin})
        lines = self._driver.lines(
            f"{_path(instance_id, session_id)}/exec",
            {},
            read_timeout_s=timeout_s + _BESIDE_S,
            content=json.dumps(body).encode(),
        )
        async with contextlib.aclosing(lines):
            async for line in lines:
                yield line

    async def _post(self, path: str, body: Mapping[str, Any], *, timeout_s: float | None = None) -> dict[str, Any]:
        return await self._driver.ask("POST", path, content=json.dumps(body).encode(), timeout_s=timeout_s)


def _path(instance_id: str, session_id: str) -> str:
    return f"/sessions/{quote(instance_id, safe='')}/{quote(session_id, safe='')}"


def _fields(query: session_node.SessionQuery) -> dict[str, str]:
    fields = {"tenant": query.tenant, "agent": query.agent, "environment": query.environment}
    return {name: value for name, value in fields.items() if value is not None}
