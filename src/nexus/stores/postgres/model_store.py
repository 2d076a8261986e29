"""`ports.model_store.ModelStore` on PostgreSQL."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.ports import model_store as ports
from nexus.stores.postgres import model_schema, task_session

_MOST_GROUPS = 1000
_GROUPS = {
    "model": "model",
    "provider": "provider",
    "agent": "agent",
    "environment": "environment",
    "user": "coalesce(user_id, '')",
    "session": "coalesce(session_id, '')",
    "run": "run_id",
    "principal": "coalesce(principal, '')",
    "day": "to_char(to_timestamp(started_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}
_WHICH = """
    FROM model_records WHERE tenant = :tenant AND started_at >= :since
      AND (CAST(:until AS float8) IS NULL OR started_at < :until)
      AND (CAST(:agents AS text[]) IS NULL OR agent = ANY(CAST(:agents AS text[])))
      AND (CAST(:environment AS text) IS NULL OR environment = :environment)
      AND (CAST(:run_id AS text) IS NULL OR run_id = :run_id)
"""
_SUMS = """
    count(*) AS calls, count(*) FILTER (WHERE outcome <> 'completed' OR status >= 400) AS failed,
    coalesce(sum(input_tokens), 0)::bigint AS input_tokens, coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
    coalesce(sum(cached_tokens), 0)::bigint AS cached_tokens, coalesce(sum(cost_nano), 0)::bigint AS cost_nano,
    count(*) FILTER (WHERE cost_nano IS NULL AND coalesce(attempts, 1) > 0 AND input_tokens + output_tokens > 0) AS unpriced,
    count(*) FILTER (WHERE estimated) AS estimated
