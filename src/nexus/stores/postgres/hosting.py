"""`ports.hosting_store` on PostgreSQL. A change of one deployment holds an advisory lock on its name, so that two deploys
of an agent that does not exist yet wait for each other too."""

import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from nexus.core import deployments as nouns
from nexus.core import ids, rollouts
from nexus.core.phases import RevisionPhase
from nexus.ports import hosting_store as port
from nexus.stores.postgres import schema as t

_IDEMPOTENCY_KEPT_S = 24 * 3600.0
_IN_HAND = (RevisionPhase.PENDING.value, RevisionPhase.ROLLING.value)


class PostgresHostingStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def put_version(self, version: nouns.Version) -> tuple[nouns.Version, bool]:
        agent = {
            "id": ids.new_id(ids.AGENT),
            "tenant": version.tenant,
            "name": version.agent,
            "created_at": version.created_at,
        }
        async with self._engine.begin() as connection:
            await connection.execute(insert(t.AGENTS).values(agent).on_conflict_do_nothing())
            # Locks the agent: `drop_agent` cannot remove it between these two statements.
            await connection.execute(
                sa.select(t.AGENTS.c.id)
                .where(t.AGENTS.c.tenant == version.tenant, t.AGENTS.c.name == version.agent)
                .with_for_update(key_share=True)
            )
            stored = insert(t.VERSIONS).values(dataclasses.asdict(version)).on_conflict_do_nothing().returning(t.VERSIONS.c.id)
            if (await connection.execute(stored)).first() is not None:
                return version, True
            same = sa.select(t.VERSIONS).where(
                t.VERSIONS.c.tenant == version.tenant,
                t.VERSIONS.c.agent == version.agent,
                t.VERSIONS.c.version == version.version,
            )
            return _version((await connection.execute(same)).one()), False

    async def version(self, tenant: str, version_id: str) -> nouns.Version | None:
        rows = await self._rows(sa.select(t.VERSIONS).where(t.VERSIONS.c.tenant == tenant, t.VERSIONS.c.id == version_id))
        return _version(rows[0]) if rows else None

    async def versions(self, tenant: str, agent: str) -> Sequence[nouns.Version]:
        query = (
            sa.select(t.VERSIONS)
            .where(t.VERSIONS.c.tenant == tenant, t.VERSIONS.c.agent == agent)
            .order_by(t.VERSIONS.c.created_at.desc(), t.VERSIONS.c.id.desc())
        )
        return [_version(row) for row in await self._rows(query)]

    async def agents(self, tenant: str) -> Sequence[port.Agent]:
        rows = await self._rows(sa.select(t.AGENTS).where(t.AGENTS.c.tenant == tenant).order_by(t.AGENTS.c.name))
        return [port.Agent(**row._mapping) for row in rows]

    async def agent(self, tenant: str, name: str) -> port.Agent | None:
        rows = await self._rows(sa.select(t.AGENTS).where(t.AGENTS.c.tenant == tenant, t.AGENTS.c.name == name))
        return port.Agent(**rows[0]._mapping) if rows else None

    async def drop_agent(self, tenant: str, name: str) -> bool:
        mine = (t.AGENTS.c.tenant == tenant) & (t.AGENTS.c.name == name)
        deployed = sa.exists().where(t.DEPLOYMENTS.c.tenant == tenant, t.DEPLOYMENTS.c.agent == name)
        async with self._engine.begin() as connection:
            await connection.execute(sa.select(t.AGENTS.c.id).where(mine).with_for_update())
            return (await connection.execute(sa.delete(t.AGENTS).where(mine, ~deployed))).rowcount == 1

    async def digest_in_use(self, digest: str) -> bool:
        return bool(await self._rows(sa.select(t.VERSIONS.c.id).where(t.VERSIONS.c.digest == digest).limit(1)))

    async def deployment(self, tenant: str, deployment_id: str) -> nouns.Deployment | None:
        c = t.DEPLOYMENTS.c
        rows = await self._rows(sa.select(t.DEPLOYMENTS).where(c.tenant == tenant, c.id == deployment_id))
        return _deployment(rows[0]) if rows else None

    async def deployments_of(self, tenant: str, agent: str | None = None) -> Sequence[nouns.Deployment]:
        c = t.DEPLOYMENTS.c
        query = sa.select(t.DEPLOYMENTS).where(c.tenant == tenant).order_by(c.agent, c.environment)
        return [_deployment(row) for row in await self._rows(query if agent is None else query.where(c.agent == agent))]

    async def revisions(self, tenant: str, deployment_id: str) -> Sequence[nouns.Revision]:
        c = t.REVISIONS.c
        query = sa.select(t.REVISIONS).where(c.tenant == tenant, c.deployment_id == deployment_id).order_by(c.number.desc())
        return [_revision(row) for row in await self._rows(query)]

    async def revisions_shown(self, tenant: str) -> Sequence[nouns.Revision]:
        c = t.REVISIONS.c
        query = (
            sa.select(t.REVISIONS).where(c.tenant == tenant).distinct(c.deployment_id).order_by(c.deployment_id, c.number.desc())
        )
        return [_revision(row) for row in await self._rows(query)]

    async def instances(self, tenant: str, deployment_id: str | None = None) -> Sequence[nouns.Instance]:
        c = t.INSTANCES.c
        query = sa.select(t.INSTANCES).where(c.tenant == tenant).order_by(c.id)
        rows = await self._rows(query if deployment_id is None else query.where(c.deployment_id == deployment_id))
        return [_instance(row) for row in rows]

    async def events(self, tenant: str, deployment_id: str, *, revision: int, after: int) -> Sequence[port.StoredEvent]:
        c = t.ROLLOUT_EVENTS.c
        query = (
            sa.select(c.seq, c.revision, c.at, c.event)
            .where(c.tenant == tenant, c.deployment_id == deployment_id, c.revision == revision, c.seq > after)
            .order_by(c.seq)
            .limit(500)
        )
        return [port.StoredEvent(**row._mapping) for row in await self._rows(query)]

    async def owner_of_token(self, token_hash: str) -> nouns.InstanceOwner | None:
        i, d, r = t.INSTANCES.c, t.DEPLOYMENTS.c, t.REVISIONS.c
        query = (
            sa.select(i.id, i.tenant, d.agent, d.environment, d.id.label("deployment_id"), r.version)
            .join_from(t.INSTANCES, t.DEPLOYMENTS, d.id == i.deployment_id)
            .join(t.REVISIONS, (r.deployment_id == d.id) & (r.number == i.revision))
            .where(i.token_hash == token_hash)
        )
        rows = await self._rows(query)
        if not rows:
            return None
        values = dict(rows[0]._mapping)
        return nouns.InstanceOwner(instance_id=values.pop("id"), **values)

    async def snapshot(self) -> port.Snapshot:
        d, r, i = t.DEPLOYMENTS.c, t.REVISIONS.c, t.INSTANCES.c
        has_instances = sa.exists().where(i.deployment_id == r.deployment_id, i.revision == r.number)
        wanted = (
            sa.select(t.REVISIONS)
            .join(t.DEPLOYMENTS, d.id == r.deployment_id)
            .where(
                (r.number == d.target_revision)
                | (r.number == d.active_revision)
                | (r.number >= d.active_revision - port.REMEMBERED)
                | r.phase.in_(_IN_HAND)
                | has_instances
            )
        )
        async with self._engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            deployments = (await connection.execute(sa.select(t.DEPLOYMENTS))).all()
            revisions = (await connection.execute(wanted)).all()
            instances = (await connection.execute(sa.select(t.INSTANCES).order_by(i.id))).all()
        return port.Snapshot(
            deployments=[_deployment(row) for row in deployments],
            revisions=[_revision(row) for row in revisions],
            instances=[_instance(row) for row in instances],
        )

    @asynccontextmanager
    async def change(self, tenant: str, agent: str, environment: str) -> AsyncIterator[port.Change]:
        async with self._engine.begin() as connection:
            name = f"deployment/{tenant}/{agent}/{environment}"
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(name, 0))))
            c = t.DEPLOYMENTS.c
            query = sa.select(t.DEPLOYMENTS).where(c.tenant == tenant, c.agent == agent, c.environment == environment)
            row = (await connection.execute(query.with_for_update())).one_or_none()
            yield _Change(connection, _deployment(row) if row is not None else None)

    async def recall(self, tenant: str, key: str) -> tuple[str, dict[str, Any]] | None:
        c = t.IDEMPOTENCY_KEYS.c
        rows = await self._rows(sa.select(c.request, c.answer).where(c.tenant == tenant, c.key == key))
        return (rows[0].request, rows[0].answer) if rows else None

    async def remember(self, tenant: str, key: str, request: str, answer: dict[str, Any], *, at: float) -> None:
        row = {"tenant": tenant, "key": key, "request": request, "answer": answer, "created_at": at}
        async with self._engine.begin() as connection:
            old = t.IDEMPOTENCY_KEYS.c.created_at < at - _IDEMPOTENCY_KEPT_S
            await connection.execute(sa.delete(t.IDEMPOTENCY_KEYS).where(old))
            await connection.execute(insert(t.IDEMPOTENCY_KEYS).values(row).on_conflict_do_nothing())

    async def _rows(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        async with self._engine.connect() as connection:
            rows: Sequence[sa.Row[Any]] = (await connection.execute(query)).all()
        return rows


class _Change:
    """`ports.hosting_store.Change` on one connection."""

    def __init__(self, connection: AsyncConnection, deployment: nouns.Deployment | None) -> None:
        self._connection = connection
        self.deployment = deployment

    def _here(self) -> nouns.Deployment:
        if self.deployment is None:
            raise ValueError("there is no deployment in this change yet")
        return self.deployment

    async def revisions(self) -> Sequence[nouns.Revision]:
        if self.deployment is None:
            return []
        c = t.REVISIONS.c
        query = sa.select(t.REVISIONS).where(c.deployment_id == self.deployment.id).order_by(c.number.desc())
        return [_revision(row) for row in (await self._connection.execute(query)).all()]

    async def instances(self) -> Sequence[nouns.Instance]:
        if self.deployment is None:
            return []
        c = t.INSTANCES.c
        query = sa.select(t.INSTANCES).where(c.deployment_id == self.deployment.id).order_by(c.id)
        return [_instance(row) for row in (await self._connection.execute(query)).all()]

    async def put_deployment(self, deployment: nouns.Deployment) -> None:
        await self._put(t.DEPLOYMENTS, dataclasses.asdict(deployment), ("id",))
        self.deployment = deployment

    async def put_revision(self, revision: nouns.Revision) -> None:
        plain = {entry.name: getattr(revision, entry.name) for entry in dataclasses.fields(revision)}
        values = {
            **plain,
            "settings": revision.settings.to_json(),
            "problem": dict(revision.problem) if revision.problem is not None else None,
            "strategy": revision.strategy.to_json(),
            "progress": revision.progress.to_json(),
        }
        await self._put(t.REVISIONS, values, ("deployment_id", "number"))

    async def put_instance(self, instance: nouns.Instance) -> None:
        await self._put(t.INSTANCES, dataclasses.asdict(instance), ("id",))

    async def drop_instance(self, instance_id: str) -> None:
        c = t.INSTANCES.c
        mine = (c.id == instance_id) & (c.deployment_id == self._here().id)
        await self._connection.execute(sa.delete(t.INSTANCES).where(mine))

    async def drop_deployment(self) -> None:
        await self._connection.execute(sa.delete(t.DEPLOYMENTS).where(t.DEPLOYMENTS.c.id == self._here().id))
        self.deployment = None

    async def add_event(self, revision: int, at: float, event: dict[str, Any]) -> None:
        here = self._here()
        row = {"deployment_id": here.id, "tenant": here.tenant, "revision": revision, "at": at, "event": event}
        await self._connection.execute(insert(t.ROLLOUT_EVENTS).values(row))

    async def _put(self, table: sa.Table, values: dict[str, Any], key: tuple[str, ...]) -> None:
        changed = {name: value for name, value in values.items() if name not in key}
        await self._connection.execute(insert(table).values(values).on_conflict_do_update(index_elements=key, set_=changed))


def _version(row: sa.Row[Any]) -> nouns.Version:
    return nouns.Version(**row._mapping)


def _deployment(row: sa.Row[Any]) -> nouns.Deployment:
    values = dict(row._mapping)
    return nouns.Deployment(**{**values, "target": nouns.Target(values["target"]), "scaling": nouns.Scaling(**values["scaling"])})


def _revision(row: sa.Row[Any]) -> nouns.Revision:
    values = dict(row._mapping)
    read = {
        "phase": RevisionPhase(values["phase"]),
        "settings": nouns.Settings.from_json(values["settings"]),
        "strategy": rollouts.Strategy.from_json(values["strategy"]),
        "progress": rollouts.Progress.from_json(values["progress"]),
    }
    return nouns.Revision(**{**values, **read})


def _instance(row: sa.Row[Any]) -> nouns.Instance:
    values = dict(row._mapping)
    return nouns.Instance(**{**values, "target": nouns.Target(values["target"])})
