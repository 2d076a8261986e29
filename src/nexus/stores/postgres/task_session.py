"""Transactions for the task side: one way in, one translation of what the database may throw."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from nexus.core import errors

_AWAY = (
    sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError, psycopg.OperationalError, psycopg.InterfaceError,
    OSError,
)  # fmt: skip


@asynccontextmanager
async def begin(engine: AsyncEngine, doing: str) -> AsyncIterator[AsyncConnection]:
    """A transaction, committed at the end. A database that is away is `Unavailable`, one that refuses is `Internal`."""
    with translated(doing):
        async with engine.begin() as connection:
            yield connection


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """What the database may throw becomes an error of ours; `doing` says what was being done."""
    try:
        yield
    except _AWAY as error:
        raise errors.Unavailable(
            f"the database could not be asked while {doing}",
            code="database.unavailable",
            cause=_first_line(error),
            next_step="try again in a moment; `nexus status` tells whether PostgreSQL runs",
            retry_after_s=1.0,
        ) from error
    except psycopg.DataError as error:
        raise errors.Invalid(
            "a value in this request cannot be stored",
            code="request.invalid",
            cause=_first_line(error),
            next_step="leave out NUL and other impossible characters and numbers",
        ) from error
    except sa.exc.DBAPIError as error:
        if error.connection_invalidated:
            raise errors.Unavailable(f"the database went away while {doing}", code="database.unavailable") from error
        raise _refused(doing, error) from error
    except psycopg.Error as error:
        raise _refused(doing, error) from error


def _refused(doing: str, error: Exception) -> errors.Internal:
    return errors.Internal(f"the database refused while {doing}", code="database.refused", cause=_first_line(error))


def _first_line(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    return (str(original).splitlines() or [type(original).__name__])[0][:300]
