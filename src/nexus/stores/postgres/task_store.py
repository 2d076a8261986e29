"""`ports.task_store.TaskStore` on PostgreSQL: submissions, reads, cancellation, owners.

What stands on a task's way goes by `task_link`: `task_submit`, `task_claim`, `task_write`.
"""

from collections.abc import Collection, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from nexus.core.phases import RunPhase
from nexus.ports import task_store
from nexus.stores.postgres import (
    task_care,
    task_claim,
    task_link,
    task_listener,
    task_queue,
    task_rows,
    task_session,
    task_submit,
)

_PAGE = sa.text(
    f"""{task_rows.SELECT} WHERE t.tenant = :tenant
    AND (CAST(:agents AS text[]) IS NULL OR t.agent = ANY(CAST(:agents AS text[])))
    AND (CAST(:environment AS text) IS NULL OR t.environment = :environment)
    AND (CAST(:phase AS text) IS NULL OR t.phase = :phase)
    AND (NOT CAST(:dead AS boolean) OR t.dead)
    AND (CAST(:before AS bigint) IS NULL OR t.number < :before)
    ORDER BY t.number DESC LIMIT :limit"""
)
_FETCH = f"{task_rows.SELECT} WHERE t.tenant = %(tenant)s AND t.id = %(id)s"
_EVENTS = "SELECT seq, name, data FROM task_events WHERE task_id = %(id)s AND seq > %(seq)s ORDER BY seq LIMIT %(limit)s"
_BACKLOG = "SELECT EXISTS (SELECT 1 FROM tasks WHERE phase = 'pending' AND NOT parked) AS any"
_HELD = "SELECT id, fence FROM tasks WHERE phase = 'running' AND owner = %(owner)s"
_UNLIMITED = 1_000_000_000


