"""Reading LangGraph's checkpoints: each with its values and pending writes in one row, so that one statement finds all of it."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from nexus.ports import checkpoint_store
from nexus.stores.postgres.checkpoint_write import HERE

_CONDITIONS = {"ns": "ns = %(ns)s", "id": "id = %(id)s", "before": "id < %(before)s"}
_OF_C = (
    "g.tenant = %(tenant)s AND g.agent = %(agent)s AND g.environment = %(environment)s AND g.thread = %(thread)s AND g.ns = c.ns"
)


@functools.cache
def page_statement(asked: frozenset[str]) -> str:
    """For what is asked beside the thread (of `ns`, `id`, `before`): a plan for each, as PostgreSQL plans once for all values.

    Each value is looked up by its key: without the LIMIT 1 a plan made for a small table would read all values of the thread.
    """
    conditions = " AND ".join([HERE, *(text for name, text in _CONDITIONS.items() if name in asked)])
    return f"""
    SELECT c.*, v.*, w.* FROM (
      SELECT ns, id, parent, run_id, versions, kind, body, meta_kind, meta FROM graph_checkpoints WHERE {conditions}
      ORDER BY id DESC, ns LIMIT %(limit)s) AS c
    CROSS JOIN LATERAL (
      SELECT array_agg(e.key) AS value_channels, array_agg(f.kind) AS value_kinds, array_agg(f.body) AS value_bodies
      FROM jsonb_each_text(c.versions) AS e CROSS JOIN LATERAL (
        SELECT g.kind, g.body FROM graph_values g WHERE {_OF_C} AND g.channel = e.key AND g.version = e.value LIMIT 1) AS f) AS v
    CROSS JOIN LATERAL (
      SELECT array_agg(o.task) AS write_tasks, array_agg(o.idx) AS write_idx, array_agg(o.task_path) AS write_paths,
        array_agg(o.channel) AS write_channels, array_agg(o.kind) AS write_kinds, array_agg(o.body) AS write_bodies
      FROM (SELECT task, idx, task_path, channel, kind, body FROM graph_writes g WHERE {_OF_C} AND g.checkpoint = c.id
        ORDER BY task_path, task, idx) AS o) AS w
    ORDER BY c.id DESC, c.ns
    """  # noqa: S608 - constants


def checkpoint_of(row: Mapping[str, Any]) -> checkpoint_store.Checkpoint:
    return checkpoint_store.Checkpoint(
        ns=row["ns"],
        id=row["id"],
        parent=row["parent"],
        run_id=row["run_id"],
        versions=row["versions"],
        state=_blob(row["kind"], row["body"]),
        meta=_blob(row["meta_kind"], row["meta"]),
        values={
            channel: _blob(kind, body)
            for channel, kind, body in zip(*_columns(row, "value", "channels", "kinds", "bodies"), strict=True)
        },
        writes=[
            checkpoint_store.Write(task=task, idx=idx, task_path=path, channel=channel, value=_blob(kind, body))
            for task, idx, path, channel, kind, body in zip(
                *_columns(row, "write", "tasks", "idx", "paths", "channels", "kinds", "bodies"), strict=True
            )
        ],
    )


def _columns(row: Mapping[str, Any], of: str, *names: str) -> list[Sequence[Any]]:
    """Arrays of one length; PostgreSQL's aggregate of nothing is NULL."""
    return [row[f"{of}_{name}"] or () for name in names]


def _blob(kind: str, body: Any) -> checkpoint_store.Blob:
    return checkpoint_store.Blob(kind=kind, body=bytes(body))
