"""A node of sessions in memory: `ports.session_node.SessionNode` without a process."""

import dataclasses
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from nexus.core import errors, usage
from nexus.core import sessions as nouns
from nexus.ports import session_node


class FakeSessionNode:
    """`owners` says whose an instance is: (tenant, agent, environment). Commands are kept in `commands` and echoed."""

    def __init__(self, owners: Mapping[str, tuple[str, str, str]] | None = None) -> None:
        self.owners = dict(owners or {})
        self.alive: dict[tuple[str, str], nouns.SessionStatus] = {}
        self.commands: list[tuple[str, ...]] = []
        self.used: list[usage.UsageRow] = []

    async def usage(self, after: str) -> tuple[str, Sequence[usage.UsageRow]]:
        """All of `used`, every time."""
        return "fake:1", self.used

    async def place(self, instances: Sequence[str], session_id: str, *, homes: Sequence[str] = ()) -> nouns.SessionPlace:
        home = next((key[0] for key in self.alive if key[1] == session_id and key[0] in (*instances, *homes)), None)
        chosen = home or next((one for one in instances if one in self.owners), None)
        if chosen is None:
            raise errors.NotFound("no such instance", code="session.no_instance")
        if home is None:
            tenant, agent, environment = self.owners[chosen]
            self.alive[chosen, session_id] = nouns.SessionStatus(
                session_id=session_id,
                instance_id=chosen,
                phase=nouns.SessionPhase.LIVE,
                tenant=tenant,
                agent=agent,
                environment=environment,
                version="1.0.0",
                how=nouns.How.FORK,
                created_at=time.time(),
                last_active_at=time.time(),
            )
        how = nouns.How.LIVE if home is not None else nouns.How.FORK
        return nouns.SessionPlace(
            instance_id=chosen, address=f"unix:/run/{session_id}.sock", phase=nouns.SessionPhase.LIVE, how=how
        )

    async def sessions(self, query: session_node.SessionQuery) -> Sequence[nouns.SessionStatus]:
        return [one for one in self.alive.values() if _fits(one, query)]

    async def stop_session(self, instance_id: str, session_id: str, *, grace_s: float) -> nouns.SessionStatus:
        return self._end(instance_id, session_id, nouns.SessionPhase.SAVED)

    async def kill_session(self, instance_id: str, session_id: str) -> nouns.SessionStatus:
        return self._end(instance_id, session_id, nouns.SessionPhase.ENDED)

    async def kill_sessions(self, query: session_node.SessionQuery) -> int:
        gone = [key for key, one in self.alive.items() if _fits(one, query)]
        for key in gone:
            del self.alive[key]
        return len(gone)

    async def exec(
        self, instance_id: str, session_id: str, command: Sequence[str], *, stdin: str | None, timeout_s: float
    ) -> AsyncIterator[Mapping[str, Any]]:
        self._known(instance_id, session_id)
        self.commands.append(tuple(command))
        yield {"stream": "stdout", "data": (stdin or "") + " ".join(command)}
        yield {"exit": 0}

    def _known(self, instance_id: str, session_id: str) -> nouns.SessionStatus:
        status = self.alive.get((instance_id, session_id))
        if status is None:
            raise errors.NotFound("no such session", code="session.not_found")
        return status

    def _end(self, instance_id: str, session_id: str, phase: nouns.SessionPhase) -> nouns.SessionStatus:
        status = self._known(instance_id, session_id)
        del self.alive[instance_id, session_id]
        return dataclasses.replace(status, phase=phase, pid=None)


def _fits(one: nouns.SessionStatus, query: session_node.SessionQuery) -> bool:
    return one.tenant == query.tenant and query.agent in (None, one.agent) and query.environment in (None, one.environment)
