"""The queue on a real PostgreSQL: commit, claim, fence, cancel, bury."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from nexus.core import ids
from nexus.core.phases import RunPhase
from nexus.ports import task_store as port
from nexus.stores.postgres import checkpoint_schema, task_schema, task_store
from nexus.stores.postgres import engine as engines
from nexus.stores.postgres.metadata import METADATA

LANE = port.Lane(tenant="default", agent="echo", environment="production")


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[task_store.PostgresTaskStore]:
    async with engines.open_engine(postgres_url, pool_size=5) as engine:
        yield task_store.PostgresTaskStore(engine)


def submission(
    lane: port.Lane = LANE, *, key: str | None = None, webhook: str | None = None, digest: str = "d"
) -> port.Submission:
    return port.Submission(
        id=ids.new_id(ids.TASK),
        lane=lane,
        principal="key_1",
        body=b'{"input":1}',
        digest=digest,
        idempotency_key=key,
        webhook_url=webhook,
    )


async def one_claim(store: task_store.PostgresTaskStore, owner: str = "a") -> port.Claim:
    await store.enlist(owner)
    (claim,) = await store.claim(owner, limit=1, per_lane=10, paused=())
    return claim


def event(seq: int, name: str = "message.delta") -> port.TaskEvent:
    return port.TaskEvent(seq=seq, name=name, data="{}")


def finish(claim: port.Claim, phase: RunPhase = RunPhase.COMPLETED, seq: int = 1, output: str = '"ok"') -> port.Finish:
    return port.Finish(task_id=claim.id, fence=claim.fence, phase=phase, event=event(seq, f"run.{phase}"), output=output)


async def fetch(store: task_store.PostgresTaskStore, task_id: str) -> port.Task:
    task = await store.fetch("default", task_id)
    assert task is not None
    return task


def test_the_migrated_tables_are_those_the_code_describes(postgres_url: str) -> None:
    described = [*vars(task_schema).values(), *vars(checkpoint_schema).values()]
    ours = {table.name for table in METADATA.tables.values() if table in described}
    assert len(ours) == 17
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(postgres_url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_name": lambda name, kind, parents: kind != "table" or name in ours, "compare_type": True}
        )
        differences = compare_metadata(context, METADATA)
        assert [change for change in differences if getattr(getattr(change[-1], "table", change[-1]), "name", "") in ours] == []


async def test_a_group_is_submitted_in_order_and_repeated_keys_give_the_first_task(store: task_store.PostgresTaskStore) -> None:
    group = [submission(), submission(key="k"), submission(key="k"), submission()]
    answers = await store.submit(group)
    assert [created for _, created in answers] == [True, True, False, True]
    assert answers[2][0].id == group[1].id
    (again, created), = await store.submit([submission(key="k")])  # fmt: skip
    assert (again.id, created) == (group[1].id, False)
    await store.enlist("a")
    claims = await store.claim("a", limit=10, per_lane=10, paused=())
    assert [claim.id for claim in claims] == [group[0].id, group[1].id, group[3].id]


async def test_concurrent_claims_never_share_a_task(store: task_store.PostgresTaskStore) -> None:
    lanes = [port.Lane(tenant=f"t{n % 3}", agent=f"a{n % 4}", environment="production") for n in range(60)]
    await store.submit([submission(lane) for lane in lanes])
    owners = [f"o{n}" for n in range(5)]
    for owner in owners:
        await store.enlist(owner)

    async def drain(owner: str) -> list[str]:
        mine: list[str] = []
        while claims := await store.claim(owner, limit=7, per_lane=1000, paused=()):
            mine += [claim.id for claim in claims]
        return mine

    taken = [task_id for share in await asyncio.gather(*map(drain, owners)) for task_id in share]
    assert len(taken) == 60
    assert len(set(taken)) == 60


async def test_lanes_share_the_room_and_respect_their_limit(store: task_store.PostgresTaskStore) -> None:
    small = port.Lane(tenant="small", agent="echo", environment="production")
    await store.submit([submission() for _ in range(20)] + [submission(small)])
    await store.enlist("a")
    first = await store.claim("a", limit=4, per_lane=3, paused=())
    assert {claim.lane for claim in first} == {LANE, small}
    second = await store.claim("a", limit=100, per_lane=3, paused=())
    assert len([claim for claim in (*first, *second) if claim.lane == LANE]) == 3
    assert await store.claim("a", limit=100, per_lane=50, paused=[LANE]) == []


async def test_a_late_writer_is_fenced_out_and_leaves_no_trace(store: task_store.PostgresTaskStore) -> None:
    await store.submit([submission(webhook="https://example.com/x")])
    stale = await one_claim(store, "zombie")
    assert await store.bury("zombie", beats=0) == 1
    fresh = await one_claim(store, "other")
    assert (fresh.id, fresh.attempt, fresh.fence > stale.fence) == (stale.id, 2, True)
    late = port.Append(task_id=stale.id, fence=stale.fence, events=(event(1),))
    assert list(await store.write([late, finish(stale, output='"late"'), finish(fresh, output='"true"')])) == [False, False, True]
    assert list(await store.write([finish(stale), finish(fresh)])) == [False, False]
    task = await fetch(store, fresh.id)
    assert (task.phase, task.output) == (RunPhase.COMPLETED, '"true"')
    assert [entry.name for entry in await store.events_after(fresh.id, 0, limit=10)] == ["run.completed"]
    assert task.delivery is not None
    assert task.delivery.status == "pending"


async def test_a_buried_owner_neither_beats_nor_claims(store: task_store.PostgresTaskStore) -> None:
    await store.submit([submission()])
    await store.enlist("a")
    assert await store.beat("a") == {}
    assert await store.bury("a", beats=0) == 0
    assert await store.bury("a", beats=1) == 0
    assert await store.beat("a") is None
    assert await store.claim("a", limit=1, per_lane=1, paused=()) == []


async def test_an_owner_without_connection_is_told_from_one_with(postgres_url: str, store: task_store.PostgresTaskStore) -> None:
    from nexus.stores.postgres import task_listener

    await store.enlist("alive")
    await store.enlist("dead")
    connected = asyncio.Event()
    listener = task_listener.Listener(
        url=postgres_url, channels=["nexus_tasks"], receive=lambda channel, payload: connected.set(), owner="alive"
    )
    running = asyncio.ensure_future(listener.run())
    await connected.wait()
    assert await store.owners() == {"alive": (0, True), "dead": (0, False)}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_cancel_of_a_queued_task_is_final_and_idempotent(store: task_store.PostgresTaskStore) -> None:
    (task, _), = await store.submit([submission(webhook="https://example.com/x")])  # fmt: skip
    for _ in range(2):
        cancelled = await store.request_cancel("default", task.id, event_data='{"reason":"asked"}')
        assert cancelled is not None
        assert (cancelled.phase, cancelled.last_seq) == (RunPhase.CANCELLED, 1)
    assert await store.request_cancel("other", task.id, event_data="{}") is None
    await store.enlist("a")
    assert await store.claim("a", limit=1, per_lane=1, paused=()) == []


async def test_cancel_of_a_running_task_is_told_to_its_owner_and_survives_the_owner(store: task_store.PostgresTaskStore) -> None:
    (task, _), = await store.submit([submission()])  # fmt: skip
    claim = await one_claim(store)
    asked = await store.request_cancel("default", task.id, event_data="{}")
    assert asked is not None
    assert (asked.phase, asked.cancel_requested) == (RunPhase.RUNNING, True)
    assert await store.beat("a") == {claim.id: "cancel"}
    assert await store.bury("a", beats=1) == 1
    assert (await fetch(store, task.id)).phase is RunPhase.CANCELLED


async def test_a_task_put_off_waits_unless_the_clock_went_back(postgres_url: str, store: task_store.PostgresTaskStore) -> None:
    await store.submit([submission()])
    claim = await one_claim(store)
    put_off = port.Release(task_id=claim.id, fence=claim.fence, pause_s=3600, began=False, strike=False)
    assert list(await store.write([put_off])) == [True]
    task = await fetch(store, claim.id)
    assert (task.phase, task.attempt) == (RunPhase.PENDING, 0)
    assert await store.claim("a", limit=1, per_lane=1, paused=()) == []
    with psycopg.connect(postgres_url) as connection:  # as if the clock had since been set back by a day
        connection.execute("UPDATE tasks SET deferred_at = deferred_at + 86400, available_at = available_at + 86400")
    assert len(await store.claim("a", limit=1, per_lane=1, paused=())) == 1


async def test_pages_are_newest_first_scoped_and_filtered(store: task_store.PostgresTaskStore) -> None:
    other = port.Lane(tenant="other", agent="echo", environment="production")
    mine = [submission() for _ in range(3)]
    await store.submit([*mine, submission(other)])
    page = await store.page("default", agents=None, environment=None, phase=None, before=None, limit=2)
    assert [task.id for task in page] == [mine[2].id, mine[1].id]
    rest = await store.page(
        "default", agents={"echo"}, environment="production", phase=RunPhase.PENDING, before=page[-1].number, limit=9
    )
    assert [task.id for task in rest] == [mine[0].id]
    assert await store.page("default", agents=set(), environment=None, phase=None, before=None, limit=9) == []
    assert await store.fetch("other", mine[0].id) is None
    assert {lane: depth.due for lane, depth in (await store.depths()).items()} == {LANE: 3, other: 1}


async def test_appends_of_one_group_keep_their_order(store: task_store.PostgresTaskStore) -> None:
    await store.submit([submission()])
    claim = await one_claim(store)
    writes: list[port.Write] = [
        port.Append(task_id=claim.id, fence=claim.fence, events=(event(1), event(2)), progress=10.0),
        port.Append(task_id=claim.id, fence=claim.fence, events=(event(3),), message="half"),
        finish(claim, RunPhase.FAILED, seq=4),
    ]
    assert list(await store.write(writes)) == [True, True, True]
    assert [entry.seq for entry in await store.events_after(claim.id, 1, limit=10)] == [2, 3, 4]
    task = await fetch(store, claim.id)
    assert (task.progress, task.message, task.last_seq) == (10.0, "half", 4)


def test_owner_names_make_lock_keys_of_32_bits() -> None:
    from nexus.stores.postgres import task_listener

    assert all(-(2**31) <= task_listener.lock_key(uuid.uuid4().hex) < 2**31 for _ in range(100))
