"""`ports.vault` on PostgreSQL: sealed secrets, platform keys, tenants and API keys."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.ports import vault
from nexus.stores.postgres import schema as t
from nexus.stores.postgres import task_link

# Asked with every call of the API.
_BY_HASH = f"SELECT {', '.join(column.name for column in t.API_KEYS.c)} FROM api_keys WHERE hash = %(hash)s"  # noqa: S608


class PostgresSecretStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def put_secret(self, row: vault.SecretRow) -> vault.SecretRow:
        values = _flat(row)
        changed = {
            **{name: values[name] for name in ("sealed", "wrapped_key", "key_id", "fingerprint", "updated_at", "updated_by")},
            "version": t.SECRETS.c.version + 1,
        }
        statement = (
            insert(t.SECRETS)
            .values(values)
            .on_conflict_do_update(index_elements=["tenant", "agent", "name"], set_=changed)
            .returning(t.SECRETS)
        )
        async with self._engine.begin() as connection:
            return _secret((await connection.execute(statement)).one())

    async def secrets(self, tenant: str, agent: str) -> Sequence[vault.SecretRow]:
        c = t.SECRETS.c
        query = sa.select(t.SECRETS).where(c.tenant == tenant, c.agent == agent).order_by(c.name)
        async with self._engine.connect() as connection:
            return [_secret(row) for row in (await connection.execute(query)).all()]

    async def drop_secret(self, tenant: str, agent: str, name: str) -> bool:
        c = t.SECRETS.c
        statement = sa.delete(t.SECRETS).where(c.tenant == tenant, c.agent == agent, c.name == name)
        async with self._engine.begin() as connection:
            return (await connection.execute(statement)).rowcount == 1

    async def drop_secrets(self, tenant: str, agent: str) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(sa.delete(t.SECRETS).where(t.SECRETS.c.tenant == tenant, t.SECRETS.c.agent == agent))

    async def platform_key(self, name: str, fresh: vault.Sealed) -> vault.Sealed:
        c = t.PLATFORM_KEYS.c
        values = {"name": name, **dataclasses.asdict(fresh)}
        async with self._engine.begin() as connection:
            await connection.execute(insert(t.PLATFORM_KEYS).values(values).on_conflict_do_nothing())
            row = (await connection.execute(sa.select(t.PLATFORM_KEYS).where(c.name == name))).one()
        return vault.Sealed(sealed=row.sealed, wrapped_key=row.wrapped_key, key_id=row.key_id)

    async def rewrap(self, old_key_id: str, turn: vault.Rewrap) -> int:
        count = 0
        async with self._engine.begin() as connection:
            for table in (t.SECRETS, t.PLATFORM_KEYS):
                query = sa.select(table).where(table.c.key_id == old_key_id).with_for_update()
                for row in (await connection.execute(query)).all():
                    old = vault.Sealed(sealed=row.sealed, wrapped_key=row.wrapped_key, key_id=row.key_id)
                    new = turn(old)
                    mine = sa.and_(*(column == row._mapping[column.name] for column in table.primary_key))
                    await connection.execute(sa.update(table).where(mine).values(wrapped_key=new.wrapped_key, key_id=new.key_id))
                    count += 1
        return count


class PostgresIdentityStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def put_tenant(self, name: str, *, at: float) -> bool:
        row = {"name": name, "created_at": at}
        statement = insert(t.TENANTS).values(row).on_conflict_do_nothing().returning(t.TENANTS.c.name)
        async with self._engine.begin() as connection:
            return (await connection.execute(statement)).first() is not None

    async def tenants(self) -> Sequence[tuple[str, float]]:
        async with self._engine.connect() as connection:
            rows = (await connection.execute(sa.select(t.TENANTS).order_by(t.TENANTS.c.name))).all()
        return [(row.name, row.created_at) for row in rows]

    async def put_key(self, row: vault.KeyRow) -> bool:
        values = {
            **dataclasses.asdict(row),
            "roles": list(row.roles),
            "agents": None if row.agents is None else list(row.agents),
        }
        statement = insert(t.API_KEYS).values(values).on_conflict_do_nothing(index_elements=["hash"]).returning(t.API_KEYS.c.id)
        async with self._engine.begin() as connection:
            return (await connection.execute(statement)).first() is not None

    async def keys(self, tenant: str | None = None) -> Sequence[vault.KeyRow]:
        query = sa.select(t.API_KEYS).order_by(t.API_KEYS.c.created_at, t.API_KEYS.c.id)
        async with self._engine.connect() as connection:
            found = await connection.execute(query if tenant is None else query.where(t.API_KEYS.c.tenant == tenant))
            return [_key(row) for row in found.all()]

    async def key_by_hash(self, key_hash: str) -> vault.KeyRow | None:
        rows = await task_link.of(self._engine).look("looking up an API key", _BY_HASH, {"hash": key_hash})
        return _key_of(rows[0]) if rows else None

    async def revoke_key(self, key_id: str, *, tenant: str | None, at: float) -> vault.KeyRow | None:
        c = t.API_KEYS.c
        statement = (
            sa.update(t.API_KEYS)
            .where(c.id == key_id)
            .values(revoked_at=sa.func.coalesce(c.revoked_at, at))
            .returning(t.API_KEYS)
        )
        async with self._engine.begin() as connection:
            found = await connection.execute(statement if tenant is None else statement.where(c.tenant == tenant))
            row = found.one_or_none()
        return _key(row) if row is not None else None


def _flat(row: vault.SecretRow) -> dict[str, Any]:
    values = dataclasses.asdict(row)
    sealed = values.pop("value")
    return {**values, **sealed}


def _secret(row: sa.Row[Any]) -> vault.SecretRow:
    values = dict(row._mapping)
    sealed = vault.Sealed(**{name: values.pop(name) for name in ("sealed", "wrapped_key", "key_id")})
    return vault.SecretRow(value=sealed, **values)


def _key(row: sa.Row[Any]) -> vault.KeyRow:
    return _key_of(row._mapping)


def _key_of(row: Mapping[Any, Any]) -> vault.KeyRow:
    values = dict(row)
    agents = values["agents"]
    return vault.KeyRow(**{**values, "roles": tuple(values["roles"]), "agents": None if agents is None else tuple(agents)})
