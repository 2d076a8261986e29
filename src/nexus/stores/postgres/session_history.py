"""`ports.session_history.SessionHistory` on PostgreSQL: sums over the newest run records, so that no write pays for it."""

from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.ports import session_history
from nexus.stores.postgres import task_session

_LOOKED_AT = 50_000
_RECENT = sa.text(
    """
    SELECT session_id, agent, environment, (array_agg(version ORDER BY started_at DESC))[1] AS version,
      min(started_at) AS first_at, max(started_at + duration_s) AS last_at, count(*) AS runs,
      count(*) FILTER (WHERE outcome = 'failed') AS failed, sum(duration_s) AS busy_s,
      sum(bytes_in)::bigint AS bytes_in, sum(bytes_out)::bigint AS bytes_out
    FROM (
      SELECT * FROM run_records WHERE tenant = :tenant AND session_id <> ''
        AND (CAST(:agents AS text[]) IS NULL OR agent = ANY(CAST(:agents AS text[])))
        AND (CAST(:environment AS text) IS NULL OR environment = :environment)
        AND (CAST(:session_id AS text) IS NULL OR session_id = :session_id)
      ORDER BY started_at DESC, id DESC LIMIT :looked_at
    ) AS newest
    GROUP BY session_id, agent, environment ORDER BY last_at DESC LIMIT :limit
    """
)


class PostgresSessionHistory:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def recent(
        self, tenant: str, *, agents: Collection[str] | None, environment: str | None, session_id: str | None, limit: int
    ) -> Sequence[session_history.SessionPast]:
        values = {
            "tenant": tenant,
            "agents": None if agents is None else sorted(agents),
            "environment": environment,
            "session_id": session_id,
            "looked_at": _LOOKED_AT,
            "limit": limit,
        }
        async with task_session.begin(self._engine, "reading sessions") as connection:
            rows = (await connection.execute(_RECENT, values)).mappings()
            return [session_history.SessionPast(**row) for row in rows]
