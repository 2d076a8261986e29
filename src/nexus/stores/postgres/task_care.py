"""What is done to tasks beside running them: pause, resume, priority, dead letters, limits, time-outs, retention."""

import json
from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.core import errors
from nexus.ports import task_store
from nexus.stores.postgres import task_listener, task_queue, task_rows, task_session
from nexus.wire import problem, runs

_PAUSE = sa.text(
    """
    UPDATE tasks SET paused = true, phase = CASE WHEN phase = 'pending' THEN 'waiting' ELSE phase END
    WHERE tenant = :tenant AND id = :id AND phase IN ('pending', 'running', 'waiting') RETURNING phase
    """
)
_RESUME = sa.text(
    """
    UPDATE tasks SET paused = false, phase = CASE WHEN phase = 'waiting' AND NOT asking THEN 'pending' ELSE phase END
    WHERE tenant = :tenant AND id = :id AND paused AND phase IN ('waiting', 'running') RETURNING phase
    """
)
_PRIORITY = sa.text(
    "UPDATE tasks SET priority = :priority WHERE tenant = :tenant AND id = :id AND phase IN ('pending', 'running', 'waiting')"
)
_REVIVE = sa.text(
    """
    INSERT INTO tasks (id, tenant, agent, environment, principal, body, digest, session_id, webhook_url, idempotency_key,
      traceparent, priority, max_attempts, run_timeout_s, retry, origin, share, phase, created_at)
    SELECT v.fresh, t.tenant, t.agent, t.environment, t.principal, t.body, t.digest, t.session_id, t.webhook_url,
      'requeue ' || t.id, t.traceparent, t.priority, t.max_attempts, t.run_timeout_s, t.retry, t.id, t.share,
      'pending', nexus_now()
    FROM unnest(CAST(:ids AS text[]), CAST(:fresh AS text[])) AS v(id, fresh) JOIN tasks t ON t.id = v.id
    WHERE t.tenant = :tenant AND t.phase IN ('completed', 'failed', 'cancelled')
    ON CONFLICT (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING RETURNING id
    """
)
_REVIVED = sa.text(
    f"{task_rows.SELECT} WHERE t.tenant = :tenant AND t.idempotency_key = ANY(CAST(:keys AS text[])) ORDER BY t.number"
)
_PURGE = sa.text(
    """
    WITH gone AS (DELETE FROM tasks t WHERE t.tenant = :tenant AND t.id = ANY(CAST(:ids AS text[]))
      AND t.phase IN ('completed', 'failed', 'cancelled')
      AND NOT EXISTS (SELECT 1 FROM webhook_deliveries d WHERE d.task_id = t.id AND d.status = 'pending') RETURNING t.id),
    told AS (DELETE FROM task_events e USING gone WHERE e.task_id = gone.id)
    SELECT count(*) FROM gone
    """
)
# What was to start after a delay starts as well when the clock was set back behind the moment it was stored: else it would wait
# as much longer.
_DUE = sa.text(
    """
    UPDATE tasks SET parked = false, available_at = NULL, deferred_at = NULL WHERE id IN (
      SELECT id FROM tasks WHERE phase = 'pending' AND parked AND available_at <= nexus_now()
      ORDER BY available_at LIMIT 1000 FOR UPDATE SKIP LOCKED)
    OR id IN (
      SELECT id FROM tasks WHERE phase = 'pending' AND parked AND deferred_at > nexus_now()
      ORDER BY deferred_at LIMIT 1000 FOR UPDATE SKIP LOCKED)
    """
)
_NEXT = sa.text("SELECT min(available_at) - nexus_now() FROM tasks WHERE phase = 'pending' AND parked")
_EXPIRE = sa.text(
    """
    UPDATE tasks SET phase = 'failed', dead = true, fence = fence + 1, last_seq = last_seq + 1, owner = NULL,
      finished_at = nexus_now(), error = CASE WHEN expires_at >= end_by THEN :total ELSE :queue END
    WHERE id IN (
      SELECT id FROM tasks WHERE phase IN ('pending', 'waiting') AND expires_at <= nexus_now()
      ORDER BY expires_at LIMIT 500 FOR UPDATE SKIP LOCKED)
    RETURNING id, last_seq, error
    """
)
_SWEEP = sa.text(
    """
    WITH gone AS (DELETE FROM tasks WHERE id IN (
      SELECT t.id FROM tasks t WHERE t.finished_at IS NOT NULL
        AND t.finished_at < nexus_now() - CASE WHEN t.phase = 'failed' THEN CAST(:failed AS float8)
          ELSE CAST(:completed AS float8) END
        AND t.finished_at < nexus_now() - least(CAST(:failed AS float8), CAST(:completed AS float8))
        AND NOT EXISTS (SELECT 1 FROM webhook_deliveries d WHERE d.task_id = t.id AND d.status = 'pending')
      ORDER BY t.finished_at LIMIT :limit FOR UPDATE SKIP LOCKED) RETURNING id),
    told AS (DELETE FROM task_events e USING gone WHERE e.task_id = gone.id)
    SELECT count(*) FROM gone
    """
)
_CHATTY = (runs.MESSAGE_DELTA, runs.PROGRESS)
_THIN = sa.text(
    """
    WITH over AS (
      SELECT id, finished_at FROM tasks WHERE finished_at > :after AND finished_at <= :until ORDER BY finished_at LIMIT :limit
    ), gone AS (
      DELETE FROM task_events e USING over WHERE e.task_id = over.id AND e.name = ANY(CAST(:chatty AS text[])) RETURNING 1
    )
    SELECT (SELECT count(*) FROM gone) AS gone, count(*) AS tasks, max(finished_at) AS reached FROM over
    """
)
_LOG_BYTES = sa.text(
    """
    SELECT pg_total_relation_size('task_events')
      * CASE WHEN n_live_tup + n_dead_tup > 0 THEN n_live_tup::float8 / (n_live_tup + n_dead_tup) ELSE 1 END
    FROM pg_stat_user_tables WHERE relid = 'task_events'::regclass
    """
)
# A key without tasks needs no limit; one that comes back meanwhile counts as limited to one until its next submission.
_FORGET_SHARES = sa.text(
    """
    DELETE FROM task_lanes l WHERE l.share <> '' AND NOT EXISTS (
      SELECT 1 FROM tasks t WHERE t.phase IN ('pending', 'running', 'waiting') AND t.tenant = l.tenant AND t.agent = l.agent
        AND t.environment = l.environment AND t.share = l.share)
    """
)
_LIMIT = sa.text(
    """
    INSERT INTO task_lanes (tenant, agent, environment, concurrency) VALUES (:tenant, :agent, :environment, :concurrency)
    ON CONFLICT (tenant, agent, environment, share) DO UPDATE SET concurrency = excluded.concurrency
    WHERE task_lanes.concurrency <> excluded.concurrency
    """
)