"""
_SPENT = {
    "requests": "count(*) FILTER (WHERE coalesce(attempts, 1) > 0 AND NOT coalesce(cached, false))",
    "tokens": "coalesce(sum(input_tokens + output_tokens) FILTER (WHERE NOT coalesce(cached, false)), 0)::bigint",
    "cost": "coalesce(sum(cost_nano), 0)::bigint",
}
_DUE = sa.text(
    """
    UPDATE model_notices n SET attempts = attempts + 1, next_at = CAST(:now AS float8) + :hold
    FROM (
      SELECT id FROM model_notices WHERE status = 'pending' AND next_at <= :now ORDER BY next_at LIMIT :limit
      FOR UPDATE SKIP LOCKED
    ) AS picked WHERE n.id = picked.id RETURNING n.*
    """
)


class PostgresModelStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def settings(self) -> Sequence[ports.Setting]:
        async with task_session.begin(self._engine, "reading model settings") as connection:
            rows = (await connection.execute(sa.select(model_schema.MODEL_SETTINGS))).mappings().all()
        return [ports.Setting(**row) for row in rows]

    async def put_setting(self, setting: ports.Setting) -> None:
        table = model_schema.MODEL_SETTINGS
        values = {
            "kind": setting.kind,
            "name": setting.name,
            "value": dict(setting.value),
            "sealed": setting.sealed,
            "updated_at": setting.updated_at,
            "updated_by": setting.updated_by,
        }
        insert = postgresql.insert(table).values(values)
        changed: dict[str, Any] = {name: insert.excluded[name] for name in ("value", "updated_at", "updated_by")}
        changed["sealed"] = sa.func.coalesce(insert.excluded.sealed, table.c.sealed)
        async with task_session.begin(self._engine, "storing a model setting") as connection:
            await connection.execute(insert.on_conflict_do_update(index_elements=["kind", "name"], set_=changed))

    async def drop_setting(self, kind: ports.SettingKind, name: str) -> bool:
        table = model_schema.MODEL_SETTINGS
        return await self._drop(sa.delete(table).where(table.c.kind == kind, table.c.name == name))

    async def budgets(self, tenant: str | None = None) -> Sequence[ports.BudgetRow]:
        table = model_schema.MODEL_BUDGETS
        rows = await self._rows(table, tenant, order=(table.c.tenant, table.c.id))
        return [ports.BudgetRow(**row) for row in rows]

    async def put_budget(self, row: ports.BudgetRow) -> None:
        values = {
            "tenant": row.tenant,
            "id": row.id,
            "value": dict(row.value),
            "updated_at": row.updated_at,
            "updated_by": row.updated_by,
        }
        await self._put(model_schema.MODEL_BUDGETS, values, ("tenant", "id"))

    async def drop_budget(self, tenant: str, budget_id: str) -> bool:
        table = model_schema.MODEL_BUDGETS
        return await self._drop(sa.delete(table).where(table.c.tenant == tenant, table.c.id == budget_id))

    async def stops(self, tenant: str | None = None) -> Sequence[ports.StopRow]:
        table = model_schema.MODEL_STOPS
        rows = await self._rows(table, tenant, order=(table.c.tenant, table.c.agent))
        return [
            ports.StopRow(
                tenant=row["tenant"], agent=row["agent"], reason=row["reason"], since=row["since"], by=row["stopped_by"]
            )
            for row in rows
        ]

    async def put_stop(self, row: ports.StopRow) -> None:
        values = {"tenant": row.tenant, "agent": row.agent, "reason": row.reason, "since": row.since, "stopped_by": row.by}
        await self._put(model_schema.MODEL_STOPS, values, ("tenant", "agent"))

    async def drop_stop(self, tenant: str, agent: str) -> bool:
        table = model_schema.MODEL_STOPS
        return await self._drop(sa.delete(table).where(table.c.tenant == tenant, table.c.agent == agent))

    async def usage(self, which: ports.UsageFilter, by: str | None) -> Sequence[ports.UsageSum]:
        group, grouping = (_GROUPS[by], "GROUP BY 1") if by is not None else ("''", "")
        ordered = "grouped" if by == "day" else "cost_nano DESC, input_tokens + output_tokens DESC, grouped"
        sums = f"SELECT {group} AS grouped, {_SUMS} {_WHICH} {grouping}"
        query = sa.text(f"SELECT * FROM ({sums}) AS sums ORDER BY {ordered} LIMIT {_MOST_GROUPS}")  # noqa: S608 - our words
        async with task_session.begin(self._engine, "summing model calls") as connection:
            rows = (await connection.execute(query, _values(which))).mappings().all()
        return [ports.UsageSum(group=row["grouped"], **{k: v for k, v in row.items() if k != "grouped"}) for row in rows]

    async def spent(self, which: ports.UsageFilter, unit: str) -> int:
        query = sa.text(f"SELECT {_SPENT[unit]} {_WHICH}")
        async with task_session.begin(self._engine, "summing model calls") as connection:
            return int((await connection.execute(query, _values(which))).scalar_one())

    async def add_notices(self, notices: Sequence[ports.Notice]) -> None:
        rows = [
            {
                "id": one.id,
                "tenant": one.tenant,
                "budget": one.budget,
                "value": dict(one.value),
                "url": one.url,
                "at": one.at,
                "status": "pending" if one.url else "noted",
                "attempts": 0,
                "next_at": one.at if one.url else None,
            }
            for one in notices
        ]
        if rows:
            async with task_session.begin(self._engine, "storing notices") as connection:
                await connection.execute(postgresql.insert(model_schema.MODEL_NOTICES).on_conflict_do_nothing(), rows)

    async def notices(self, tenant: str, budget: str | None, *, limit: int) -> Sequence[ports.Notice]:
        table = model_schema.MODEL_NOTICES
        query = sa.select(table).where(table.c.tenant == tenant).order_by(table.c.at.desc()).limit(limit)
        if budget is not None:
            query = query.where(table.c.budget == budget)
        async with task_session.begin(self._engine, "reading notices") as connection:
            return [_notice(row) for row in (await connection.execute(query)).mappings()]

    async def due_notices(self, *, now: float, hold_s: float, limit: int) -> Sequence[ports.Notice]:
        async with task_session.begin(self._engine, "taking notices in hand") as connection:
            rows = (await connection.execute(_DUE, {"now": now, "hold": hold_s, "limit": limit})).mappings().all()
        return [_notice(row) for row in rows]

    async def settle_notice(self, notice_id: str, *, attempt: int, error: str | None, next_at: float | None) -> None:
        table = model_schema.MODEL_NOTICES
        status = "delivered" if error is None else "pending" if next_at is not None else "dead"
        changed = sa.update(table).where(table.c.id == notice_id, table.c.attempts == attempt, table.c.status == "pending")
        async with task_session.begin(self._engine, "recording a notice") as connection:
            await connection.execute(changed.values(status=status, last_error=error, next_at=next_at))

    async def _rows(self, table: sa.Table, tenant: str | None, order: tuple[Any, ...]) -> Sequence[Mapping[Any, Any]]:
        query = sa.select(table).order_by(*order)
        if tenant is not None:
            query = query.where(table.c.tenant == tenant)
        async with task_session.begin(self._engine, "reading model settings") as connection:
            return (await connection.execute(query)).mappings().all()

    async def _put(self, table: sa.Table, values: dict[str, Any], key: tuple[str, ...]) -> None:
        insert = postgresql.insert(table).values(values)
        changed = {name: insert.excluded[name] for name in values if name not in key}
        async with task_session.begin(self._engine, "storing a model setting") as connection:
            await connection.execute(insert.on_conflict_do_update(index_elements=list(key), set_=changed))

    async def _drop(self, statement: sa.Delete) -> bool:
        async with task_session.begin(self._engine, "deleting a model setting") as connection:
            return bool((await connection.execute(statement)).rowcount)


def _values(which: ports.UsageFilter) -> dict[str, Any]:
    return {
        "tenant": which.tenant,
        "since": which.since,
        "until": which.until,
        "agents": None if which.agents is None else sorted(which.agents),
        "environment": which.environment,
        "run_id": which.run_id,
    }


def _notice(row: Mapping[Any, Any]) -> ports.Notice:
    value = row["value"] if isinstance(row["value"], dict) else json.loads(row["value"])
    return ports.Notice(
        id=row["id"],
        tenant=row["tenant"],
        budget=row["budget"],
        value=value,
        url=row["url"],
        at=row["at"],
        status=row["status"],
        attempts=row["attempts"],
        last_error=row["last_error"],
    )
