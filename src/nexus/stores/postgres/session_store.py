"""`ports.session_store.SessionStore` on PostgreSQL."""

from collections.abc import Mapping

from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.core import errors
from nexus.ports import session_store
from nexus.stores.postgres import task_link

_WHERE = "tenant = %(tenant)s AND agent = %(agent)s AND environment = %(environment)s AND session_id = %(session_id)s"
_FETCH = f"SELECT state, version, updated_at FROM session_states WHERE {_WHERE}"  # noqa: S608 - a constant
_DELETE = f"DELETE FROM session_states WHERE {_WHERE} RETURNING 1"  # noqa: S608 - a constant
_DELETE_AGENT = """
    DELETE FROM session_states WHERE tenant = %(tenant)s AND agent = %(agent)s
      AND (CAST(%(environment)s AS text) IS NULL OR environment = %(environment)s)
    """
_PUT = f"""
    INSERT INTO session_states AS s (tenant, agent, environment, session_id, state, version, updated_at)
    SELECT %(tenant)s, %(agent)s, %(environment)s, %(session_id)s, %(state)s, 1, nexus_now()
    WHERE coalesce(CAST(%(after)s AS bigint), 0) = 0 OR EXISTS (SELECT 1 FROM session_states WHERE {_WHERE})
    ON CONFLICT (tenant, agent, environment, session_id)
    DO UPDATE SET state = EXCLUDED.state, version = s.version + 1, updated_at = EXCLUDED.updated_at
      WHERE CAST(%(after)s AS bigint) IS NULL OR s.version = %(after)s
    RETURNING version
    """  # noqa: S608 - constants


class PostgresSessionStore:
    """Runs wait for it: each verb is one prepared statement."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._link = task_link.of(engine)

    async def fetch(self, key: session_store.SessionKey) -> session_store.SessionState | None:
        rows = await self._link.look("reading a session's state", _FETCH, _values(key))
        return session_store.SessionState(**rows[0]) if rows else None

    async def put(self, key: session_store.SessionKey, state: str, *, after: int | None = None) -> int:
        rows = await self._link.rows("writing a session's state", _PUT, {**_values(key), "state": state, "after": after})
        if not rows:
            raise errors.Conflict(
                "another worker of the session has changed its state meanwhile",
                code="state.moved",
                phase="run",
                next_step="send the message again: the next run begins from what is there now",
            )
        return int(rows[0]["version"])

    async def delete(self, key: session_store.SessionKey) -> bool:
        return bool(await self._link.rows("deleting a session's state", _DELETE, _values(key)))

    async def delete_agent(self, tenant: str, agent: str, *, environment: str | None) -> None:
        values = {"tenant": tenant, "agent": agent, "environment": environment}
        await self._link.rows("deleting an agent's states", _DELETE_AGENT, values)


def _values(key: session_store.SessionKey) -> Mapping[str, str]:
    return {"tenant": key.tenant, "agent": key.agent, "environment": key.environment, "session_id": key.session_id}
