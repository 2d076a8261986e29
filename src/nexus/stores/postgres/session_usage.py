"""`ports.session_usage.UsageStore` on PostgreSQL. Rows only grow, so that one that is told twice, or late, counts once."""

import dataclasses
import json
from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.core import usage
from nexus.ports import session_usage
from nexus.stores.postgres import task_session

_NUMBERS = ("cpu_s", "memory_byte_seconds", "bytes_in", "bytes_out")
_COLUMNS = ", ".join(field.name for field in dataclasses.fields(usage.UsageRow))
_KEY = "instance_id, session_id, part, began_at"
_GROW = ", ".join(f"{name} = greatest(session_usage.{name}, excluded.{name})" for name in _NUMBERS)
_PUT = sa.text(
    f"""
    WITH given AS (
      SELECT {_COLUMNS} FROM json_to_recordset(CAST(:rows AS json)) AS r (
        instance_id text, session_id text, part text, began_at float8, tenant text, agent text, environment text, version text,
        cpu_s float8, memory_byte_seconds float8, bytes_in bigint, bytes_out bigint)
    ), before AS (
      SELECT u.* FROM session_usage u JOIN given USING ({_KEY})
    ), after AS (
      INSERT INTO session_usage ({_COLUMNS}) SELECT {_COLUMNS} FROM given
      ON CONFLICT ({_KEY}) DO UPDATE SET {_GROW}
      RETURNING *
    )
    SELECT after.tenant, after.agent, after.environment,
      {", ".join(f"sum(after.{name} - coalesce(before.{name}, 0)) AS {name}" for name in _NUMBERS)}
    FROM after LEFT JOIN before USING ({_KEY}) GROUP BY after.tenant, after.agent, after.environment
    """  # noqa: S608
)
_OF = sa.text(f"SELECT {_COLUMNS} FROM session_usage WHERE tenant = :tenant AND session_id = ANY(:sessions)")  # noqa: S608


class PostgresUsageStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def put(self, rows: Sequence[usage.UsageRow]) -> Sequence[session_usage.Grown]:
        if not rows:
            return []
        given = json.dumps([dataclasses.asdict(row) for row in rows])
        async with task_session.begin(self._engine, "storing what sessions used") as connection:
            grown = (await connection.execute(_PUT, {"rows": given})).mappings().all()
        return [
            session_usage.Grown(
                tenant=row["tenant"],
                agent=row["agent"],
                environment=row["environment"],
                cpu_s=float(row["cpu_s"]),
                memory_byte_seconds=float(row["memory_byte_seconds"]),
                bytes_in=int(row["bytes_in"]),
                bytes_out=int(row["bytes_out"]),
            )
            for row in grown
        ]

    async def of_sessions(self, tenant: str, session_ids: Collection[str]) -> Sequence[usage.UsageRow]:
        async with task_session.begin(self._engine, "reading what sessions used") as connection:
            rows = (await connection.execute(_OF, {"tenant": tenant, "sessions": sorted(session_ids)})).mappings().all()
        return [usage.UsageRow(**{**row, "part": usage.Part(row["part"])}) for row in rows]
