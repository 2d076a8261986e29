"""What dispatchers do to the queue: claim with SKIP LOCKED, write under a fence, bury owners that died.

Every function runs inside the caller's transaction. `:paused` holds lanes as `tenant/agent/environment`.
"""

from collections.abc import Collection, Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from nexus.core import ids
from nexus.ports import task_store
from nexus.stores.postgres import task_listener, task_rows

# Walks the queue's index from lane to lane (a "loose index scan"), so its cost grows with the lanes, not with the tasks.
# A task that was put off is due when its time has come, or when the clock was set back behind the moment it was put off.
_CLAIM = sa.text(
    """
    WITH RECURSIVE lanes AS (
      (SELECT tenant, agent, environment FROM tasks WHERE phase = 'pending' AND NOT parked
        ORDER BY tenant, agent, environment LIMIT 1)
      UNION ALL
      SELECT following.* FROM lanes, LATERAL (
        SELECT t.tenant, t.agent, t.environment FROM tasks t
        WHERE t.phase = 'pending' AND NOT t.parked
          AND (t.tenant, t.agent, t.environment) > (lanes.tenant, lanes.agent, lanes.environment)
        ORDER BY t.tenant, t.agent, t.environment LIMIT 1) following
    ), limits AS (
      SELECT name, most FROM unnest(CAST(:limited AS text[]), CAST(:most AS int[])) AS v(name, most)
    ), open AS (
      SELECT lanes.*, limits.most, count(*) OVER (PARTITION BY tenant) AS siblings,
        row_number() OVER (PARTITION BY tenant ORDER BY random()) AS turn
      FROM lanes LEFT JOIN limits ON limits.name = tenant || '/' || agent || '/' || environment
      WHERE tenant || '/' || agent || '/' || environment <> ALL(CAST(:paused AS text[]))
    ), busy AS (
      SELECT tenant, agent, environment, count(*) AS running FROM tasks WHERE phase = 'running' GROUP BY 1, 2, 3
    ), hosts AS (
      SELECT tenant, sum(running) AS running FROM busy GROUP BY 1
    ), room AS (
      SELECT open.*, greatest(0, least(
        coalesce(open.most, CAST(:per_lane AS bigint)) - coalesce(busy.running, 0),
        CAST(:per_tenant AS bigint) - coalesce(hosts.running, 0),
        greatest(1, CAST(:limit AS bigint) / (SELECT count(DISTINCT tenant) FROM open) / open.siblings))) AS free
      FROM open LEFT JOIN busy USING (tenant, agent, environment) LEFT JOIN hosts USING (tenant)
      ORDER BY open.turn, random()
    ), picked AS (
      SELECT t.id FROM room CROSS JOIN LATERAL (
        SELECT q.id FROM tasks q
        WHERE q.phase = 'pending' AND NOT q.parked
          AND q.tenant = room.tenant AND q.agent = room.agent AND q.environment = room.environment
          AND (q.available_at IS NULL OR q.available_at <= CAST(:now AS float8) OR q.deferred_at > CAST(:now AS float8))
          AND (q.expires_at IS NULL OR q.expires_at > CAST(:now AS float8))
        ORDER BY q.priority DESC, q.number LIMIT room.free FOR UPDATE SKIP LOCKED) t
      LIMIT :limit
    )
    UPDATE tasks SET phase = 'running', owner = :owner, fence = fence + 1, attempt = attempt + 1, expires_at = end_by,
      started_at = coalesce(started_at, CAST(:now AS float8)), message = CASE WHEN deferrals = 0 THEN message END
    FROM picked WHERE tasks.id = picked.id
    RETURNING tasks.id, tenant, agent, environment, principal, body, fence, attempt, strikes, deferrals, max_attempts,
      last_seq, session_id, traceparent, number, retry, run_timeout_s, end_by, waits
    """
)
# Holding the rows of limited lanes makes dispatchers count them one after the other; who does not get a row leaves its lane.
_LANES = sa.text(
    """
    SELECT l.tenant || '/' || l.agent || '/' || l.environment AS name, l.concurrency, held.tenant IS NOT NULL AS held
    FROM task_lanes l LEFT JOIN (SELECT tenant, agent, environment FROM task_lanes FOR UPDATE SKIP LOCKED) held
      USING (tenant, agent, environment)
    """
)


