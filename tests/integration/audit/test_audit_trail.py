"""The audit trail on a real PostgreSQL: what is reported twice, at once or tampered with, and what its time is over for."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from nexus.audit import chain, service
from nexus.audit.settings import AuditSettings
from nexus.core import errors, principals
from nexus.stores.postgres import audit_store
from nexus.stores.postgres import engine as engines

ADMIN = principals.Principal(id="key_a", tenant="acme", roles=frozenset({principals.Role.ADMIN}))


@dataclass
class Clock:
    now: float = 1000.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


@dataclass
class Rig:
    """A trail over a database that can be tampered with by `sql`."""

    url: str
    trail: service.AuditTrail
    anchors: Path
    clock: Clock = field(default_factory=Clock)

    def sql(self, statement: str) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute(statement)

    async def verdict(self) -> dict:
        return await self.trail.verify(ADMIN)

    async def exported(self, **asked) -> str:
        return b"".join([page async for page in await self.trail.export(ADMIN, **asked)]).decode()


@pytest.fixture
async def rig(postgres_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    clock = Clock()
    settings = AuditSettings(anchors=tmp_path / "anchors", keep_s=1000, keep_content_s=100, sweep_s=3600, anchor_s=3600)
    async with engines.open_engine(postgres_url, pool_size=5) as engine:
        store = audit_store.PostgresAuditStore(engine)
        async with service.AuditTrail(store=store, platform_key=b"k" * 32, settings=settings, clock=clock) as trail:
            yield Rig(postgres_url, trail, tmp_path / "anchors", clock)


def report(number: int, **fields) -> dict:
    return {
        "kind": "model", "id": f"call_{number}", "tenant": "acme", "agent": "hello", "environment": "production",
        "run_id": f"run_{number}", "model": "gpt-x", "input_tokens": number, "output_tokens": 1, "started_at": 1000.0 + number,
        "status": 200, **fields,
    }  # fmt: skip


async def test_what_is_reported_is_in_the_chain_once_and_in_order(rig: Rig) -> None:
    await rig.trail.take([report(1), {"kind": "run", "tenant": "acme"}, report(2)])
    await rig.trail.take([report(2), report(3), report(3)])
    found = await rig.trail.list(ADMIN)
    assert [(each["seq"], each["record"]["id"]) for each in found] == [(1, "call_1"), (2, "call_2"), (3, "call_3")]
    assert await rig.verdict() == {"intact": True, "verified": 3, "first": 1, "last": 3, "hash": found[-1]["hash"]}


async def test_reports_that_come_at_once_make_one_chain(rig: Rig) -> None:
    batches = [[report(10 * batch + number) for number in range(10)] for batch in range(12)]
    await asyncio.gather(*(rig.trail.take(batch) for batch in batches for _ in range(2)))
    verdict = await rig.verdict()
    assert (verdict["intact"], verdict["verified"]) == (True, 120)


async def test_a_chain_that_grows_while_it_is_followed_is_intact(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.trail.take([report(1), report(2)])
    store, numbers = rig.trail._store, iter(range(3, 9))
    ends = store.ends

    async def ends_and_then_more(tenant: str) -> object:
        found = await ends(tenant)
        await rig.trail.take([report(next(numbers))])
        return found

    monkeypatch.setattr(store, "ends", ends_and_then_more)
    assert {name: value for name, value in (await rig.verdict()).items() if name != "hash"} == {
        "intact": True, "verified": 2, "first": 1, "last": 2
    }  # fmt: skip


@pytest.mark.parametrize(
    ("statement", "seq", "what"),
    [
        ("UPDATE audit_records SET record = replace(record, 'tokens\":2', 'tokens\":9') WHERE seq = 2", 2, "altered"),
        ("UPDATE audit_records SET hash = sha256('x') WHERE seq = 3", 3, "altered"),
        ("DELETE FROM audit_records WHERE seq = 2", 2, "removed"),
        ("DELETE FROM audit_records WHERE seq = 1", 1, "removed"),
        ("DELETE FROM audit_records WHERE seq > 2", 3, "removed"),
        ("UPDATE audit_chains SET head_seq = 2, head_hash = (SELECT hash FROM audit_records WHERE seq = 2)", 2, "end was"),
        ("DELETE FROM audit_records; DELETE FROM audit_chains", 1, "all of 4 records"),
        ("INSERT INTO audit_records SELECT tenant, 5, 'x', at, agent, environment, run_id, record, hash, seal FROM audit_records"
         " WHERE seq = 4", 5, "added"),
        ("UPDATE audit_contents SET content = '{\"request\":\"never said\"}' WHERE seq = 4", 4, "content was altered"),
    ],
)  # fmt: skip
async def test_tampering_is_found_at_its_first_record(rig: Rig, statement: str, seq: int, what: str) -> None:
    await rig.trail.take([report(1), report(2), report(3), report(4, content={"request": "said"})])
    assert (await rig.verdict())["intact"]
    rig.sql(statement)
    fault = (await rig.verdict())["fault"]
    assert fault["seq"] == seq
    assert what in fault["what"]


async def test_a_database_put_back_to_yesterday_is_found_out(rig: Rig, postgres_url: str) -> None:
    await rig.trail.take([report(1), report(2)])
    rig.sql("CREATE TABLE kept AS SELECT * FROM audit_chains")
    await rig.trail.take([report(3)])
    rig.sql("DELETE FROM audit_records WHERE seq = 3; DELETE FROM audit_chains; INSERT INTO audit_chains SELECT * FROM kept")
    verdict = await rig.verdict()
    assert verdict["verified"] == 2
    assert "put back to an earlier state" in verdict["fault"]["what"]


async def test_the_noted_end_outlives_the_process(rig: Rig) -> None:
    await rig.trail.take([report(1), report(2)])
    async with engines.open_engine(rig.url, pool_size=1) as engine:
        store = audit_store.PostgresAuditStore(engine)
        settings = AuditSettings(anchors=rig.anchors, sweep_s=3600)
        async with service.AuditTrail(store=store, platform_key=b"k" * 32, settings=settings, clock=rig.clock) as before:
            await before.take([report(3)])
        async with service.AuditTrail(store=store, platform_key=b"k" * 32, settings=settings, clock=rig.clock) as after:
            assert (await after.verify(ADMIN))["intact"]
            rig.sql("DELETE FROM audit_records; DELETE FROM audit_chains")
            assert not (await after.verify(ADMIN))["intact"]


async def test_old_records_go_and_the_rest_is_still_a_chain(rig: Rig) -> None:
    await rig.trail.take([report(number, content={"request": "hi"}) for number in range(1, 5)])
    rig.clock.now = 1150.0
    assert await rig.trail.sweep() == 4
    assert "content" not in (await rig.trail.list(ADMIN, content=True))[0]
    rig.clock.now = 2002.5
    assert await rig.trail.sweep() == 2
    verdict = await rig.verdict()
    assert (verdict["intact"], verdict["first"], verdict["last"], verdict["verified"]) == (True, 3, 4, 2)
    await rig.trail.take([report(9)])
    assert (await rig.verdict())["verified"] == 3
    rig.sql("DELETE FROM audit_records WHERE seq = 3")
    assert (await rig.verdict())["fault"]["seq"] == 3


async def test_exports_show_their_tenant_only_and_what_was_asked_for(rig: Rig) -> None:
    await rig.trail.take([report(1), report(2, agent="other", content={"request": "key sk-0123456789abcdefghij"}), report(3)])
    await rig.trail.take([report(1, tenant="rival", id="call_r")])
    lines = [json.loads(line) for line in (await rig.exported(content=True)).splitlines()]
    assert [line["record"]["id"] for line in lines] == ["call_1", "call_2", "call_3"]
    assert lines[1]["content"] == {"request": "key [secret]"}
    assert lines[1]["previous"] == lines[0]["hash"]
    exported = [
        chain.Exported(
            seq=line["seq"], tenant=line["tenant"], text=json.dumps(line["record"], separators=(",", ":")),
            previous=bytes.fromhex(line["previous"]), hash=bytes.fromhex(line["hash"]),
        )
        for line in lines
    ]  # fmt: skip
    assert chain.follow(exported)[1:] == (3, None)
    assert len((await rig.exported(agent="other")).splitlines()) == 1
    assert len((await rig.exported(since=1002.0, until=1003.0)).splitlines()) == 1
    head, first, *_ = (await rig.exported(form="csv")).splitlines()
    assert head.startswith("seq,at,id,principal")
    assert first.startswith("1,1001.0,call_1,")


async def test_a_cell_cannot_be_a_formula(rig: Rig) -> None:
    await rig.trail.take([report(1, code='=HYPERLINK("http://x")')])
    assert "'=HYPERLINK" in await rig.exported(form="csv")


async def test_who_may_not_read_it_is_refused_and_narrow_keys_see_their_part(rig: Rig) -> None:
    await rig.trail.take([report(1), report(2, agent="other"), report(3, environment="staging")])
    developer = principals.Principal(id="key_d", tenant="acme", roles=frozenset({principals.Role.DEVELOPER}))
    for verb in (rig.trail.list, rig.trail.export, rig.trail.verify):
        with pytest.raises(errors.Forbidden):
            await verb(developer)
    narrow = principals.Principal(
        id="key_n", tenant="acme", roles=ADMIN.roles, agents=frozenset({"hello"}), environment="production"
    )
    assert [each["record"]["id"] for each in await rig.trail.list(narrow)] == ["call_1"]
    with pytest.raises(errors.Forbidden):
        await rig.trail.list(narrow, agent="other")
