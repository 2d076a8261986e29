"""Carries what sessions used from the node into the store, and adds it up for those who ask. `run` is a loop of the caller's.

What the node counted and nobody asked for yet is lost when the supervisor is killed: at most `EVERY_S` of CPU and memory, a
second of the network. What was asked for is stored before it is acknowledged, and told again otherwise.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nexus.core import errors, usage
from nexus.core.sessions import SessionStatus
from nexus.ports import session_usage
from nexus.wire import views

_LOG = logging.getLogger(__name__)
EVERY_S = 10.0
MANY = 5_000


class Accounting:
    """`grown` hears by how much the sessions of each agent have used more, once it is stored."""

    def __init__(
        self,
        *,
        node: session_usage.UsageNode,
        store: session_usage.UsageStore,
        grown: Callable[[Sequence[session_usage.Grown]], None] = lambda found: None,
    ) -> None:
        self._node, self._store, self._grown = node, store, grown
        self._token = ""
        self._collecting = asyncio.Lock()

    async def of(
        self, tenant: str, session_ids: Collection[str], *, fresh: bool = False
    ) -> Mapping[tuple[str, str, str], list[usage.UsageRow]]:
        """Rows by agent, environment and session. `fresh`: the node is asked first, if it can be."""
        if fresh:
            with contextlib.suppress(errors.NexusError):  # a supervisor of an older version knows of no usage
                await self.collect()
        found: dict[tuple[str, str, str], list[usage.UsageRow]] = {}
        for row in await self._store.of_sessions(tenant, session_ids) if session_ids else ():
            found.setdefault((row.agent, row.environment, row.session_id), []).append(row)
        return found

    async def run(self) -> None:
        while True:
            try:
                more = await self.collect()
            except errors.NexusError as error:
                more = False
                _LOG.debug("what sessions used is collected later: %s", error.message)
            if not more:
                await asyncio.sleep(EVERY_S)

    async def collect(self) -> bool:
        """Store what is new; True when there may be more at once."""
        async with self._collecting:
            token, rows = await self._node.usage(self._token)
            self._grown(await self._store.put(rows))
            self._token = token
            return len(rows) >= MANY


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What a session used in all, over all its workers and instances."""

    cpu_s: float = 0.0
    memory_byte_seconds: float = 0.0
    network_in: int = 0
    network_out: int = 0


def add_up(rows: Iterable[usage.UsageRow], status: SessionStatus | None) -> Used | None:
    """The rows of one session, with what its living worker has used since they were stored; None when nothing is known."""
    mine: list[usage.UsageRow] = []
    others: list[usage.UsageRow] = []
    for row in rows:
        (mine if status is not None and _is_of(row, status) else others).append(row)
    if status is None and not others:
        return None
    cpu_s, memory, received, sent = _sum(mine)
    if status is not None:
        now = status.usage
        cpu_s, memory = max(cpu_s, now.cpu_s), max(memory, now.memory_byte_seconds)
    before = _sum(others)
    return Used(
        cpu_s=round(cpu_s + before[0], 6),
        memory_byte_seconds=memory + before[1],
        network_in=received + before[2],
        network_out=sent + before[3],
    )


def show(view: views.SessionView, rows: Iterable[usage.UsageRow], status: SessionStatus | None) -> views.SessionView:
    """The same with what the session used."""
    used = add_up(rows, status)
    if used is None:
        return view
    return view.model_copy(
        update={
            "cpu_s": used.cpu_s,
            "memory_byte_seconds": used.memory_byte_seconds,
            "network_in": used.network_in,
            "network_out": used.network_out,
            "bytes_in": view.bytes_in + used.network_in,
            "bytes_out": view.bytes_out + used.network_out,
        }
    )


def _is_of(row: usage.UsageRow, status: SessionStatus) -> bool:
    """Whether it counts what the living session counts itself."""
    return row.instance_id == status.instance_id and row.part is usage.Part.WORKER and row.began_at >= status.created_at


def _sum(rows: Sequence[usage.UsageRow]) -> tuple[float, float, int, int]:
    return (
        sum(row.cpu_s for row in rows),
        sum(row.memory_byte_seconds for row in rows),
        sum(row.bytes_in for row in rows),
        sum(row.bytes_out for row in rows),
    )
