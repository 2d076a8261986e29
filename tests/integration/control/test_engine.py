"""Errors of the database become ours; a cancellation stays one."""

import asyncio

import psycopg
import pytest
import sqlalchemy as sa

from nexus.core import errors
from nexus.stores.postgres import engine


async def test_a_cancelled_query_is_cancelled_and_not_unavailable(postgres_url: str) -> None:
    async with engine.open_engine(postgres_url, pool_size=2) as database:
        sleeping = asyncio.Event()

        async def sleep() -> None:
            async with database.connect() as connection:
                await connection.execute(sa.text("select 1"))
                sleeping.set()
                await connection.execute(sa.text("select pg_sleep(60)"))

        task = asyncio.ensure_future(sleep())
        await sleeping.wait()
        with psycopg.connect(postgres_url, autocommit=True) as other:
            while not other.execute("select 1 from pg_stat_activity where query like 'select pg_sleep%'").fetchone():
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with database.connect() as connection:
            assert (await connection.execute(sa.text("select 2"))).scalar_one() == 2


async def test_no_database_is_unavailable_and_no_password_is_shown() -> None:
    url = "postgresql://nexus:very-secret@127.0.0.1:1/none"
    async with engine.open_engine(url) as database:
        with pytest.raises(errors.Unavailable) as caught:
            async with database.connect():
                pass
    assert caught.value.code == "database.unreachable"
    with pytest.raises(errors.Unavailable) as waited:
        await engine.wait_until_up(url, timeout_s=0.2)
    assert "very-secret" not in str(caught.value) + str(waited.value)
