"""`ports.audit_store.AuditStore` on PostgreSQL. A chain's row is locked while it grows, so numbers have no gaps."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from nexus.ports import audit_store as ports
from nexus.stores.postgres import audit_schema, task_session

_CHAINS, _RECORDS = audit_schema.AUDIT_CHAINS, audit_schema.AUDIT_RECORDS
_GENESIS = bytes(32)
_LOCK = sa.select(_CHAINS).where(_CHAINS.c.tenant == sa.bindparam("tenant_")).with_for_update()
_KNOWN = sa.text("SELECT id FROM audit_records WHERE tenant = :tenant AND id = ANY(CAST(:ids AS text[]))")
_ADD = sa.text(
    """INSERT INTO audit_records (tenant, seq, id, at, agent, environment, run_id, record, hash, seal)
    SELECT :tenant, seq, id, at, agent, environment, run_id, record, decode(hash, 'hex'), decode(seal, 'hex')
    FROM json_to_recordset(CAST(:rows AS json)) AS r
      (seq bigint, id text, at float8, agent text, environment text, run_id text, record text, hash text, seal text)"""
)
_ADD_CONTENTS = sa.text(
    """INSERT INTO audit_contents (tenant, seq, content, expires_at) SELECT :tenant, seq, content, :until
    FROM json_to_recordset(CAST(:rows AS json)) AS r (seq bigint, content text)"""
)
_PAGE = """
    SELECT r.seq, r.at, r.record, r.hash, r.seal, coalesce(p.hash, c.floor_hash) AS previous, {content} AS content
    FROM audit_records r JOIN audit_chains c ON c.tenant = r.tenant
      LEFT JOIN audit_records p ON p.tenant = r.tenant AND p.seq = r.seq - 1 {join}
    WHERE r.tenant = :tenant AND r.seq > :after
      AND (CAST(:since AS float8) IS NULL OR r.at >= :since) AND (CAST(:until AS float8) IS NULL OR r.at < :until)
      AND (CAST(:agents AS text[]) IS NULL OR r.agent = ANY(CAST(:agents AS text[])))
      AND (CAST(:environment AS text) IS NULL OR r.environment = :environment)
      AND (CAST(:run_id AS text) IS NULL OR r.run_id = :run_id)
    ORDER BY r.seq LIMIT :limit
