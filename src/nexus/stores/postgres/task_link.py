"""The short way to the database for what stands on a task's way: psycopg itself, one statement being one transaction.

SQLAlchemy would cost each of them more than PostgreSQL does. `Link` keeps a few connections of its own, opened with the
engine's settings, that hold their statements prepared; they are closed when the engine is disposed of.
"""

import asyncio
import select
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from nexus.core import errors
from nexus.stores.postgres import task_session

Row = Mapping[str, Any]
Connection = psycopg.AsyncConnection[Any]
Values = Mapping[str, Any]
MOST_CONNECTIONS = 8
WAIT_S = 15.0
CONNECT = "nexus_connect"  # the engine's execution option that holds how it connects
# Planning one of these statements costs more than doing it; and a plan that was made while a table was small, and reads all of
# it, must not be kept while it grows.
_PLAN_ONCE = "SELECT set_config('plan_cache_mode', 'force_generic_plan', false), set_config('enable_seqscan', 'off', false)"
_LINKS: "WeakKeyDictionary[sa.Engine, Link]" = WeakKeyDictionary()


class Link:
    """Up to `most` connections at once; who finds none free waits. For one event loop."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], *, most: int = MOST_CONNECTIONS) -> None:
        self._connect = connect
        self._idle: list[Connection] = []
        self._closings = 0
        self._room = asyncio.Semaphore(most)

    async def rows(self, doing: str, statement: str, values: Values, *, binary: bool = False) -> list[Row]:
        """Execute and commit. Errors as from `task_session.begin`; `doing` stands in their text. `binary`: bytes come."""
        async with self._lent(doing) as connection:
            return await rows(connection, statement, values, binary=binary)

    async def look(self, doing: str, statement: str, values: Values, *, binary: bool = False) -> list[Row]:
        """The same for what only reads, so that a connection that was cut costs a second look and not an error."""
        try:
            return await self.rows(doing, statement, values, binary=binary)
        except errors.Unavailable:
            return await self.rows(doing, statement, values, binary=binary)

    @asynccontextmanager
    async def begin(self, doing: str) -> AsyncIterator[Connection]:
        """A transaction of several statements, committed at the end."""
        async with self._lent(doing) as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def _lent(self, doing: str) -> AsyncIterator[Connection]:
        with task_session.translated(doing):
            async with asyncio.timeout(WAIT_S):
                await self._room.acquire()
            closings = self._closings
            try:
                connection = self._standing() or await self._connect()
                try:
                    yield connection
                finally:
                    self._take_back(connection, keep=closings == self._closings)
            finally:
                self._room.release()

    def _standing(self) -> Connection | None:
        """A connection that nothing was heard from while it was idle; what a server says then is good-bye."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and not _has_something_to_say(connection):
                return connection
            connection.pgconn.finish()
        return None

    def _take_back(self, connection: Connection, *, keep: bool) -> None:
        if keep and connection.pgconn.transaction_status == TransactionStatus.IDLE:
            self._idle.append(connection)
        else:
            connection.pgconn.finish()

    def close(self) -> None:
        self._closings += 1
        for connection in self._idle:
            connection.pgconn.finish()
        self._idle.clear()


def of(engine: AsyncEngine) -> Link:
    """The engine's link: the same for everybody who asks."""
    found = _LINKS.get(engine.sync_engine)
    if found is None:
        connect = engine.get_execution_options()[CONNECT]

        async def open_one() -> Connection:
            connection: Connection = await connect()
            try:
                await connection.set_autocommit(True)
                connection.prepare_threshold = 0
                await connection.execute(_PLAN_ONCE)
            except BaseException:  # a cancellation too
                connection.pgconn.finish()
                raise
            return connection

        found = _LINKS[engine.sync_engine] = Link(open_one)
        sa.event.listen(engine.sync_engine, "engine_disposed", lambda _: found.close())
    return found


async def inside(connection: AsyncConnection) -> Connection:
    """psycopg's own connection under a transaction of SQLAlchemy's, to do a statement of these in it."""
    raw = (await connection.get_raw_connection()).driver_connection
    if raw is None:
        raise RuntimeError("the connection was closed")
    found: Connection = raw
    return found


async def rows(connection: Connection, statement: str, values: Values, *, binary: bool = False) -> list[Row]:
    cursor = connection.cursor(row_factory=dict_row, binary=binary)
    await cursor.execute(statement.encode(), values)
    return list(await cursor.fetchall()) if cursor.description is not None else []


async def run(connection: Connection, statement: str, values: Values) -> int:
    """How many rows it changed."""
    cursor = await connection.execute(statement.encode(), values)
    return cursor.rowcount


def notify_of(channel: str, source: str) -> str:
    """The fragment of a statement that tells `channel` once if `source` has a row."""
    return f"SELECT pg_notify('{channel}', '') FROM (SELECT 1 FROM {source} LIMIT 1) AS any_{channel}"  # noqa: S608 - constants


def packed(ids: Sequence[str], *, longest: int = 7000) -> list[str]:
    """Ids, comma-separated, in as few notifications as PostgreSQL's limit of 8000 bytes allows."""
    found: list[str] = []
    line: list[str] = []
    size = 0
    for each in ids:
        if line and size + len(each) + 1 > longest:
            found.append(",".join(line))
            line, size = [], 0
        line.append(each)
        size += len(each) + 1
    return [*found, ",".join(line)] if line else found


def _has_something_to_say(connection: Connection) -> bool:
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))
