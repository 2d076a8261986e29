"""`ports.session_store.SessionStore` on PostgreSQL."""

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.ports import session_store
from nexus.stores.postgres import task_session

_WHERE = "tenant = :tenant AND agent = :agent AND environment = :environment AND session_id = :session_id"
_FETCH = sa.text(f"SELECT state, version, updated_at FROM session_states WHERE {_WHERE}")  # noqa: S608 - a constant
_DELETE = sa.text(f"DELETE FROM session_states WHERE {_WHERE}")  # noqa: S608 - a constant
_PUT = sa.text(
    """
    INSERT INTO session_states AS s (tenant, agent, environment, session_id, state, version, updated_at)
    VALUES (:tenant, :agent, :environment, :session_id, :state, 1, nexus_now())
    ON CONFLICT (tenant, agent, environment, session_id)
    DO UPDATE SET state = EXCLUDED.state, version = s.version + 1, updated_at = EXCLUDED.updated_at RETURNING version
    """
)


class PostgresSessionStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def fetch(self, key: session_store.SessionKey) -> session_store.SessionState | None:
        async with task_session.begin(self._engine, "reading a session's state") as connection:
            row = (await connection.execute(_FETCH, _values(key))).first()
        return (
            None if row is None else session_store.SessionState(state=row.state, version=row.version, updated_at=row.updated_at)
        )

    async def put(self, key: session_store.SessionKey, state: str) -> int:
        async with task_session.begin(self._engine, "writing a session's state") as connection:
            return int((await connection.execute(_PUT, {**_values(key), "state": state})).scalar_one())

    async def delete(self, key: session_store.SessionKey) -> bool:
        async with task_session.begin(self._engine, "deleting a session's state") as connection:
            return bool((await connection.execute(_DELETE, _values(key))).rowcount)


def _values(key: session_store.SessionKey) -> Mapping[str, str]:
    return {"tenant": key.tenant, "agent": key.agent, "environment": key.environment, "session_id": key.session_id}
