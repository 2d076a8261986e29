"""`ports.replay_store.ReplayStore` on PostgreSQL."""

import json

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.ports import replay_store, task_store
from nexus.stores.postgres import task_listener, task_queue, task_rows, task_session

_START = sa.text(
    """
    INSERT INTO tasks (id, tenant, agent, environment, principal, body, digest, session_id, max_attempts, run_timeout_s, origin,
      replay_of, phase, created_at)
    SELECT :id, t.tenant, t.agent, :environment, :principal, t.body, t.digest, :session, 1, t.run_timeout_s, t.id, t.id,
      'pending', nexus_now()
    FROM tasks t WHERE t.tenant = :tenant AND t.id = :original AND t.replay_of IS NULL
      AND t.phase IN ('completed', 'failed', 'cancelled')
    RETURNING id
    """
)
_STARTED = sa.text("SELECT data FROM task_events WHERE task_id = :id AND name = 'run.started' ORDER BY seq DESC LIMIT 1")


class PostgresReplayStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def start(self, tenant: str, plan: replay_store.Plan) -> task_store.Task | None:
        values = {
            "id": plan.id,
            "tenant": tenant,
            "original": plan.original,
            "environment": plan.environment,
            "session": plan.session_id,
            "principal": plan.principal,
        }
        async with task_session.begin(self._engine, "starting a replay") as connection:
            if (await connection.execute(_START, values)).first() is None:
                return None
            await task_queue.notify(connection, task_listener.CHANNEL_QUEUE, [""])
            return await task_rows.fetch(connection, tenant, plan.id)

    async def version_of(self, task_id: str) -> str | None:
        async with task_session.begin(self._engine, "reading an event") as connection:
            row = (await connection.execute(_STARTED, {"id": task_id})).first()
        try:
            found = None if row is None else json.loads(row.data).get("version")
        except (ValueError, AttributeError):
            return None
        return found if isinstance(found, str) else None