async def claim(
    connection: AsyncConnection,
    owner: str,
    *,
    limit: int,
    per_lane: int,
    per_tenant: int,
    paused: Collection[task_store.Lane],
) -> list[task_store.Claim]:
    """Nothing when the owner has been buried: its row is held against deletion while claiming."""
    held = await connection.execute(
        sa.text(
            "SELECT nexus_now() AS now, EXISTS (SELECT 1 FROM task_lanes) AS limited FROM task_owners"
            " WHERE owner = :owner FOR KEY SHARE"
        ),
        {"owner": owner},
    )
    found = held.first()
    if found is None:
        return []
    lanes = (await connection.execute(_LANES)).all() if found.limited else []
    values = {
        "owner": owner,
        "limit": limit,
        "per_lane": per_lane,
        "per_tenant": per_tenant,
        "paused": [
            *(f"{lane.tenant}/{lane.agent}/{lane.environment}" for lane in paused),
            *(lane.name for lane in lanes if not lane.held),
        ],
        "limited": [lane.name for lane in lanes],
        "most": [lane.concurrency for lane in lanes],
        "now": found.now,
    }
    rows = sorted((await connection.execute(_CLAIM, values)).mappings(), key=lambda row: row["number"])
    return [
        task_store.Claim(
            lane=task_store.Lane(tenant=row["tenant"], agent=row["agent"], environment=row["environment"]),
            retry=task_rows.read_retry(row["retry"]),
            remaining_s=None if row["end_by"] is None else max(0.0, row["end_by"] - found.now),
            **{name: row[name] for name in _CLAIM_FIELDS},
        )
        for row in rows
    ]


_CLAIM_FIELDS = (
    "id", "principal", "body", "fence", "attempt", "strikes", "deferrals", "max_attempts", "last_seq", "session_id",
    "traceparent", "run_timeout_s", "waits",
)  # fmt: skip

_APPEND = sa.text(
    """
    UPDATE tasks t SET last_seq = v.seq, progress = coalesce(v.progress, t.progress), message = coalesce(v.message, t.message)
    FROM unnest(CAST(:ids AS text[]), CAST(:fences AS bigint[]), CAST(:seqs AS int[]), CAST(:progress AS float8[]),
      CAST(:messages AS text[])) AS v(id, fence, seq, progress, message)
    WHERE t.id = v.id AND t.fence = v.fence AND t.phase = 'running' AND t.last_seq < v.seq RETURNING t.id, t.fence
    """
)
_FINISH = sa.text(
    """
    UPDATE tasks t SET phase = v.phase, last_seq = v.seq, output = v.output, metadata = v.metadata, error = v.error,
      dead = v.phase = 'failed' AND t.replay_of IS NULL, owner = NULL, finished_at = nexus_now(),
      progress = CASE WHEN v.phase = 'completed' THEN 100 ELSE t.progress END
    FROM unnest(CAST(:ids AS text[]), CAST(:fences AS bigint[]), CAST(:seqs AS int[]), CAST(:phases AS text[]),
      CAST(:outputs AS text[]), CAST(:metadata AS text[]), CAST(:errors AS text[]))
      AS v(id, fence, seq, phase, output, metadata, error)
    WHERE t.id = v.id AND t.fence = v.fence AND t.phase = 'running' RETURNING t.id, t.fence
    """
)
_RELEASE = sa.text(
    """
    UPDATE tasks t SET phase = CASE WHEN t.paused THEN 'waiting' ELSE 'pending' END, owner = NULL, deferred_at = nexus_now(),
      available_at = CASE WHEN v.pause > 0 THEN nexus_now() + v.pause END,
      attempt = t.attempt - CASE WHEN v.began THEN 0 ELSE 1 END,
      strikes = t.strikes + CASE WHEN v.strike THEN 1 ELSE 0 END,
      deferrals = CASE WHEN v.began THEN 0 ELSE t.deferrals + 1 END,
      message = coalesce(v.note, t.message)
    FROM unnest(CAST(:ids AS text[]), CAST(:fences AS bigint[]), CAST(:pauses AS float8[]), CAST(:began AS bool[]),
      CAST(:strikes AS bool[]), CAST(:notes AS text[])) AS v(id, fence, pause, began, strike, note)
    WHERE t.id = v.id AND t.fence = v.fence AND t.phase = 'running' RETURNING t.id, t.fence, t.cancel_requested
    """
)
_HOLD = sa.text("SELECT 1 FROM tasks WHERE id = ANY(CAST(:ids AS text[])) ORDER BY id FOR UPDATE")
_PARK = sa.text(
    """
    UPDATE tasks t SET phase = CASE WHEN t.paused OR NOT v.answered THEN 'waiting' ELSE 'pending' END, asking = NOT v.answered,
      owner = NULL, deferred_at = nexus_now(), available_at = NULL, waits = t.waits + 1, deferrals = 0
    FROM (SELECT u.id, u.fence, EXISTS (SELECT 1 FROM task_asks a WHERE a.task_id = u.id AND a.status <> 'open'
        AND a.id = ANY(string_to_array(u.asks, ','))) AS answered
      FROM unnest(CAST(:ids AS text[]), CAST(:fences AS bigint[]), CAST(:asks AS text[])) AS u(id, fence, asks)) AS v
    WHERE t.id = v.id AND t.fence = v.fence AND t.phase = 'running' RETURNING t.id, t.fence, t.phase, t.cancel_requested
    """
)
_EVENTS = sa.text(
    """
    INSERT INTO task_events (task_id, seq, name, data, at) SELECT task_id, seq, name, data, nexus_now()
    FROM unnest(CAST(:ids AS text[]), CAST(:seqs AS int[]), CAST(:names AS text[]), CAST(:data AS text[]))
      AS v(task_id, seq, name, data)
    """
)
_OUTBOX = sa.text(
    """
    INSERT INTO webhook_deliveries (id, task_id, tenant, url, host, status, next_at, set_at, created_at)
    SELECT v.delivery, t.id, t.tenant, t.webhook_url, coalesce(lower(substring(t.webhook_url FROM '^[^:]+://([^/?#]+)')), ''),
      'pending', nexus_now(), nexus_now(), nexus_now()
    FROM unnest(CAST(:ids AS text[]), CAST(:deliveries AS text[])) AS v(id, delivery) JOIN tasks t ON t.id = v.id
    WHERE t.webhook_url IS NOT NULL RETURNING id
    """
)
_CANCEL = sa.text(
    """
    UPDATE tasks SET phase = 'cancelled', fence = fence + 1, last_seq = last_seq + 1, owner = NULL, cancel_requested = true,
      finished_at = nexus_now()
    WHERE id = ANY(CAST(:ids AS text[])) AND phase IN ('pending', 'waiting') RETURNING id, last_seq
    """
)


