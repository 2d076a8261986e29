"""The statements that store LangGraph's checkpoints and take them away, and their values. Called by `checkpoint_store`.

A checkpoint, the new values of its channels and the look whether its thread is still where the writer thinks are one statement:
one way to the database and one commit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nexus.ports import checkpoint_store

HERE = "tenant = %(tenant)s AND agent = %(agent)s AND environment = %(environment)s AND thread = %(thread)s"
_MINE = "%(tenant)s, %(agent)s, %(environment)s, %(thread)s, %(ns)s"
_PLACE = "tenant, agent, environment, thread, ns"
PUT = f"""
    WITH ok AS (SELECT 1 WHERE CAST(%(after)s AS text) IS NULL OR coalesce((SELECT id FROM graph_checkpoints
        WHERE {HERE} AND ns = %(ns)s ORDER BY id DESC LIMIT 1), '') IN (%(after)s, %(id)s)),
    new AS (INSERT INTO graph_values ({_PLACE}, channel, version, kind, body)
      SELECT {_MINE}, v.channel, v.version, v.kind, v.body
      FROM ok, unnest(CAST(%(channels)s AS text[]), CAST(%(of)s AS text[]), CAST(%(kinds)s AS text[]),
        CAST(%(bodies)b AS bytea[])) AS v(channel, version, kind, body)
      ON CONFLICT DO NOTHING)
    INSERT INTO graph_checkpoints ({_PLACE}, id, parent, run_id, versions, kind, body, meta_kind, meta, created_at)
    SELECT {_MINE}, %(id)s, %(parent)s, %(run_id)s, CAST(%(versions)s AS jsonb), %(kind)s, %(body)b, %(meta_kind)s, %(meta)b,
      nexus_now() FROM ok
    ON CONFLICT (tenant, agent, environment, thread, ns, id) DO UPDATE SET parent = excluded.parent, run_id = excluded.run_id,
      versions = excluded.versions, kind = excluded.kind, body = excluded.body, meta_kind = excluded.meta_kind,
      meta = excluded.meta
    RETURNING 1
    """  # noqa: S608 - constants
PUT_WRITES = f"""
    INSERT INTO graph_writes ({_PLACE}, checkpoint, task, idx, task_path, channel, kind, body)
    SELECT {_MINE}, %(checkpoint)s, v.task, v.idx, v.path, v.channel, v.kind, v.body
    FROM unnest(CAST(%(tasks)s AS text[]), CAST(%(idx)s AS int[]), CAST(%(paths)s AS text[]),
      CAST(%(channels)s AS text[]), CAST(%(kinds)s AS text[]), CAST(%(bodies)b AS bytea[]))
      AS v(task, idx, path, channel, kind, body)
    ON CONFLICT (tenant, agent, environment, thread, ns, checkpoint, task, idx) DO UPDATE SET channel = excluded.channel,
      kind = excluded.kind, body = excluded.body, task_path = excluded.task_path WHERE graph_writes.idx < 0
    """  # noqa: S608 - constants
DROP_OLD = f"""
    DELETE FROM graph_checkpoints WHERE {HERE} AND ns = %(ns)s AND id < (
      SELECT id FROM graph_checkpoints WHERE {HERE} AND ns = %(ns)s ORDER BY id DESC OFFSET %(keep)s LIMIT 1)
    """  # noqa: S608 - constants
DROP_RUNS = """
    DELETE FROM graph_checkpoints WHERE tenant = %(tenant)s AND agent = %(agent)s AND environment = %(environment)s
      AND (CAST(%(thread)s AS text) IS NULL OR thread = %(thread)s) AND run_id = ANY(CAST(%(runs)s AS text[])) RETURNING thread
    """
# What no checkpoint of the thread refers to any more. NOT IN is looked up in one hash of what is referred to; as NOT EXISTS, each
# value would be compared with each checkpoint.
DROP_LOOSE = (
    f"""
    DELETE FROM graph_values WHERE {HERE} AND (ns, channel, version) NOT IN (
      SELECT c.ns, e.key, e.value FROM (SELECT ns, versions FROM graph_checkpoints WHERE {HERE}) AS c
        CROSS JOIN LATERAL jsonb_each_text(c.versions) AS e)
    """,  # noqa: S608 - constants
    f"""
    DELETE FROM graph_writes WHERE {HERE} AND (ns, checkpoint) NOT IN (SELECT ns, id FROM graph_checkpoints WHERE {HERE})
    """,  # noqa: S608 - constants
)
STALE = """
    SELECT tenant, agent, environment, thread FROM graph_checkpoints GROUP BY 1, 2, 3, 4
    HAVING max(created_at) < nexus_now() - CAST(%(keep)s AS float8) LIMIT %(limit)s
    """
_TABLES = ("graph_checkpoints", "graph_values", "graph_writes")
DROP_THREAD = tuple(f"DELETE FROM {table} WHERE {HERE}" for table in _TABLES)  # noqa: S608 - constants
DROP_LANE = tuple(
    f"DELETE FROM {table} WHERE tenant = %(tenant)s AND agent = %(agent)s"  # noqa: S608 - constants
    " AND (CAST(%(environment)s AS text) IS NULL OR environment = %(environment)s)"
    for table in _TABLES
)


def place(thread: checkpoint_store.Thread) -> dict[str, Any]:
    lane = thread.lane
    return {"tenant": lane.tenant, "agent": lane.agent, "environment": lane.environment, "thread": thread.id}


def put_values(
    thread: checkpoint_store.Thread, checkpoint: checkpoint_store.Checkpoint, versions: str, after: str | None
) -> Mapping[str, Any]:
    """`versions` as JSON."""
    blobs = checkpoint.values.values()
    return {
        **place(thread),
        "ns": checkpoint.ns,
        "id": checkpoint.id,
        "parent": checkpoint.parent,
        "run_id": checkpoint.run_id,
        "versions": versions,
        "kind": checkpoint.state.kind,
        "body": checkpoint.state.body,
        "meta_kind": checkpoint.meta.kind,
        "meta": checkpoint.meta.body,
        "after": after,
        "channels": list(checkpoint.values),
        "of": [checkpoint.versions[name] for name in checkpoint.values],
        "kinds": [blob.kind for blob in blobs],
        "bodies": [blob.body for blob in blobs],
    }


def writes_values(
    thread: checkpoint_store.Thread, ns: str, checkpoint_id: str, writes: Sequence[checkpoint_store.Write]
) -> Mapping[str, Any]:
    return {
        **place(thread),
        "ns": ns,
        "checkpoint": checkpoint_id,
        "tasks": [write.task for write in writes],
        "idx": [write.idx for write in writes],
        "paths": [write.task_path for write in writes],
        "channels": [write.channel for write in writes],
        "kinds": [write.value.kind for write in writes],
        "bodies": [write.value.body for write in writes],
    }
