"""`ports.checkpoint_store.CheckpointStore` on PostgreSQL. A value is stored once for all checkpoints that share it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from nexus.ports import checkpoint_store, task_store
from nexus.stores.postgres import task_session

_HERE = "tenant = :tenant AND agent = :agent AND environment = :environment AND thread = :thread"
_PUT = sa.text(
    """
    INSERT INTO graph_checkpoints (tenant, agent, environment, thread, ns, id, parent, run_id, versions, kind, body, meta_kind,
      meta, created_at)
    VALUES (:tenant, :agent, :environment, :thread, :ns, :id, :parent, :run_id, CAST(:versions AS jsonb), :kind, :body,
      :meta_kind, :meta, nexus_now())
    ON CONFLICT (tenant, agent, environment, thread, ns, id) DO UPDATE SET parent = excluded.parent, run_id = excluded.run_id,
      versions = excluded.versions, kind = excluded.kind, body = excluded.body, meta_kind = excluded.meta_kind,
      meta = excluded.meta
    """
)
_VALUES = sa.text(
    """
    INSERT INTO graph_values (tenant, agent, environment, thread, ns, channel, version, kind, body)
    SELECT :tenant, :agent, :environment, :thread, :ns, v.channel, v.version, v.kind, v.body
    FROM unnest(CAST(:channels AS text[]), CAST(:of AS text[]), CAST(:kinds AS text[]), CAST(:bodies AS bytea[]))
      AS v(channel, version, kind, body)
    ON CONFLICT DO NOTHING
    """
)
_WRITES = sa.text(
    """
    INSERT INTO graph_writes (tenant, agent, environment, thread, ns, checkpoint, task, idx, task_path, channel, kind, body)
    SELECT :tenant, :agent, :environment, :thread, :ns, :checkpoint, v.task, v.idx, v.path, v.channel, v.kind, v.body
    FROM unnest(CAST(:tasks AS text[]), CAST(:idx AS int[]), CAST(:paths AS text[]), CAST(:channels AS text[]),
      CAST(:kinds AS text[]), CAST(:bodies AS bytea[])) AS v(task, idx, path, channel, kind, body)
    ON CONFLICT (tenant, agent, environment, thread, ns, checkpoint, task, idx) DO UPDATE SET channel = excluded.channel,
      kind = excluded.kind, body = excluded.body, task_path = excluded.task_path WHERE graph_writes.idx < 0
    """
)
_PAGE = sa.text(
    f"""
    SELECT ns, id, parent, run_id, versions, kind, body, meta_kind, meta FROM graph_checkpoints WHERE {_HERE}
      AND (CAST(:ns AS text) IS NULL OR ns = :ns) AND (CAST(:id AS text) IS NULL OR id = :id)
      AND (CAST(:before AS text) IS NULL OR id < :before)
    ORDER BY id DESC, ns LIMIT :limit
    """  # noqa: S608 - constants
)
_VALUES_OF = sa.text(
    f"""
    SELECT v.ns, v.channel, v.version, v.kind, v.body FROM graph_values v JOIN (
      SELECT DISTINCT ns, channel, version FROM unnest(CAST(:nss AS text[]), CAST(:channels AS text[]), CAST(:of AS text[]))
        AS wanted(ns, channel, version)) AS w USING (ns, channel, version) WHERE {_HERE}
    """  # noqa: S608 - constants
)
_WRITES_OF = sa.text(
    f"""
    SELECT ns, checkpoint, task, idx, task_path, channel, kind, body FROM graph_writes
    WHERE {_HERE} AND checkpoint = ANY(CAST(:ids AS text[])) ORDER BY task_path, task, idx
    """  # noqa: S608 - constants
)
_OLD = sa.text(
    f"""
    DELETE FROM graph_checkpoints WHERE {_HERE} AND ns = :ns AND id < (
      SELECT id FROM graph_checkpoints WHERE {_HERE} AND ns = :ns ORDER BY id DESC OFFSET :keep LIMIT 1)
    """  # noqa: S608 - constants
)
_RUNS = sa.text(
    """
    DELETE FROM graph_checkpoints WHERE tenant = :tenant AND agent = :agent AND environment = :environment
      AND (CAST(:thread AS text) IS NULL OR thread = :thread) AND run_id = ANY(CAST(:runs AS text[])) RETURNING thread
    """
)
# What no checkpoint of the thread refers to any more.
_LOOSE_VALUES = sa.text(
    f"""
    DELETE FROM graph_values v WHERE {_HERE} AND NOT EXISTS (SELECT 1 FROM graph_checkpoints c
      WHERE c.tenant = v.tenant AND c.agent = v.agent AND c.environment = v.environment AND c.thread = v.thread AND c.ns = v.ns
        AND c.versions ->> v.channel = v.version)
    """  # noqa: S608 - constants
)
_LOOSE_WRITES = sa.text(
    f"""
    DELETE FROM graph_writes w WHERE {_HERE} AND NOT EXISTS (SELECT 1 FROM graph_checkpoints c
      WHERE c.tenant = w.tenant AND c.agent = w.agent AND c.environment = w.environment AND c.thread = w.thread AND c.ns = w.ns
        AND c.id = w.checkpoint)
    """  # noqa: S608 - constants
)
_STALE = sa.text(
    """
    SELECT tenant, agent, environment, thread FROM graph_checkpoints GROUP BY 1, 2, 3, 4
    HAVING max(created_at) < nexus_now() - CAST(:keep AS float8) LIMIT :limit
    """
)
_ALL = tuple(
    sa.text(f"DELETE FROM {table} WHERE {_HERE}")  # noqa: S608 - constants
    for table in ("graph_checkpoints", "graph_values", "graph_writes")
)


class PostgresCheckpointStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def put(self, thread: checkpoint_store.Thread, checkpoint: checkpoint_store.Checkpoint, *, keep: int) -> None:
        place = _place(thread)
        values = {
            **place,
            "ns": checkpoint.ns,
            "id": checkpoint.id,
            "parent": checkpoint.parent,
            "run_id": checkpoint.run_id,
            "versions": json.dumps(dict(checkpoint.versions)),
            "kind": checkpoint.state.kind,
            "body": checkpoint.state.body,
            "meta_kind": checkpoint.meta.kind,
            "meta": checkpoint.meta.body,
        }
        async with task_session.begin(self._engine, "storing a checkpoint") as connection:
            if checkpoint.values:
                new = {
                    "channels": list(checkpoint.values),
                    "of": [checkpoint.versions[name] for name in checkpoint.values],
                    "kinds": [blob.kind for blob in checkpoint.values.values()],
                    "bodies": [blob.body for blob in checkpoint.values.values()],
                }
                await connection.execute(_VALUES, {**place, "ns": checkpoint.ns, **new})
            await connection.execute(_PUT, values)
            gone = await connection.execute(_OLD, {**place, "ns": checkpoint.ns, "keep": keep})
            if gone.rowcount:
                await _drop_loose(connection, place)

    async def put_writes(
        self, thread: checkpoint_store.Thread, ns: str, checkpoint_id: str, writes: Sequence[checkpoint_store.Write]
    ) -> None:
        values = {
            **_place(thread),
            "ns": ns,
            "checkpoint": checkpoint_id,
            "tasks": [write.task for write in writes],
            "idx": [write.idx for write in writes],
            "paths": [write.task_path for write in writes],
            "channels": [write.channel for write in writes],
            "kinds": [write.value.kind for write in writes],
            "bodies": [write.value.body for write in writes],
        }
        async with task_session.begin(self._engine, "storing pending writes") as connection:
            await connection.execute(_WRITES, values)

    async def page(
        self,
        thread: checkpoint_store.Thread,
        *,
        ns: str | None,
        checkpoint_id: str | None,
        before: str | None,
        limit: int,
    ) -> Sequence[checkpoint_store.Checkpoint]:
        place = _place(thread)
        async with task_session.begin(self._engine, "reading checkpoints") as connection:
            asked = {**place, "ns": ns, "id": checkpoint_id, "before": before, "limit": limit}
            rows = (await connection.execute(_PAGE, asked)).mappings().all()
            if not rows:
                return []
            wanted = [(row["ns"], channel, version) for row in rows for channel, version in row["versions"].items()]
            columns = {"nss": [each[0] for each in wanted], "channels": [each[1] for each in wanted]}
            found = await connection.execute(_VALUES_OF, {**place, **columns, "of": [each[2] for each in wanted]})
            values = {
                (row.ns, row.channel, row.version): checkpoint_store.Blob(kind=row.kind, body=bytes(row.body)) for row in found
            }
            writes: dict[tuple[str, str], list[checkpoint_store.Write]] = {}
            for row in await connection.execute(_WRITES_OF, {**place, "ids": [row["id"] for row in rows]}):
                writes.setdefault((row.ns, row.checkpoint), []).append(_write(row))
        return [_checkpoint(row, values, writes.get((row["ns"], row["id"]), [])) for row in rows]

    async def delete(self, thread: checkpoint_store.Thread) -> None:
        async with task_session.begin(self._engine, "deleting a thread") as connection:
            for statement in _ALL:
                await connection.execute(statement, _place(thread))

    async def delete_runs(self, lane: task_store.Lane, run_ids: Sequence[str], *, thread: str | None) -> None:
        place = {"tenant": lane.tenant, "agent": lane.agent, "environment": lane.environment, "thread": thread}
        async with task_session.begin(self._engine, "deleting the checkpoints of a run") as connection:
            rows = await connection.execute(_RUNS, {**place, "runs": list(run_ids)})
            for name in {row.thread for row in rows}:
                await _drop_loose(connection, {**place, "thread": name})

    async def sweep(self, *, keep_s: float, limit: int) -> int:
        async with task_session.begin(self._engine, "deleting old threads") as connection:
            rows = (await connection.execute(_STALE, {"keep": keep_s, "limit": limit})).mappings().all()
            for row in rows:
                for statement in _ALL:
                    await connection.execute(statement, dict(row))
            return len(rows)


async def _drop_loose(connection: AsyncConnection, place: Mapping[str, Any]) -> None:
    await connection.execute(_LOOSE_VALUES, place)
    await connection.execute(_LOOSE_WRITES, place)


def _place(thread: checkpoint_store.Thread) -> dict[str, Any]:
    lane = thread.lane
    return {"tenant": lane.tenant, "agent": lane.agent, "environment": lane.environment, "thread": thread.id}


def _write(row: Any) -> checkpoint_store.Write:
    value = checkpoint_store.Blob(kind=row.kind, body=bytes(row.body))
    return checkpoint_store.Write(task=row.task, idx=row.idx, task_path=row.task_path, channel=row.channel, value=value)


def _checkpoint(
    row: Mapping[Any, Any],
    values: Mapping[tuple[str, str, str], checkpoint_store.Blob],
    writes: Sequence[checkpoint_store.Write],
) -> checkpoint_store.Checkpoint:
    versions: dict[str, str] = row["versions"]
    mine = {name: values[row["ns"], name, of] for name, of in versions.items() if (row["ns"], name, of) in values}
    return checkpoint_store.Checkpoint(
        ns=row["ns"],
        id=row["id"],
        parent=row["parent"],
        run_id=row["run_id"],
        versions=versions,
        state=checkpoint_store.Blob(kind=row["kind"], body=bytes(row["body"])),
        meta=checkpoint_store.Blob(kind=row["meta_kind"], body=bytes(row["meta"])),
        values=mine,
        writes=writes,
    )
