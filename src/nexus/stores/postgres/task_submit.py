"""How submissions become rows, in one statement: stored, started at once where the caller has room, others told of the rest.

`CHANNEL_QUEUE` says nothing of what may begin now, and of what was put off in how many seconds the first one is due.
"""

from collections.abc import Collection, Sequence
from typing import Any

from nexus.core.phases import RunPhase
from nexus.ports import task_store
from nexus.stores.postgres import task_link, task_listener, task_rows

# Name in the entry, column type. The order is that of the statement's entries.
_FIELDS = (
    ("id", "text"), ("tenant", "text"), ("agent", "text"), ("environment", "text"), ("principal", "text"), ("body", "bytea"),
    ("digest", "text"), ("session_id", "text"), ("webhook_url", "text"), ("idempotency_key", "text"), ("traceparent", "text"),
    ("priority", "int"), ("max_attempts", "int"), ("retry", "text"), ("origin", "text"), ("run_timeout_s", "float8"),
    ("queue_timeout_s", "float8"), ("total_timeout_s", "float8"), ("run_at", "float8"), ("delay_s", "float8"), ("share", "text"),
    ("share_most", "int"), ("start", "bool"),
)  # fmt: skip
_LANE = ("tenant", "agent", "environment")
_NAMES = ", ".join(name for name, _ in _FIELDS)
_ONE = f"(SELECT {', '.join(f'%({name})s::{kind} AS {name}' for name, kind in _FIELDS)}, 1 AS place)"
_MANY = f"unnest({', '.join(f'%({name})s::{kind}[]' for name, kind in _FIELDS)}) WITH ORDINALITY"

# A task is started by its own INSERT when the submitting dispatcher stands (its row is held against burial) and has asked for
# it, and its lane is not limited.
_INSERT = """
    WITH me AS (SELECT owner FROM task_owners WHERE owner = %(owner)s FOR KEY SHARE),
    entries AS (
      SELECT v.*, m.now, coalesce(v.run_at, m.now + v.delay_s) AS begin, CASE WHEN v.start AND v.run_at IS NULL
        AND v.delay_s IS NULL AND v.share = '' AND NOT EXISTS (SELECT 1 FROM task_lanes l
          WHERE l.tenant = v.tenant AND l.agent = v.agent AND l.environment = v.environment)
        THEN (SELECT owner FROM me) END AS owner
      FROM (SELECT nexus_now() AS now OFFSET 0) AS m, {source} AS v{columns}
    ), made AS (
      INSERT INTO tasks (id, tenant, agent, environment, principal, body, digest, session_id, webhook_url, idempotency_key,
        traceparent, priority, max_attempts, retry, origin, run_timeout_s, phase, owner, fence, attempt, started_at, created_at,
        parked, available_at, deferred_at, end_by, share, expires_at)
      SELECT id, tenant, agent, environment, principal, body, digest, session_id, webhook_url, idempotency_key,
        traceparent, priority, max_attempts, retry, origin, run_timeout_s,
        CASE WHEN owner IS NULL THEN 'pending' ELSE 'running' END, owner, CASE WHEN owner IS NULL THEN 0 ELSE 1 END,
        CASE WHEN owner IS NULL THEN 0 ELSE 1 END, CASE WHEN owner IS NOT NULL THEN now END, now,
        coalesce(begin > now, false), CASE WHEN begin > now THEN begin END,
        CASE WHEN begin > now AND run_at IS NULL THEN now END, now + total_timeout_s, share,
        CASE WHEN owner IS NULL THEN least(greatest(begin, now) + queue_timeout_s, now + total_timeout_s)
          ELSE now + total_timeout_s END
      FROM entries ORDER BY place
      ON CONFLICT (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
      RETURNING id, number, created_at, available_at, end_by, phase
    ), bounded AS (
      INSERT INTO task_lanes (tenant, agent, environment, share, concurrency)
      SELECT DISTINCT ON (tenant, agent, environment, share) tenant, agent, environment, share, share_most
      FROM entries WHERE share <> '' ORDER BY tenant, agent, environment, share
      ON CONFLICT (tenant, agent, environment, share) DO UPDATE SET concurrency = excluded.concurrency
      WHERE task_lanes.concurrency <> excluded.concurrency RETURNING 1
    ), waiting AS (SELECT 1 FROM made WHERE phase = 'pending' AND available_at IS NULL), told AS ({told} UNION ALL
      SELECT pg_notify('{queue}', min(available_at - created_at)::text) FROM made WHERE available_at IS NOT NULL
      HAVING count(*) > 0)
    SELECT made.*, (SELECT count(*) FROM told) AS told FROM made
"""
_TOLD = task_link.notify_of(task_listener.CHANNEL_QUEUE, "waiting")
_INSERT_ONE = _INSERT.format(source=_ONE, columns="", told=_TOLD, queue=task_listener.CHANNEL_QUEUE)
_INSERT_MANY = _INSERT.format(source=_MANY, columns=f"({_NAMES}, place)", told=_TOLD, queue=task_listener.CHANNEL_QUEUE)
_BY_KEY = (
    f"{task_rows.SELECT} JOIN unnest(%(tenants)s::text[], %(keys)s::text[]) AS v(tenant, key)"
    " ON t.tenant = v.tenant AND t.idempotency_key = v.key"
)


