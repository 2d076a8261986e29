"""`ports.webhook_store.WebhookStore` on PostgreSQL: the outbox that `task_queue` fills."""

from collections.abc import Collection, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from nexus.ports import webhook_store
from nexus.stores.postgres import task_ask_store, task_listener, task_queue, task_rows, task_session

# Due: its time has come, or the clock was set back behind the moment that time was set. Walks the index from endpoint to
# endpoint, so an endpoint with a hundred thousand deliveries costs no more than one with ten.
_DUE = sa.text(
    """
    WITH RECURSIVE moment AS MATERIALIZED (SELECT nexus_now() AS now), hosts AS (
      (SELECT host FROM webhook_deliveries WHERE status = 'pending' ORDER BY host LIMIT 1)
      UNION ALL
      SELECT (SELECT d.host FROM webhook_deliveries d WHERE d.status = 'pending' AND d.host > hosts.host ORDER BY d.host LIMIT 1)
      FROM hosts WHERE hosts.host IS NOT NULL
    ), rooms AS (
      SELECT host, room FROM unnest(CAST(:hosts AS text[]), CAST(:rooms AS int[])) AS v(host, room)
    ), ripe AS (
      SELECT found.id FROM hosts LEFT JOIN rooms USING (host) CROSS JOIN LATERAL (
        SELECT d.id, d.next_at FROM webhook_deliveries d, moment
        WHERE d.status = 'pending' AND d.host = hosts.host AND (d.next_at <= now OR d.set_at > now)
        ORDER BY d.next_at LIMIT greatest(0, coalesce(rooms.room, 1))) found
      ORDER BY found.next_at LIMIT :limit
    ), picked AS (
      SELECT d.id, now FROM webhook_deliveries d JOIN ripe USING (id), moment
      WHERE d.status = 'pending' AND (d.next_at <= now OR d.set_at > now) FOR UPDATE OF d SKIP LOCKED
    )
    UPDATE webhook_deliveries d SET attempts = attempts + 1, next_at = now + :hold, set_at = now
    FROM picked WHERE d.id = picked.id RETURNING d.id, d.url, d.host, d.attempts, d.tenant, d.task_id, d.ask_id
    """
)
_TASKS = sa.text(f"{task_rows.SELECT} WHERE t.id = ANY(:ids)")
_SETTLE = sa.text(
    """
    UPDATE webhook_deliveries SET
      status = CASE WHEN CAST(:error AS text) IS NULL THEN 'delivered' WHEN CAST(:pause AS float8) IS NULL THEN 'dead'
        ELSE 'pending' END,
      last_error = :error, last_status = :status, set_at = nexus_now(), next_at = nexus_now() + coalesce(:pause, 0),
      ended_at = CASE WHEN CAST(:error AS text) IS NULL OR CAST(:pause AS float8) IS NULL THEN nexus_now() END
    WHERE id = :id AND attempts = :attempt AND status = 'pending'
    """
)
_GONE = 410
_DISABLE = sa.text(
    """
    UPDATE webhook_deliveries d SET status = 'dead', last_error = :error, last_status = 410, ended_at = nexus_now()
    FROM webhook_deliveries gone WHERE gone.id = :id AND d.id <> gone.id AND d.host = gone.host AND d.tenant = gone.tenant
      AND d.url = gone.url AND d.status = 'pending'
    """
)
_REQUEUE = sa.text(
    """
    UPDATE webhook_deliveries SET status = 'pending', attempts = 0, ended_at = NULL, next_at = nexus_now(), set_at = nexus_now()
    WHERE tenant = :tenant AND task_id = :task AND status = 'dead'
    """
)


_ROTATE = sa.text(
    """
    INSERT INTO webhook_keys (tenant, generation, rotated_at) VALUES (:tenant, 1, nexus_now())
    ON CONFLICT (tenant) DO UPDATE SET generation = webhook_keys.generation + 1, rotated_at = excluded.rotated_at
    """
)
_KEYS = sa.text(
    "SELECT tenant, generation, nexus_now() - rotated_at AS age FROM webhook_keys WHERE tenant = ANY(CAST(:tenants AS text[]))"
)


class PostgresWebhookStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def due(self, *, limit: int, hold_s: float, rooms: Mapping[str, int]) -> Sequence[webhook_store.Due]:
        async with task_session.begin(self._engine, "taking webhooks in hand") as connection:
            known = {"hosts": list(rooms), "rooms": list(rooms.values())}
            values = {"limit": limit, "hold": hold_s, **known}
            rows = (await connection.execute(_DUE, values)).all()
            if not rows:
                return []
            found = await connection.execute(_TASKS, {"ids": [row.task_id for row in rows]})
            tasks = {task.id: task for task in map(task_rows.read, found.mappings())}
            asked = await task_ask_store.fetch_all(connection, [row.ask_id for row in rows if row.ask_id is not None])
            keys = await _key_states(connection, {row.tenant for row in rows})
        return [
            webhook_store.Due(
                id=row.id,
                url=row.url,
                host=row.host,
                attempt=row.attempts,
                task=tasks[row.task_id],
                key=keys[row.tenant],
                ask=asked.get(row.ask_id),
            )
            for row in rows
        ]

    async def settle(self, attempted: webhook_store.Attempted) -> None:
        values = {
            "id": attempted.id,
            "attempt": attempted.attempt,
            "error": attempted.error,
            "status": attempted.status,
            "pause": attempted.retry_in_s,
        }
        async with task_session.begin(self._engine, "recording a webhook's attempt") as connection:
            await connection.execute(_SETTLE, values)
            if attempted.status == _GONE:
                await connection.execute(_DISABLE, {"id": attempted.id, "error": attempted.error})

    async def key_state(self, tenant: str) -> webhook_store.KeyState:
        async with task_session.begin(self._engine, "reading a webhook key") as connection:
            return (await _key_states(connection, {tenant}))[tenant]

    async def rotate_key(self, tenant: str) -> webhook_store.KeyState:
        async with task_session.begin(self._engine, "rotating a webhook key") as connection:
            await connection.execute(_ROTATE, {"tenant": tenant})
            return (await _key_states(connection, {tenant}))[tenant]

    async def requeue(self, tenant: str, task_id: str) -> bool:
        async with task_session.begin(self._engine, "replaying a webhook") as connection:
            done = await connection.execute(_REQUEUE, {"tenant": tenant, "task": task_id})
            if done.rowcount:
                await task_queue.notify(connection, task_listener.CHANNEL_WEBHOOKS, [""])
            return bool(done.rowcount)


async def _key_states(connection: AsyncConnection, tenants: Collection[str]) -> dict[str, webhook_store.KeyState]:
    found = {tenant: webhook_store.KeyState() for tenant in tenants}
    for row in await connection.execute(_KEYS, {"tenants": list(tenants)}):
        found[row.tenant] = webhook_store.KeyState(generation=row.generation, age_s=row.age)
    return found
