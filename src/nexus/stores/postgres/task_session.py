"""Transactions for the task side: one way in, one translation of what the database may throw."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from nexus.core import errors

_AWAY = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError, psycopg.OperationalError, OSError)


@asynccontextmanager
async def begin(engine: AsyncEngine, doing: str) -> AsyncIterator[AsyncConnection]:
    """A transaction, committed at the end. A database that is away is `Unavailable`, one that refuses is `Internal`."""
    try:
        async with engine.begin() as connection:
            yield connection
    except _AWAY as error:
        raise errors.Unavailable(
            f"the database could not be asked while {doing}",
            code="database.unavailable",
            cause=_first_line(error),
            next_step="try again in a moment; `nexus status` tells whether PostgreSQL runs",
            retry_after_s=1.0,
        ) from error
    except sa.exc.DBAPIError as error:
        if error.connection_invalidated:
            raise errors.Unavailable(f"the database went away while {doing}", code="database.unavailable") from error
        raise errors.Internal(f"the database refused while {doing}", code="database.refused", cause=_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    return (str(original).splitlines() or [type(original).__name__])[0][:300]
