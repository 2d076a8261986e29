"""`ports.checkpoint_store.CheckpointStore` on PostgreSQL. A value is stored once for all checkpoints that share it.

A run waits for this, so it goes the short way to the database (`task_link`): one prepared statement to write, one to read.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.core import errors
from nexus.ports import checkpoint_store, task_store
from nexus.stores.postgres import checkpoint_read, checkpoint_write, task_link

_LOOK_EVERY = 32
_MOST_COUNTED = 10_000


class PostgresCheckpointStore:
    """`look_every`: after so many checkpoints of a thread it is looked for those beyond what is kept."""

    def __init__(self, engine: AsyncEngine, *, look_every: int = _LOOK_EVERY) -> None:
        self._link = task_link.of(engine)
        self._look_every = look_every
        self._counts: OrderedDict[checkpoint_store.Thread, int] = OrderedDict()

    async def put(
        self,
        thread: checkpoint_store.Thread,
        checkpoint: checkpoint_store.Checkpoint,
        *,
        keep: int,
        after: str | None = None,
    ) -> None:
        values = checkpoint_write.put_values(thread, checkpoint, json.dumps(dict(checkpoint.versions)), after)
        if not await self._link.rows("storing a checkpoint", checkpoint_write.PUT, values):
            raise errors.Conflict(
                "another worker of the session has changed its thread meanwhile",
                code="checkpoint.moved",
                phase="run",
                next_step="send the message again: the next run begins from what is there now",
            )
        if self._is_time_to_look(thread):
            await self._drop_old(thread, checkpoint.ns, keep)

    async def put_writes(
        self, thread: checkpoint_store.Thread, ns: str, checkpoint_id: str, writes: Sequence[checkpoint_store.Write]
    ) -> None:
        values = checkpoint_write.writes_values(thread, ns, checkpoint_id, writes)
        await self._link.rows("storing pending writes", checkpoint_write.PUT_WRITES, values)

    async def page(
        self,
        thread: checkpoint_store.Thread,
        *,
        ns: str | None,
        checkpoint_id: str | None,
        before: str | None,
        limit: int,
    ) -> Sequence[checkpoint_store.Checkpoint]:
        asked = {name: value for name, value in (("ns", ns), ("id", checkpoint_id), ("before", before)) if value is not None}
        statement = checkpoint_read.page_statement(frozenset(asked))
        values = {**checkpoint_write.place(thread), **asked, "limit": limit}
        return [
            checkpoint_read.checkpoint_of(row)
            for row in await self._link.look("reading checkpoints", statement, values, binary=True)
        ]

    async def delete(self, thread: checkpoint_store.Thread) -> bool:
        async with self._link.begin("deleting a thread") as connection:
            return await _all(connection, checkpoint_write.DROP_THREAD, checkpoint_write.place(thread)) > 0

    async def delete_agent(self, tenant: str, agent: str, *, environment: str | None) -> None:
        values = {"tenant": tenant, "agent": agent, "environment": environment}
        async with self._link.begin("deleting an agent's threads") as connection:
            await _all(connection, checkpoint_write.DROP_LANE, values)

    async def delete_runs(self, lane: task_store.Lane, run_ids: Sequence[str], *, thread: str | None) -> None:
        place = {"tenant": lane.tenant, "agent": lane.agent, "environment": lane.environment, "thread": thread}
        async with self._link.begin("deleting the checkpoints of a run") as connection:
            rows = await task_link.rows(connection, checkpoint_write.DROP_RUNS, {**place, "runs": list(run_ids)})
            for name in {row["thread"] for row in rows}:
                await _all(connection, checkpoint_write.DROP_LOOSE, {**place, "thread": name})

    async def sweep(self, *, keep_s: float, limit: int) -> int:
        async with self._link.begin("deleting old threads") as connection:
            rows = await task_link.rows(connection, checkpoint_write.STALE, {"keep": keep_s, "limit": limit})
            for row in rows:
                await _all(connection, checkpoint_write.DROP_THREAD, row)
            return len(rows)

    def _is_time_to_look(self, thread: checkpoint_store.Thread) -> bool:
        """Each thread in its turn, whenever this process began to count it."""
        count = self._counts[thread] = self._counts.pop(thread, len(self._counts)) + 1
        if len(self._counts) > _MOST_COUNTED:
            self._counts.popitem(last=False)
        return count % self._look_every == 0

    async def _drop_old(self, thread: checkpoint_store.Thread, ns: str, keep: int) -> None:
        place = checkpoint_write.place(thread)
        async with self._link.begin("forgetting old checkpoints") as connection:
            if await task_link.run(connection, checkpoint_write.DROP_OLD, {**place, "ns": ns, "keep": keep}):
                await _all(connection, checkpoint_write.DROP_LOOSE, place)


async def _all(connection: task_link.Connection, statements: Sequence[str], values: Mapping[str, Any]) -> int:
    """How many rows they changed."""
    return sum([await task_link.run(connection, statement, values) for statement in statements])
