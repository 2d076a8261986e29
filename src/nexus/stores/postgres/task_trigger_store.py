"""`ports.trigger_store.TriggerStore` on PostgreSQL."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.ports import trigger_store
from nexus.ports.task_store import Lane, Submission, Task
from nexus.stores.postgres import task_rows, task_session, task_store

_SAME = (
    "id", "name", "kind", "principal", "settings", "template", "active", "taken", "refused", "last_at", "last_task_id",
    "problem", "created_at",
)  # fmt: skip
_INSERT = sa.text(
    """
    INSERT INTO task_triggers (id, tenant, agent, environment, name, kind, principal, settings, sealed, template, created_at)
    VALUES (:id, :tenant, :agent, :environment, :name, :kind, :principal, :settings, :sealed, :template, nexus_now())
    ON CONFLICT (tenant, name) DO NOTHING
    """
)
_BY_NAME = sa.text("SELECT * FROM task_triggers WHERE tenant = :tenant AND name = :name")
_BY_ID = sa.text("SELECT * FROM task_triggers WHERE id = :id AND active")
_PAGE = sa.text(
    "SELECT * FROM task_triggers WHERE tenant = :tenant"
    " AND (CAST(:agents AS text[]) IS NULL OR agent = ANY(CAST(:agents AS text[]))) ORDER BY name"
)
_QUEUES = sa.text("SELECT * FROM task_triggers WHERE kind = 'queue' AND active ORDER BY id")
_ACTIVE = sa.text("UPDATE task_triggers SET active = :active WHERE tenant = :tenant AND name = :name RETURNING *")
_DELETE = sa.text("DELETE FROM task_triggers WHERE tenant = :tenant AND name = :name")
_TAKEN = sa.text(
    "UPDATE task_triggers SET taken = taken + 1, last_at = nexus_now(), last_task_id = :task, problem = NULL WHERE id = :id"
)
_REPLY = sa.text(
    """
    INSERT INTO task_replies (task_id, trigger_id, topic, correlation)
    SELECT :task, id, :topic, :correlation FROM task_triggers WHERE id = :id
    """
)
_NOTE = sa.text(
    "UPDATE task_triggers SET problem = :problem, refused = refused + :refused WHERE id = :id"
    " AND (problem IS DISTINCT FROM :problem OR CAST(:refused AS bigint) > 0)"
)
_DUE = sa.text(
    f"""
    SELECT {task_rows.COLUMNS}, r.topic AS reply_topic, r.correlation AS reply_correlation
    FROM task_replies r JOIN tasks t ON t.id = r.task_id LEFT JOIN webhook_deliveries d ON d.task_id = t.id AND d.ask_id IS NULL
    WHERE r.trigger_id = :id AND t.phase IN ('completed', 'failed', 'cancelled') ORDER BY t.finished_at LIMIT :limit
    """  # noqa: S608 - constants
)
_REPLIED = sa.text("DELETE FROM task_replies WHERE task_id = ANY(CAST(:ids AS text[]))")


class PostgresTriggerStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def create(self, trigger: trigger_store.Trigger) -> bool:
        values = {name: getattr(trigger, name) for name in (*_SAME, "sealed")} | {
            "tenant": trigger.lane.tenant,
            "agent": trigger.lane.agent,
            "environment": trigger.lane.environment,
        }
        async with task_session.begin(self._engine, "creating a trigger") as connection:
            return bool((await connection.execute(_INSERT, values)).rowcount)

    async def fetch(self, tenant: str, name: str) -> trigger_store.Trigger | None:
        async with task_session.begin(self._engine, "reading a trigger") as connection:
            row = (await connection.execute(_BY_NAME, {"tenant": tenant, "name": name})).mappings().first()
            return None if row is None else _read(row)

    async def by_id(self, trigger_id: str) -> trigger_store.Trigger | None:
        async with task_session.begin(self._engine, "reading a trigger") as connection:
            row = (await connection.execute(_BY_ID, {"id": trigger_id})).mappings().first()
            return None if row is None else _read(row)

    async def page(self, tenant: str, *, agents: Collection[str] | None) -> Sequence[trigger_store.Trigger]:
        async with task_session.begin(self._engine, "listing triggers") as connection:
            values = {"tenant": tenant, "agents": None if agents is None else sorted(agents)}
            return [_read(row) for row in (await connection.execute(_PAGE, values)).mappings()]

    async def queues(self) -> Sequence[trigger_store.Trigger]:
        async with task_session.begin(self._engine, "listing triggers") as connection:
            return [_read(row) for row in (await connection.execute(_QUEUES)).mappings()]

    async def set_active(self, tenant: str, name: str, *, active: bool) -> trigger_store.Trigger | None:
        async with task_session.begin(self._engine, "changing a trigger") as connection:
            values = {"tenant": tenant, "name": name, "active": active}
            row = (await connection.execute(_ACTIVE, values)).mappings().first()
            return None if row is None else _read(row)

    async def delete(self, tenant: str, name: str) -> bool:
        async with task_session.begin(self._engine, "deleting a trigger") as connection:
            return bool((await connection.execute(_DELETE, {"tenant": tenant, "name": name})).rowcount)

    async def take(self, trigger_id: str, submission: Submission, *, reply: trigger_store.Reply | None) -> tuple[Task, bool]:
        async with task_session.begin(self._engine, "taking a message") as connection:
            ((task, created),) = await task_store.insert(connection, [submission])
            if created:
                if reply is not None:
                    values = {"task": task.id, "id": trigger_id, "topic": reply.topic, "correlation": reply.correlation}
                    await connection.execute(_REPLY, values)
                await connection.execute(_TAKEN, {"id": trigger_id, "task": task.id})
            return task, created

    async def note(self, trigger_id: str, *, problem: str | None, refused: int = 0) -> None:
        async with task_session.begin(self._engine, "noting a trigger's problem") as connection:
            await connection.execute(_NOTE, {"id": trigger_id, "problem": problem, "refused": refused})

    async def due_replies(self, trigger_id: str, *, limit: int) -> Sequence[trigger_store.DueReply]:
        async with task_session.begin(self._engine, "looking for results to publish") as connection:
            return [
                trigger_store.DueReply(
                    task=task_rows.read(row),
                    reply=trigger_store.Reply(topic=row["reply_topic"], correlation=row["reply_correlation"]),
                )
                for row in (await connection.execute(_DUE, {"id": trigger_id, "limit": limit})).mappings()
            ]

    async def replied(self, task_ids: Sequence[str]) -> None:
        async with task_session.begin(self._engine, "noting published results") as connection:
            await connection.execute(_REPLIED, {"ids": list(task_ids)})


def _read(row: Mapping[Any, Any]) -> trigger_store.Trigger:
    lane = Lane(tenant=row["tenant"], agent=row["agent"], environment=row["environment"])
    return trigger_store.Trigger(lane=lane, sealed=bytes(row["sealed"]), **{name: row[name] for name in _SAME})
