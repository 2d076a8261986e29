"""`ports.schedule_store.ScheduleStore` on PostgreSQL. A schedule that fires is locked until its tasks are committed with it."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.ports import schedule_store
from nexus.ports.task_store import Lane
from nexus.stores.postgres import task_session, task_store

_INSERT = sa.text(
    """
    INSERT INTO task_schedules (id, tenant, agent, environment, name, principal, cron, timezone, catch_up, template, active,
      next_at, created_at)
    VALUES (:id, :tenant, :agent, :environment, :name, :principal, :cron, :timezone, :catch_up, :template, true, :next_at,
      :created_at)
    ON CONFLICT (tenant, name) DO NOTHING
    """
)
_DUE = sa.text(
    """
    SELECT * FROM task_schedules WHERE active AND next_at <= nexus_now()
    ORDER BY next_at LIMIT :limit FOR UPDATE SKIP LOCKED
    """
)
_FIRED = sa.text(
    """
    UPDATE task_schedules SET next_at = :next_at, last_at = :last_at, missed = missed + :missed, fired = fired + :fired,
      last_task_id = coalesce(:task, last_task_id) WHERE id = :id
    """
)
_SAME = (
    "id", "name", "principal", "cron", "timezone", "catch_up", "template", "active", "next_at", "last_at", "last_task_id",
    "fired", "missed", "created_at",
)  # fmt: skip


class PostgresScheduleStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def create(self, schedule: schedule_store.Schedule) -> bool:
        values = {name: getattr(schedule, name) for name in _SAME} | {
            "tenant": schedule.lane.tenant,
            "agent": schedule.lane.agent,
            "environment": schedule.lane.environment,
        }
        async with task_session.begin(self._engine, "creating a schedule") as connection:
            return bool((await connection.execute(_INSERT, values)).rowcount)

    async def fetch(self, tenant: str, name: str) -> schedule_store.Schedule | None:
        async with task_session.begin(self._engine, "reading a schedule") as connection:
            rows = await connection.execute(
                sa.text("SELECT * FROM task_schedules WHERE tenant = :tenant AND name = :name"), {"tenant": tenant, "name": name}
            )
            row = rows.mappings().first()
            return None if row is None else _read(row)

    async def page(self, tenant: str, *, agents: Collection[str] | None) -> list[schedule_store.Schedule]:
        async with task_session.begin(self._engine, "listing schedules") as connection:
            rows = await connection.execute(
                sa.text(
                    "SELECT * FROM task_schedules WHERE tenant = :tenant AND (CAST(:agents AS text[]) IS NULL"
                    " OR agent = ANY(CAST(:agents AS text[]))) ORDER BY name"
                ),
                {"tenant": tenant, "agents": None if agents is None else sorted(agents)},
            )
            return [_read(row) for row in rows.mappings()]

    async def set_active(self, tenant: str, name: str, *, active: bool, next_at: float | None) -> schedule_store.Schedule | None:
        async with task_session.begin(self._engine, "changing a schedule") as connection:
            rows = await connection.execute(
                sa.text(
                    "UPDATE task_schedules SET active = :active, next_at = :next_at"
                    " WHERE tenant = :tenant AND name = :name RETURNING *"
                ),
                {"tenant": tenant, "name": name, "active": active, "next_at": next_at},
            )
            row = rows.mappings().first()
            return None if row is None else _read(row)

    async def delete(self, tenant: str, name: str) -> bool:
        async with task_session.begin(self._engine, "deleting a schedule") as connection:
            done = await connection.execute(
                sa.text("DELETE FROM task_schedules WHERE tenant = :tenant AND name = :name"), {"tenant": tenant, "name": name}
            )
            return bool(done.rowcount)

    async def fire(self, plan: Callable[[schedule_store.Schedule, float], schedule_store.Firing], *, limit: int) -> int:
        made = 0
        async with task_session.begin(self._engine, "firing schedules") as connection:
            now = (await connection.execute(sa.text("SELECT nexus_now()"))).scalar_one()
            due = [_read(row) for row in (await connection.execute(_DUE, {"limit": limit})).mappings()]
            for schedule in due:
                firing = plan(schedule, now)
                stored = await task_store.insert(connection, firing.submissions) if firing.submissions else []
                fresh = [task for task, created in stored if created]
                made += len(fresh)
                values = {
                    "id": schedule.id,
                    "next_at": firing.next_at,
                    "last_at": firing.last_at,
                    "missed": firing.missed,
                    "fired": len(fresh),
                    "task": fresh[-1].id if fresh else None,
                }
                await connection.execute(_FIRED, values)
        return made

    async def due_lanes(self, *, limit: int) -> list[Lane]:
        async with task_session.begin(self._engine, "looking for due schedules") as connection:
            rows = await connection.execute(
                sa.text(
                    "SELECT DISTINCT tenant, agent, environment FROM (SELECT * FROM task_schedules"
                    " WHERE active AND next_at <= nexus_now() ORDER BY next_at LIMIT :limit) AS due"
                ),
                {"limit": limit},
            )
            return [Lane(tenant=row.tenant, agent=row.agent, environment=row.environment) for row in rows]

    async def now(self) -> float:
        async with task_session.begin(self._engine, "reading the clock") as connection:
            return float((await connection.execute(sa.text("SELECT nexus_now()"))).scalar_one())


def _read(row: Mapping[Any, Any]) -> schedule_store.Schedule:
    lane = Lane(tenant=row["tenant"], agent=row["agent"], environment=row["environment"])
    return schedule_store.Schedule(lane=lane, **{name: row[name] for name in _SAME})