"""
_WITH_CONTENT = "LEFT JOIN audit_contents t ON t.tenant = r.tenant AND t.seq = r.seq"
_PAGES = {
    "": sa.text(_PAGE.format(content="CAST(NULL AS text)", join="")),
    "text": sa.text(_PAGE.format(content="t.content", join=_WITH_CONTENT)),
    "hash": sa.text(_PAGE.format(content="encode(sha256(convert_to(t.content, 'UTF8')), 'hex')", join=_WITH_CONTENT)),
}
_OLDEST = sa.text("SELECT seq, at, hash FROM audit_records WHERE tenant = :tenant ORDER BY seq LIMIT :limit")
_PRUNE = (
    sa.text("DELETE FROM audit_contents WHERE tenant = :tenant AND seq <= :seq"),
    sa.text("DELETE FROM audit_records WHERE tenant = :tenant AND seq <= :seq"),
)
_FORGET = sa.text(
    """DELETE FROM audit_contents WHERE (tenant, seq) IN (
      SELECT tenant, seq FROM audit_contents WHERE expires_at <= :now ORDER BY expires_at LIMIT :limit)"""
)


class PostgresAuditStore:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def append(
        self,
        tenant: str,
        drafts: Sequence[ports.Draft],
        *,
        chain: ports.Chain,
        seal_end: ports.SealEnd,
        content_until: float,
    ) -> tuple[int, bytes] | None:
        async with task_session.begin(self._engine, "storing audit records") as connection:
            ends = await self._lock(connection, tenant, seal_end)
            found = await connection.execute(_KNOWN, {"tenant": tenant, "ids": [draft.id for draft in drafts]})
            known = set(found.scalars())
            fresh = [draft for draft in {draft.id: draft for draft in drafts}.values() if draft.id not in known]
            if not fresh:
                return None
            links = chain(ends.head[:2], [draft.text for draft in fresh])
            first = ends.head[0] + 1
            rows = [
                {
                    "seq": seq, "id": draft.id, "at": draft.at, "agent": draft.agent, "environment": draft.environment,
                    "run_id": draft.run_id, "record": draft.text, "hash": hash_.hex(), "seal": seal.hex(),
                }
                for seq, (draft, (hash_, seal)) in enumerate(zip(fresh, links, strict=True), first)
            ]  # fmt: skip
            await connection.execute(_ADD, {"tenant": tenant, "rows": json.dumps(rows)})
            contents = [{"seq": seq, "content": draft.content} for seq, draft in enumerate(fresh, first) if draft.content]
            if contents:
                kept = {"tenant": tenant, "until": content_until, "rows": json.dumps(contents)}
                await connection.execute(_ADD_CONTENTS, kept)
            seq, hash_ = first + len(fresh) - 1, links[-1][0]
            moved = {"head_seq": seq, "head_hash": hash_, "head_seal": seal_end("head", seq, hash_)}
            await connection.execute(sa.update(_CHAINS).where(_CHAINS.c.tenant == tenant).values(moved))
        return seq, hash_

    async def ends(self, tenant: str) -> ports.StoredEnds | None:
        async with task_session.begin(self._engine, "reading the audit trail") as connection:
            row = (await connection.execute(sa.select(_CHAINS).where(_CHAINS.c.tenant == tenant))).mappings().first()
        return None if row is None else _ends(row)

    async def rows(self, which: ports.AuditFilter) -> Sequence[ports.StoredRow]:
        values = {
            "tenant": which.tenant, "after": which.after, "limit": which.limit, "since": which.since, "until": which.until,
            "agents": None if which.agents is None else sorted(which.agents), "environment": which.environment,
            "run_id": which.run_id,
        }  # fmt: skip
        async with task_session.begin(self._engine, "reading the audit trail") as connection:
            found = await connection.execute(_PAGES[which.content], values)
            return [
                ports.StoredRow(
                    seq=row.seq, at=row.at, text=row.record, hash=bytes(row.hash), seal=bytes(row.seal),
                    previous=bytes(row.previous), content=row.content,
                )
                for row in found
            ]  # fmt: skip

    async def hash_at(self, tenant: str, seq: int) -> bytes | None:
        asked = sa.select(_RECORDS.c.hash).where(_RECORDS.c.tenant == tenant, _RECORDS.c.seq == seq)
        async with task_session.begin(self._engine, "reading the audit trail") as connection:
            found = (await connection.execute(asked)).scalar_one_or_none()
        return None if found is None else bytes(found)

    async def tenants(self) -> Sequence[str]:
        async with task_session.begin(self._engine, "reading the audit trail") as connection:
            return list((await connection.execute(sa.select(_CHAINS.c.tenant).order_by(_CHAINS.c.tenant))).scalars())

    async def prune(self, tenant: str, *, before: float, limit: int, seal_end: ports.SealEnd) -> int:
        async with task_session.begin(self._engine, "deleting old audit records") as connection:
            await self._lock(connection, tenant, seal_end)
            floor: tuple[int, bytes] | None = None
            count = 0
            for row in await connection.execute(_OLDEST, {"tenant": tenant, "limit": limit}):
                if row.at >= before:
                    break
                floor, count = (row.seq, bytes(row.hash)), count + 1
            if floor is None:
                return 0
            for statement in _PRUNE:
                await connection.execute(statement, {"tenant": tenant, "seq": floor[0]})
            moved = {"floor_seq": floor[0], "floor_hash": floor[1], "floor_seal": seal_end("floor", *floor)}
            await connection.execute(sa.update(_CHAINS).where(_CHAINS.c.tenant == tenant).values(moved))
        return count

    async def forget_contents(self, *, now: float, limit: int) -> int:
        async with task_session.begin(self._engine, "deleting old audit content") as connection:
            return (await connection.execute(_FORGET, {"now": now, "limit": limit})).rowcount

    async def _lock(self, connection: AsyncConnection, tenant: str, seal_end: ports.SealEnd) -> ports.StoredEnds:
        """The chain's ends, locked until the end of the transaction; begun when there is none."""
        row = (await connection.execute(_LOCK, {"tenant_": tenant})).mappings().first()
        if row is not None:
            return _ends(row)
        begun = {
            "tenant": tenant,
            "head_seq": 0, "head_hash": _GENESIS, "head_seal": seal_end("head", 0, _GENESIS),
            "floor_seq": 0, "floor_hash": _GENESIS, "floor_seal": seal_end("floor", 0, _GENESIS),
        }  # fmt: skip
        names = ", ".join(begun)
        places = ", ".join(f":{name}" for name in begun)
        await connection.execute(
            sa.text(f"INSERT INTO audit_chains ({names}) VALUES ({places}) ON CONFLICT DO NOTHING"),  # noqa: S608
            begun,
        )
        return _ends((await connection.execute(_LOCK, {"tenant_": tenant})).mappings().one())


def _ends(row: Mapping[Any, Any]) -> ports.StoredEnds:
    return ports.StoredEnds(
        floor=(row["floor_seq"], bytes(row["floor_hash"]), bytes(row["floor_seal"])),
        head=(row["head_seq"], bytes(row["head_hash"]), bytes(row["head_seal"])),
    )