class TaskCare:
    """The half of `PostgresTaskStore` that is not on the way of a run."""

    _engine: AsyncEngine

    async def request_pause(self, tenant: str, task_id: str) -> task_store.Task | None:
        async with task_session.begin(self._engine, "pausing a task") as connection:
            found = (await connection.execute(_PAUSE, {"tenant": tenant, "id": task_id})).first()
            if found is not None and found.phase == "running":
                await task_queue.notify(connection, task_listener.CHANNEL_PAUSE, [task_id])
            return await task_rows.fetch(connection, tenant, task_id)

    async def resume(self, tenant: str, task_id: str) -> task_store.Task | None:
        async with task_session.begin(self._engine, "resuming a task") as connection:
            found = (await connection.execute(_RESUME, {"tenant": tenant, "id": task_id})).first()
            if found is not None and found.phase == "pending":
                await task_queue.notify(connection, task_listener.CHANNEL_QUEUE, [""])
            return await task_rows.fetch(connection, tenant, task_id)

    async def set_priority(self, tenant: str, task_id: str, priority: int) -> task_store.Task | None:
        async with task_session.begin(self._engine, "changing a task's priority") as connection:
            await connection.execute(_PRIORITY, {"tenant": tenant, "id": task_id, "priority": priority})
            return await task_rows.fetch(connection, tenant, task_id)

    async def revive(self, tenant: str, copies: Mapping[str, str]) -> Sequence[task_store.Task]:
        async with task_session.begin(self._engine, "queueing tasks again") as connection:
            values = {"tenant": tenant, "ids": list(copies), "fresh": list(copies.values())}
            made = (await connection.execute(_REVIVE, values)).all()
            await connection.execute(
                sa.text("UPDATE tasks SET dead = false WHERE tenant = :tenant AND id = ANY(CAST(:ids AS text[])) AND dead"),
                {"tenant": tenant, "ids": list(copies)},
            )
            if made:
                await task_queue.notify(connection, task_listener.CHANNEL_QUEUE, [""])
            rows = await connection.execute(_REVIVED, {"tenant": tenant, "keys": [f"requeue {known}" for known in copies]})
            return [task_rows.read(row) for row in rows.mappings()]

    async def purge(self, tenant: str, task_ids: Sequence[str]) -> int:
        async with task_session.begin(self._engine, "deleting tasks") as connection:
            return int((await connection.execute(_PURGE, {"tenant": tenant, "ids": list(task_ids)})).scalar_one())

    async def limit_lane(self, lane: task_store.Lane, concurrency: int | None) -> None:
        values = {"tenant": lane.tenant, "agent": lane.agent, "environment": lane.environment}
        async with task_session.begin(self._engine, "limiting an agent's tasks") as connection:
            if concurrency is None:
                await connection.execute(
                    sa.text(
                        "DELETE FROM task_lanes"
                        " WHERE tenant = :tenant AND agent = :agent AND environment = :environment AND share = ''"
                    ),
                    values,
                )
            else:
                await connection.execute(_LIMIT, {**values, "concurrency": concurrency})
            await task_queue.notify(connection, task_listener.CHANNEL_QUEUE, [""])

    async def tend(self) -> task_store.Tended:
        async with task_session.begin(self._engine, "looking after the queue") as connection:
            due = (await connection.execute(_DUE)).rowcount
            late = (await connection.execute(_EXPIRE, {"total": _problem(total=True), "queue": _problem(total=False)})).all()
            ended = [(row.id, task_store.TaskEvent(seq=row.last_seq, name="run.failed", data=row.error)) for row in late]
            await task_queue.add_endings(connection, ended)
            next_s = (await connection.execute(_NEXT)).scalar_one_or_none()
            return task_store.Tended(due=due, expired=len(late), next_s=next_s)

    async def sweep(self, *, keep_completed_s: float, keep_failed_s: float, limit: int) -> int:
        async with task_session.begin(self._engine, "deleting old tasks") as connection:
            values = {"completed": keep_completed_s, "failed": keep_failed_s, "limit": limit}
            await connection.execute(_FORGET_SHARES)
            return int((await connection.execute(_SWEEP, values)).scalar_one())

    async def thin(self, *, after: float, until: float, limit: int) -> tuple[int, float | None]:
        async with task_session.begin(self._engine, "thinning the event log") as connection:
            values = {"after": after, "until": until, "limit": limit, "chatty": list(_CHATTY)}
            row = (await connection.execute(_THIN, values)).one()
            return int(row.gone), row.reached if row.tasks >= limit else None

    async def log_bytes(self) -> int:
        async with task_session.begin(self._engine, "measuring the event log") as connection:
            return int((await connection.execute(_LOG_BYTES)).scalar_one())

    async def finished_within(self, tenant: str, seconds: float) -> int:
        async with task_session.begin(self._engine, "measuring the queue") as connection:
            found = await connection.execute(
                sa.text("SELECT count(*) FROM tasks WHERE finished_at >= nexus_now() - :seconds AND tenant = :tenant"),
                {"tenant": tenant, "seconds": seconds},
            )
            return int(found.scalar_one())


def _problem(*, total: bool) -> str:
    error = (
        errors.Exhausted(
            "the task was not over within its total time",
            code="task.deadline",
            next_step="give it a longer total_timeout, or find out why it waited: nexus ai agent task events",
        )
        if total
        else errors.Exhausted(
            "the task did not begin within its time in the queue",
            code="task.queue_timeout",
            next_step="raise the deployment's replicas or the task's priority, or give it a longer queue_timeout",
        )
    )
    return json.dumps(problem.render(error), ensure_ascii=True, separators=(",", ":"))