async def write(connection: AsyncConnection, writes: Sequence[task_store.Write]) -> list[bool]:
    """Appends first, then finishes and releases: a task may append and finish in one group."""
    appends = [entry for entry in writes if isinstance(entry, task_store.Append)]
    finishes = [entry for entry in writes if isinstance(entry, task_store.Finish)]
    releases = [entry for entry in writes if isinstance(entry, task_store.Release)]
    parks = [entry for entry in writes if isinstance(entry, task_store.Park)]
    taken: dict[int, bool] = {}
    for wave in _waves(appends):
        _mark(taken, wave, await _append(connection, wave))
    if finishes:
        _mark(taken, finishes, await _finish(connection, finishes))
    if releases:
        _mark(taken, releases, await _release(connection, releases))
    if parks:
        _mark(taken, parks, await _park(connection, parks))
    return [taken[id(entry)] for entry in writes]


def _mark(taken: dict[int, bool], entries: Sequence[task_store.Write], accepted: Collection[tuple[str, int]]) -> None:
    taken.update((id(entry), (entry.task_id, entry.fence) in accepted) for entry in entries)


def _waves(appends: Sequence[task_store.Append]) -> list[list[task_store.Append]]:
    """Groups in which each task stands once, in order: one UPDATE may change a row only once."""
    waves: list[list[task_store.Append]] = []
    turn: dict[str, int] = {}
    for entry in appends:
        number = turn.get(entry.task_id, 0)
        turn[entry.task_id] = number + 1
        if number == len(waves):
            waves.append([])
        waves[number].append(entry)
    return waves


async def _append(connection: AsyncConnection, entries: Sequence[task_store.Append]) -> set[tuple[str, int]]:
    result = await connection.execute(
        _APPEND,
        {
            "ids": [entry.task_id for entry in entries],
            "fences": [entry.fence for entry in entries],
            "seqs": [entry.events[-1].seq for entry in entries],
            "progress": [entry.progress for entry in entries],
            "messages": [entry.message for entry in entries],
        },
    )
    accepted = {(row.id, row.fence) for row in result}
    kept = [(entry.task_id, event) for entry in entries if (entry.task_id, entry.fence) in accepted for event in entry.events]
    await add_events(connection, kept)
    return accepted


async def _finish(connection: AsyncConnection, entries: Sequence[task_store.Finish]) -> set[tuple[str, int]]:
    result = await connection.execute(
        _FINISH,
        {
            "ids": [entry.task_id for entry in entries],
            "fences": [entry.fence for entry in entries],
            "seqs": [entry.event.seq for entry in entries],
            "phases": [str(entry.phase) for entry in entries],
            "outputs": [entry.output for entry in entries],
            "metadata": [entry.metadata for entry in entries],
            "errors": [entry.error for entry in entries],
        },
    )
    accepted = {(row.id, row.fence) for row in result}
    await add_events(connection, [(entry.task_id, entry.event) for entry in entries if (entry.task_id, entry.fence) in accepted])
    await _add_deliveries(connection, {task_id for task_id, _ in accepted})
    return accepted


