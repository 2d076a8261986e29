"""Connections: a pooled SQLAlchemy engine over psycopg, and the wait for a database that is still starting."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from nexus.core import errors

_LOG = logging.getLogger(__name__)
CONNECT_TIMEOUT_S = 10
POOL_TIMEOUT_S = 15
IDLE_IN_TRANSACTION_S = 10


def create_engine(url: str, *, pool_size: int = 10, max_overflow: int = 10) -> AsyncEngine:
    """An engine for a libpq URI (`postgresql://…`, socket directories in `?host=` included). Opens nothing yet."""

    options = _with_idle_limit(str(psycopg.conninfo.conninfo_to_dict(url).get("options") or ""))

    async def connect() -> psycopg.AsyncConnection:
        return await psycopg.AsyncConnection.connect(
            url, connect_timeout=CONNECT_TIMEOUT_S, application_name="nexus", options=options
        )

    engine = create_async_engine(
        "postgresql+psycopg://",
        async_creator=connect,
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_timeout=POOL_TIMEOUT_S,
        pool_pre_ping=True,
        pool_recycle=1800,
        hide_parameters=True,  # they hold hashes and sealed values, and errors are logged
        execution_options={"nexus_connect": connect},  # for `task_link`, which does without SQLAlchemy
    )
    sa.event.listen(engine.sync_engine, "handle_error", _translate, retval=True)
    return engine


def _with_idle_limit(options: str) -> str:
    """A process that is stopped inside a transaction must not hold its locks for ever; the URL's own limit wins."""
    if "idle_in_transaction_session_timeout" in options:
        return options
    return f"{options} -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_S}s".strip()


def _translate(context: sa.engine.ExceptionContext) -> Exception | None:
    """Errors of the database that are not ours become ours, for every store on this engine; the driver's is chained."""
    original = context.original_exception
    if not isinstance(original, Exception):
        return None  # a cancellation breaks the connection too, and must stay a cancellation
    if context.is_pre_ping:
        return None  # the pool is asking whether a connection still stands; it opens another one if not
    if context.is_disconnect or isinstance(original, psycopg.OperationalError | psycopg.InterfaceError):
        return errors.Unavailable(
            "the database does not answer at the moment",
            code="database.unreachable",
            cause=type(original).__name__,
            next_step="try again in a moment; if it lasts: nexus doctor",
            retry_after_s=1.0,
        )
    if isinstance(original, psycopg.DataError):
        return errors.Invalid(
            "a value in this request cannot be stored",
            code="request.invalid",
            cause=_first_line(original),
            next_step="leave out NUL and other impossible characters and numbers",
        )
    return None


@asynccontextmanager
async def open_engine(url: str, *, pool_size: int = 10, max_overflow: int = 10) -> AsyncIterator[AsyncEngine]:
    """The engine, disposed of at the end."""
    engine = create_engine(url, pool_size=pool_size, max_overflow=max_overflow)
    try:
        yield engine
    finally:
        await engine.dispose()


async def wait_until_up(url: str, *, timeout_s: float = 30.0) -> None:
    """Return once the database answers, or raise `Unavailable` (code `database.unreachable`). Never shows the URL."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    async with await psycopg.AsyncConnection.connect(url, connect_timeout=5):
                        return
                except psycopg.OperationalError as error:
                    last = _first_line(error)
                    _LOG.debug("the database does not answer yet: %s", last)
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise errors.Unavailable(
            f"the database did not answer within {timeout_s:g} s",
            code="database.unreachable",
            cause="no connection could be made",
            next_step="check NEXUS_DATABASE_URL and that PostgreSQL runs: nexus doctor",
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
