"""What a running task leaves behind, in one statement for a whole group: its events, and its one result.

Each entry names the fence it was claimed with. A refused one leaves no trace: events, webhooks and notices follow from the rows
that were changed. One that is sent again because its answer was lost is taken again, and stored once.
"""

from collections.abc import Sequence

from nexus.core import ids
from nexus.ports import task_store
from nexus.stores.postgres import task_link, task_listener

# Written so that the tasks are looked up by id: the planner takes the index of running tasks for tiny, and would read all of it
# for each entry.
_RUNS = "t.phase || '' = 'running'"
_LOGGED = """
    logged AS (
      INSERT INTO task_events (task_id, seq, name, data, at) SELECT e.task_id, e.seq, e.name, e.data, nexus_now()
      FROM unnest(%(event_ids)s::text[], %(event_fences)s::bigint[], %(event_seqs)s::int[], %(event_names)s::text[],
        %(event_data)s::text[]) AS e(task_id, fence, seq, name, data)
      JOIN changed ON changed.id = e.task_id AND changed.fence = e.fence
    {once})
"""
_HEARD = f"SELECT pg_notify('{task_listener.CHANNEL_EVENTS}', line) FROM unnest(%(heard)s::text[]) AS line"  # noqa: S608 - constants
_APPEND = f"""
    WITH changed AS (
      UPDATE tasks t
      SET last_seq = greatest(t.last_seq, v.seq), progress = coalesce(v.progress, t.progress),
        message = coalesce(v.message, t.message)
      FROM unnest(%(ids)s::text[], %(fences)s::bigint[], %(seqs)s::int[], %(progress)s::float8[], %(messages)s::text[])
        AS v(id, fence, seq, progress, message)
      WHERE t.id = v.id AND t.fence = v.fence AND {_RUNS} RETURNING t.id, t.fence
    ), {_LOGGED.format(once="ON CONFLICT (task_id, seq) DO NOTHING")}, told AS ({_HEARD})
    SELECT id, fence, (SELECT count(*) FROM told) AS told FROM changed
"""  # noqa: S608 - constants
_FINISH = f"""
    WITH changed AS (
      UPDATE tasks t SET phase = v.phase, last_seq = v.seq, output = v.output, metadata = v.metadata, error = v.error,
        dead = v.phase = 'failed' AND t.replay_of IS NULL, owner = NULL, finished_at = nexus_now(),
        progress = CASE WHEN v.phase = 'completed' THEN 100 ELSE coalesce(v.progress, t.progress) END,
        message = coalesce(v.message, t.message)
      FROM unnest(%(ids)s::text[], %(fences)s::bigint[], %(seqs)s::int[], %(phases)s::text[], %(outputs)s::text[],
        %(metadata)s::text[], %(errors)s::text[], %(progress)s::float8[], %(messages)s::text[], %(deliveries)s::text[])
        AS v(id, fence, seq, phase, output, metadata, error, progress, message, delivery)
      WHERE t.id = v.id AND t.fence = v.fence AND {_RUNS}
      RETURNING t.id, t.fence, t.tenant, t.webhook_url, v.delivery
    ), {_LOGGED.format(once="")}, owed AS (
      INSERT INTO webhook_deliveries (id, task_id, tenant, url, host, status, next_at, set_at, created_at)
      SELECT delivery, id, tenant, webhook_url, coalesce(lower(substring(webhook_url FROM '^[^:]+://([^/?#]+)')), ''),
        'pending', nexus_now(), nexus_now(), nexus_now()
      FROM changed WHERE webhook_url IS NOT NULL RETURNING 1
    ), told AS ({_HEARD} UNION ALL {task_link.notify_of(task_listener.CHANNEL_WEBHOOKS, "owed")})
    SELECT id, fence, (SELECT count(*) FROM told) AS told FROM changed
"""  # noqa: S608 - constants

Statement = tuple[str, dict[str, list[object]]]
Entries = Sequence[task_store.Append] | Sequence[task_store.Finish]


def plan(appends: Sequence[task_store.Append], finishes: Sequence[task_store.Finish]) -> "list[tuple[Entries, Statement]]":
    """The statements to execute in this order, each with its entries; its rows name those whose fence held."""
    found: list[tuple[Entries, Statement]] = [(wave, _plan_append(wave)) for wave in _waves(appends)]
    return [*found, (finishes, _plan_finish(finishes))] if finishes else found


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


def _plan_append(entries: Sequence[task_store.Append]) -> Statement:
    return _APPEND, {
        "ids": [entry.task_id for entry in entries],
        "fences": [entry.fence for entry in entries],
        "seqs": [entry.events[-1].seq for entry in entries],
        "progress": [entry.progress for entry in entries],
        "messages": [entry.message for entry in entries],
        **_events([(entry, event) for entry in entries for event in entry.events]),
        "heard": list(task_link.packed([entry.task_id for entry in entries])),
    }


def _plan_finish(entries: Sequence[task_store.Finish]) -> Statement:
    return _FINISH, {
        "ids": [entry.task_id for entry in entries],
        "fences": [entry.fence for entry in entries],
        "seqs": [entry.event.seq for entry in entries],
        "phases": [str(entry.phase) for entry in entries],
        "outputs": [entry.output for entry in entries],
        "metadata": [entry.metadata for entry in entries],
        "errors": [entry.error for entry in entries],
        "progress": [entry.progress for entry in entries],
        "messages": [entry.message for entry in entries],
        "deliveries": [ids.new_id(ids.WEBHOOK) for _ in entries],
        **_events([(entry, event) for entry in entries for event in (*entry.before, entry.event)]),
        "heard": list(task_link.packed([entry.task_id for entry in entries])),
    }


def _events(entries: "Sequence[tuple[task_store.Append | task_store.Finish, task_store.TaskEvent]]") -> dict[str, list[object]]:
    return {
        "event_ids": [entry.task_id for entry, _ in entries],
        "event_fences": [entry.fence for entry, _ in entries],
        "event_seqs": [event.seq for _, event in entries],
        "event_names": [event.name for _, event in entries],
        "event_data": [event.data for _, event in entries],
    }