async def _release(connection: AsyncConnection, entries: Sequence[task_store.Release]) -> set[tuple[str, int]]:
    result = await connection.execute(
        _RELEASE,
        {
            "ids": [entry.task_id for entry in entries],
            "fences": [entry.fence for entry in entries],
            "pauses": [entry.pause_s for entry in entries],
            "began": [entry.began for entry in entries],
            "strikes": [entry.strike for entry in entries],
            "notes": [entry.note for entry in entries],
        },
    )
    rows = result.all()
    await cancel_queued(connection, [row.id for row in rows if row.cancel_requested], event_data="{}")
    if rows:
        await notify(connection, task_listener.CHANNEL_QUEUE, [""])
    return {(row.id, row.fence) for row in rows}


async def _park(connection: AsyncConnection, entries: Sequence[task_store.Park]) -> set[tuple[str, int]]:
    """Whoever answers holds the task's row as well, so an answer is either seen here or finds the task waiting."""
    found = {"ids": [entry.task_id for entry in entries]}
    await connection.execute(_HOLD, found)
    values = {"fences": [entry.fence for entry in entries], "asks": [",".join(entry.asks) for entry in entries]}
    rows = (await connection.execute(_PARK, found | values)).all()
    await cancel_queued(connection, [row.id for row in rows if row.cancel_requested], event_data="{}")
    if any(row.phase == "pending" for row in rows):
        await notify(connection, task_listener.CHANNEL_QUEUE, [""])
    return {(row.id, row.fence) for row in rows}


async def cancel_queued(connection: AsyncConnection, task_ids: Collection[str], *, event_data: str) -> set[str]:
    """Make queued tasks cancelled, with their terminal event and webhook. The ids that were queued."""
    if not task_ids:
        return set()
    rows = (await connection.execute(_CANCEL, {"ids": list(task_ids)})).all()
    events = [(row.id, task_store.TaskEvent(seq=row.last_seq, name="run.cancelled", data=event_data)) for row in rows]
    await add_endings(connection, events)
    return {row.id for row in rows}


async def add_endings(connection: AsyncConnection, entries: Sequence[tuple[str, task_store.TaskEvent]]) -> None:
    """The terminal events of tasks that were ended in the queue, and their webhooks."""
    await add_events(connection, entries)
    await _add_deliveries(connection, {task_id for task_id, _ in entries})


async def bury(connection: AsyncConnection, owner: str, beats: int) -> int:
    """See `TaskStore.bury`."""
    gone = await connection.execute(
        sa.text("DELETE FROM task_owners WHERE owner = :owner AND beats = :beats"), {"owner": owner, "beats": beats}
    )
    if gone.rowcount == 0:
        return 0
    result = await connection.execute(
        sa.text(
            "UPDATE tasks SET phase = CASE WHEN paused THEN 'waiting' ELSE 'pending' END, owner = NULL, available_at = NULL"
            " WHERE owner = :owner AND phase = 'running' RETURNING id, cancel_requested"
        ),
        {"owner": owner},
    )
    rows = result.all()
    await cancel_queued(connection, [row.id for row in rows if row.cancel_requested], event_data="{}")
    if rows:
        await notify(connection, task_listener.CHANNEL_QUEUE, [""])
    return len(rows)


async def add_events(connection: AsyncConnection, entries: Sequence[tuple[str, task_store.TaskEvent]]) -> None:
    if not entries:
        return
    await connection.execute(
        _EVENTS,
        {
            "ids": [task_id for task_id, _ in entries],
            "seqs": [event.seq for _, event in entries],
            "names": [event.name for _, event in entries],
            "data": [event.data for _, event in entries],
        },
    )
    await notify(connection, task_listener.CHANNEL_EVENTS, {task_id for task_id, _ in entries})


async def _add_deliveries(connection: AsyncConnection, task_ids: Collection[str]) -> None:
    if not task_ids:
        return
    new = await connection.execute(_OUTBOX, {"ids": list(task_ids), "deliveries": [ids.new_id(ids.WEBHOOK) for _ in task_ids]})
    if new.first() is not None:
        await notify(connection, task_listener.CHANNEL_WEBHOOKS, [""])


async def notify(connection: AsyncConnection, channel: str, payloads: Iterable[str]) -> None:
    """Heard by listeners once the transaction commits."""
    await connection.execute(
        sa.text("SELECT pg_notify(:channel, payload) FROM unnest(CAST(:payloads AS text[])) AS payload"),
        {"channel": channel, "payloads": list(payloads)},
    )
