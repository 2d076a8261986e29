"""`ports.run_samples.RunSamples` on PostgreSQL: one bounded walk along the index of an agent's newest runs.

A run counts as failed when the agent is to blame: it answered 500 or more, broke its stream, or went away. What the caller did
wrong (400 to 499) counts as a run that went well, and cancelled or refused runs do not count at all.
"""

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.ports import run_samples

_MOST_DURATIONS = 4000
_BY_VERSION = sa.text(
    """
    WITH newest AS (
      SELECT version, duration_s, outcome = 'failed' AND (status >= 500 OR status < 400) AS bad,
             row_number() OVER (PARTITION BY version ORDER BY started_at DESC) AS nth
      FROM (
        SELECT version, duration_s, outcome, status, started_at, deployment_id FROM run_records
        WHERE tenant = :tenant AND agent = :agent AND started_at >= :since
          AND (CAST(:until AS float8) IS NULL OR started_at < :until)
        ORDER BY started_at DESC LIMIT :limit
      ) AS walked
      WHERE deployment_id = :deployment_id AND outcome IN ('completed', 'failed') AND version <> ''
    )
    SELECT version, count(*) AS runs, count(*) FILTER (WHERE bad) AS errors,
           coalesce(array_agg(duration_s) FILTER (WHERE NOT bad AND nth <= :most), '{}') AS durations
    FROM newest GROUP BY version
    """
)


class PostgresRunSamples:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def by_version(self, window: run_samples.Window) -> Mapping[str, run_samples.Sample]:
        values = {
            "tenant": window.tenant,
            "agent": window.agent,
            "deployment_id": window.deployment_id,
            "since": window.since,
            "until": window.until,
            "limit": window.limit,
            "most": _MOST_DURATIONS,
        }
        async with self._engine.connect() as connection:
            rows = (await connection.execute(_BY_VERSION, values)).all()
        return {row.version: run_samples.Sample(runs=row.runs, errors=row.errors, durations=tuple(row.durations)) for row in rows}
