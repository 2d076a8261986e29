"""The schema: one chain of scripts, run once, equal to the tables the code describes."""

import asyncio

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from nexus.core import errors
from nexus.stores.postgres import migrate, schema
from nexus.stores.postgres.metadata import METADATA


async def test_concurrent_upgrades_of_an_empty_database_run_the_scripts_once(empty_postgres_url: str) -> None:
    ran = await asyncio.gather(*(migrate.upgrade(empty_postgres_url) for _ in range(4)))
    assert sorted(ran) == [False, False, False, True]
    assert await migrate.upgrade(empty_postgres_url) is False


async def test_a_database_of_a_newer_version_is_refused(empty_postgres_url: str) -> None:
    await migrate.upgrade(empty_postgres_url)
    with psycopg.connect(empty_postgres_url) as connection:
        connection.execute("update alembic_version set version_num = '9999_future'")
    with pytest.raises(errors.Conflict) as caught:
        await migrate.upgrade(empty_postgres_url)
    assert caught.value.code == "database.newer"


def test_the_migrated_schema_is_the_one_the_code_describes(postgres_url: str) -> None:
    ours = {table.name for table in METADATA.tables.values() if table in vars(schema).values()}
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(postgres_url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"include_name": lambda name, kind, parents: kind != "table" or name in ours, "compare_type": True},
        )
        assert [change for change in compare_metadata(context, METADATA) if _concerns(change, ours)] == []


def _concerns(change: object, tables: set[str]) -> bool:
    """Whether a difference is about one of these tables (tables of other rooms have their own test)."""
    item = change[-1] if isinstance(change, tuple) else None
    table = getattr(item, "table", item)
    return getattr(table, "name", None) in tables