class PostgresTaskStore(task_care.TaskCare):
    """One per process; the engine is the caller's to dispose of."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._link = task_link.of(engine)
        self._claims = task_claim.Claims(self._link)

    async def submit(
        self, submissions: Sequence[task_store.Submission], *, owner: str | None = None, start: Collection[str] = ()
    ) -> Sequence[tuple[task_store.Task, bool]]:
        return await task_submit.store(self._link, submissions, owner=owner, start=start)

    async def fetch(self, tenant: str, task_id: str) -> task_store.Task | None:
        found = await self._link.look("reading a task", _FETCH, {"tenant": tenant, "id": task_id})
        return task_rows.read(found[0]) if found else None

    async def page(
        self,
        tenant: str,
        *,
        agents: Collection[str] | None,
        environment: str | None,
        phase: RunPhase | None,
        before: int | None,
        limit: int,
        dead: bool = False,
    ) -> Sequence[task_store.Task]:
        values = {
            "tenant": tenant,
            "agents": None if agents is None else sorted(agents),
            "environment": environment,
            "phase": None if phase is None else str(phase),
            "before": before,
            "limit": limit,
            "dead": dead,
        }
        async with task_session.begin(self._engine, "listing tasks") as connection:
            return [task_rows.read(row) for row in (await connection.execute(_PAGE, values)).mappings()]

    async def request_cancel(self, tenant: str, task_id: str, *, event_data: str) -> task_store.Task | None:
        async with task_session.begin(self._engine, "cancelling a task") as connection:
            row = (
                await connection.execute(
                    sa.text("SELECT phase FROM tasks WHERE tenant = :tenant AND id = :id FOR UPDATE"),
                    {"tenant": tenant, "id": task_id},
                )
            ).first()
            if row is None:
                return None
            if row.phase == RunPhase.RUNNING:
                await connection.execute(sa.text("UPDATE tasks SET cancel_requested = true WHERE id = :id"), {"id": task_id})
                await task_queue.notify(connection, task_listener.CHANNEL_CANCEL, [task_id])
            else:
                await task_queue.cancel_queued(connection, [task_id], event_data=event_data)
            return await task_rows.fetch(connection, tenant, task_id)

    async def depths(self) -> dict[task_store.Lane, task_store.Depth]:
        async with task_session.begin(self._engine, "counting the queue") as connection:
            rows = await connection.execute(
                sa.text(
                    "SELECT tenant, agent, environment, count(*) AS n, count(*) FILTER (WHERE NOT parked) AS due"
                    " FROM tasks WHERE phase = 'pending' GROUP BY 1, 2, 3"
                )
            )
            return {
                task_store.Lane(tenant=row.tenant, agent=row.agent, environment=row.environment): task_store.Depth(
                    due=row.due, all=row.n
                )
                for row in rows
            }

    async def events_after(self, task_id: str, seq: int, *, limit: int) -> Sequence[task_store.TaskEvent]:
        rows = await self._link.look("reading events", _EVENTS, {"id": task_id, "seq": seq, "limit": limit})
        return [task_store.TaskEvent(seq=row["seq"], name=row["name"], data=row["data"]) for row in rows]

    async def enlist(self, owner: str) -> None:
        async with task_session.begin(self._engine, "enlisting a dispatcher") as connection:
            await connection.execute(
                sa.text("INSERT INTO task_owners (owner, lock_key) VALUES (:owner, :key) ON CONFLICT DO NOTHING"),
                {"owner": owner, "key": task_listener.lock_key(owner)},
            )

    async def beat(self, owner: str) -> Mapping[str, task_store.Wish] | None:
        async with task_session.begin(self._engine, "renewing a lease") as connection:
            alive = await connection.execute(
                sa.text("UPDATE task_owners SET beats = beats + 1 WHERE owner = :owner"), {"owner": owner}
            )
            if alive.rowcount == 0:
                return None
            rows = await connection.execute(
                sa.text(
                    "SELECT id, cancel_requested FROM tasks"
                    " WHERE phase = 'running' AND owner = :owner AND (cancel_requested OR paused)"
                ),
                {"owner": owner},
            )
            return {row.id: "cancel" if row.cancel_requested else "pause" for row in rows}

    async def owners(self) -> dict[str, tuple[int, bool]]:
        async with task_session.begin(self._engine, "looking for dead dispatchers") as connection:
            rows = await connection.execute(
                sa.text("SELECT owner, beats, NOT pg_try_advisory_xact_lock(:class, lock_key) AS connected FROM task_owners"),
                {"class": task_listener.LOCK_CLASS},
            )
            return {row.owner: (row.beats, row.connected) for row in rows}

    async def bury(self, owner: str, *, beats: int) -> int:
        async with task_session.begin(self._engine, "taking back a dead dispatcher's tasks") as connection:
            await connection.execute(
                sa.text("SET LOCAL lock_timeout = '2s'")
            )  # the dead may hold locks until the server cuts them
            return await task_queue.bury(connection, owner, beats)

    async def claim(
        self,
        owner: str,
        *,
        limit: int,
        per_lane: int,
        paused: Collection[task_store.Lane],
        per_tenant: int | None = None,
    ) -> Sequence[task_store.Claim]:
        most = _UNLIMITED if per_tenant is None else per_tenant
        return await self._claims.take(owner, limit=limit, per_lane=per_lane, per_tenant=most, paused=paused)

    async def has_backlog(self) -> bool:
        return bool((await self._link.look("looking at the queue", _BACKLOG, {}))[0]["any"])

    async def held(self, owner: str) -> Sequence[tuple[str, int]]:
        rows = await self._link.look("looking for a dispatcher's tasks", _HELD, {"owner": owner})
        return [(row["id"], row["fence"]) for row in rows]

    async def write(self, writes: Sequence[task_store.Write]) -> Sequence[bool]:
        return await task_queue.write(self._link, self._engine, writes)


async def insert(connection: AsyncConnection, submissions: Sequence[task_store.Submission]) -> list[tuple[task_store.Task, bool]]:
    """See `TaskStore.submit`; inside the caller's transaction."""
    return await task_submit.insert(await task_link.inside(connection), submissions)
