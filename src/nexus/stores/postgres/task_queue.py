"""What dispatchers do to the queue beside claiming: write under a fence, put back, cancel, bury owners that died.

`write` is a transaction of its own; every other function runs inside the caller's.
"""

from collections.abc import Collection, Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from nexus.core import ids
from nexus.ports import task_store
from nexus.stores.postgres import task_link, task_listener, task_session, task_write

_DOING = "recording progress of tasks"
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


async def write(link: task_link.Link, engine: AsyncEngine, writes: Sequence[task_store.Write]) -> list[bool]:
    """All in one commit: appends first, then finishes, releases and parks, so a task may append and finish in one group."""
    appends = [entry for entry in writes if isinstance(entry, task_store.Append)]
    finishes = [entry for entry in writes if isinstance(entry, task_store.Finish)]
    planned = task_write.plan(appends, finishes)
    taken: dict[int, bool] = {}
    if len(planned) == 1 and len(appends) + len(finishes) == len(writes):
        ((entries, (statement, values)),) = planned
        _mark(taken, entries, _held(await link.rows(_DOING, statement, values)))
    elif len(appends) + len(finishes) == len(writes):
        async with link.begin(_DOING) as raw:
            for entries, (statement, values) in planned:
                _mark(taken, entries, _held(await task_link.rows(raw, statement, values)))
    else:
        async with task_session.begin(engine, _DOING) as connection:
            raw = await task_link.inside(connection)
            for entries, (statement, values) in planned:
                _mark(taken, entries, _held(await task_link.rows(raw, statement, values)))
            await _write_rests(connection, writes, taken)
    return [taken[id(entry)] for entry in writes]


async def _write_rests(connection: AsyncConnection, writes: Sequence[task_store.Write], taken: dict[int, bool]) -> None:
    releases = [entry for entry in writes if isinstance(entry, task_store.Release)]
    parks = [entry for entry in writes if isinstance(entry, task_store.Park)]
    if releases:
        _mark(taken, releases, await _release(connection, releases))
    if parks:
        _mark(taken, parks, await _park(connection, parks))


def _held(rows: Sequence[task_link.Row]) -> set[tuple[str, int]]:
    return {(row["id"], row["fence"]) for row in rows}


def _mark(taken: dict[int, bool], entries: Sequence[task_store.Write], accepted: Collection[tuple[str, int]]) -> None:
    taken.update((id(entry), (entry.task_id, entry.fence) in accepted) for entry in entries)


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
    await notify(connection, task_listener.CHANNEL_EVENTS, task_link.packed([task_id for task_id, _ in entries]))


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