async def store(
    link: task_link.Link, submissions: Sequence[task_store.Submission], *, owner: str | None, start: Collection[str]
) -> list[tuple[task_store.Task, bool]]:
    """See `TaskStore.submit`."""
    statement, values = _plan(submissions, owner, start)
    made = await link.rows("submitting tasks", statement, values)
    repeated = _repeated(submissions, made)
    known = await link.rows("submitting tasks", _BY_KEY, _keys(repeated)) if repeated else []
    return _join(submissions, made, known)


async def insert(
    connection: task_link.Connection, submissions: Sequence[task_store.Submission]
) -> list[tuple[task_store.Task, bool]]:
    """The same inside the caller's transaction."""
    statement, values = _plan(submissions, None, ())
    made = await task_link.rows(connection, statement, values)
    repeated = _repeated(submissions, made)
    known = await task_link.rows(connection, _BY_KEY, _keys(repeated)) if repeated else []
    return _join(submissions, made, known)


def _plan(submissions: Sequence[task_store.Submission], owner: str | None, start: Collection[str]) -> tuple[str, dict[str, Any]]:
    entries = [_flat(entry, start) for entry in submissions]
    if len(entries) == 1:
        return _INSERT_ONE, {"owner": owner, **entries[0]}
    return _INSERT_MANY, {"owner": owner, **{name: [entry[name] for entry in entries] for name, _ in _FIELDS}}


def _flat(entry: task_store.Submission, start: Collection[str]) -> dict[str, Any]:
    found = {name: getattr(entry, name) for name, _ in _FIELDS if name not in (*_LANE, "retry", "start")}
    lane = entry.lane
    found |= {"tenant": lane.tenant, "agent": lane.agent, "environment": lane.environment}
    found["retry"] = task_rows.write_retry(entry.retry)
    found["start"] = entry.id in start
    return found


def _repeated(submissions: Sequence[task_store.Submission], made: Sequence[task_link.Row]) -> list[task_store.Submission]:
    if len(made) == len(submissions):
        return []
    fresh = {row["id"] for row in made}
    return [entry for entry in submissions if entry.id not in fresh]


def _keys(repeated: Sequence[task_store.Submission]) -> dict[str, Any]:
    return {"tenants": [entry.lane.tenant for entry in repeated], "keys": [entry.idempotency_key for entry in repeated]}


def _join(
    submissions: Sequence[task_store.Submission], made: Sequence[task_link.Row], known: Sequence[task_link.Row]
) -> list[tuple[task_store.Task, bool]]:
    fresh = {row["id"]: row for row in made}
    older = {(row["tenant"], row["idempotency_key"]): task_rows.read(row) for row in known}
    return [
        (task_rows.made(entry, fresh[entry.id], phase=RunPhase(fresh[entry.id]["phase"])), True)
        if entry.id in fresh
        else (older[entry.lane.tenant, entry.idempotency_key], False)
        for entry in submissions
    ]
