"""`ports.run_store.RunStore` on PostgreSQL."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.ports import run_store
from nexus.stores.postgres import task_schema, task_session

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]
_RUN_COLUMNS = tuple(column.name for column in task_schema.RUN_RECORDS.columns)


def _render_insert(table: sa.Table, returning: str) -> sa.TextClause:
    """One statement for any number of records, as one JSON text: an insert of many rows would be compiled anew each time."""
    names = ", ".join(column.name for column in table.columns)
    types = ", ".join(f"{column.name} {column.type.compile(dialect=_DIALECT)}" for column in table.columns)
    return sa.text(
        f"INSERT INTO {table.name} ({names}) SELECT {names} FROM json_to_recordset(CAST(:records AS json)) AS r ({types})"  # noqa: S608
        f" ON CONFLICT DO NOTHING RETURNING {returning}"
    )


_ADD_RUNS = _render_insert(task_schema.RUN_RECORDS, "id, started_at, instance_id")
_ADD_MODELS = _render_insert(task_schema.MODEL_RECORDS, "id")
_WITH_TOKENS = """
    SELECT r.*, coalesce(m.input_tokens, 0) AS input_tokens, coalesce(m.output_tokens, 0) AS output_tokens,
      m.cost_nano
    FROM run_records r LEFT JOIN LATERAL (
      SELECT sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens,
        sum(cost_nano)::bigint AS cost_nano
      FROM model_records WHERE tenant = r.tenant AND run_id = r.id
        AND started_at BETWEEN r.started_at - 1 AND r.started_at + r.duration_s + 1
    ) m ON true
"""
_PAGE = sa.text(
    f"""{_WITH_TOKENS} WHERE r.tenant = :tenant
    AND (CAST(:agents AS text[]) IS NULL OR r.agent = ANY(CAST(:agents AS text[])))
    AND (CAST(:environment AS text) IS NULL OR r.environment = :environment)
    AND (CAST(:session_id AS text) IS NULL OR r.session_id = :session_id)
    AND (CAST(:outcome AS text) IS NULL OR r.outcome = :outcome)
    AND (CAST(:at AS float8) IS NULL OR (r.started_at, r.id) < (CAST(:at AS float8), CAST(:id AS text)))
    ORDER BY r.started_at DESC, r.id DESC LIMIT :limit"""
)
_ONE = sa.text(f"{_WITH_TOKENS} WHERE r.tenant = :tenant AND r.id = :id ORDER BY r.started_at DESC LIMIT 1")


class PostgresRunStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add(
        self, run_records: Sequence[run_store.Record], model_records: Sequence[tuple[str, run_store.Record]]
    ) -> frozenset[str]:
        fresh: set[str] = set()
        async with task_session.begin(self._engine, "storing records") as connection:
            if run_records:
                added = await connection.execute(_ADD_RUNS, {"records": json.dumps(run_records)})
                fresh |= {f"{row.id}@{row.started_at!r}@{row.instance_id}" for row in added}
            if model_records:
                values = [{**record, "id": key} for key, record in model_records]
                fresh |= set((await connection.execute(_ADD_MODELS, {"records": json.dumps(values)})).scalars())
        return frozenset(fresh)

    async def runs(self, which: run_store.RunFilter) -> Sequence[run_store.FinishedRun]:
        at, run_id = which.before or (None, None)
        values = {
            "tenant": which.tenant,
            "agents": None if which.agents is None else sorted(which.agents),
            "environment": which.environment,
            "session_id": which.session_id,
            "outcome": which.outcome,
            "at": at,
            "id": run_id,
            "limit": which.limit,
        }
        async with task_session.begin(self._engine, "reading run history") as connection:
            return [_finished(row) for row in (await connection.execute(_PAGE, values)).mappings()]

    async def run(self, tenant: str, run_id: str) -> run_store.FinishedRun | None:
        async with task_session.begin(self._engine, "reading a run") as connection:
            row = (await connection.execute(_ONE, {"tenant": tenant, "id": run_id})).mappings().first()
        return None if row is None else _finished(row)


def _finished(row: Mapping[Any, Any]) -> run_store.FinishedRun:
    record = {"kind": "run", **{name: row[name] for name in _RUN_COLUMNS if row[name] is not None}}
    tokens = {name: row[name] for name in ("input_tokens", "output_tokens", "cost_nano")}
    return run_store.FinishedRun(record=record, **tokens)
