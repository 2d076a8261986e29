"""The models room on a real PostgreSQL: what is set is told to gateways, what was used is summed, who is to hear of it does."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from nexus.core import errors, principals
from nexus.kit import clock as clocks
from nexus.kit import home as homes
from nexus.models import catalog, notices, service, spending
from nexus.stores.postgres import engine as engines
from nexus.stores.postgres import model_schema, model_store, run_store
from nexus.stores.postgres.metadata import METADATA
from nexus.wire import models as wire

DAY = 86400.0
NOON = 1_795_176_000.0
ADMIN = principals.Principal(id="key_admin", tenant="default", roles=frozenset({principals.Role.ADMIN}))
DEVELOPER = principals.Principal(id="key_dev", tenant="acme", roles=frozenset({principals.Role.DEVELOPER}))
NARROW = principals.Principal(
    id="key_narrow", tenant="acme", roles=frozenset({principals.Role.DEVELOPER}), agents=frozenset({"hello"})
)
VIEWER = principals.Principal(id="key_view", tenant="acme", roles=frozenset({principals.Role.VIEWER}))


class Clock(clocks.SystemClock):
    now = NOON

    def time(self) -> float:
        return self.now


@dataclass
class Room:
    store: model_store.PostgresModelStore
    runs: run_store.PostgresRunStore
    models: service.ModelService
    notices: notices.Notices
    clock: Clock
    told: dict[str, Any] = field(default_factory=dict)
    posts: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    answers: list[tuple[int | None, str | None, float | None]] = field(default_factory=list)

    @property
    def spending(self) -> spending.Spending:
        return spending.Spending(self.models)


@pytest.fixture
async def room(postgres_url: str, tmp_path: Path) -> AsyncIterator[Room]:
    async with engines.open_engine(postgres_url, pool_size=3) as engine:
        store, clock = model_store.PostgresModelStore(engine), Clock()
        made: list[Room] = []

        async def post(tenant: str, url: str, *, message_id: str, body: bytes) -> tuple[int | None, str | None, float | None]:
            made[0].posts.append((tenant, url, {"id": message_id, **json.loads(body)}))
            return made[0].answers.pop(0) if made[0].answers else (204, None, None)

        def publish(entries: Mapping[str, Any], default: str | None, unknown: str) -> None:
            made[0].told = dict(entries)

        telling = notices.Notices(store=store, post=post, clock=clock)
        models = service.ModelService(
            store=store,
            notices=telling,
            environ={},
            known=catalog.load_entries({}, homes.Home(tmp_path)),
            file_path=tmp_path / "models.yaml",
            price_cache=tmp_path / "prices.json",
            key=bytes(32),
            publish=publish,
            clock=clock,
        )
        made.append(Room(store, run_store.PostgresRunStore(engine), models, telling, clock))
        await models.start()
        yield made[0]


def call(number: int, **fields: Any) -> tuple[str, dict[str, Any]]:
    record = {
        "run_id": "run_1", "tenant": "acme", "agent": "hello", "environment": "production", "instance_id": "ins_1", "model": "m",
        "provider": "p", "input_tokens": 10, "output_tokens": 5, "status": 200, "started_at": NOON - 60, "duration_s": 1.0,
        "outcome": "completed", "attempts": 1, "cost_nano": 1_000_000, "user_id": "ann", "session_id": "s", **fields,
    }  # fmt: skip
    return f"call_{number}", record


async def test_what_is_set_is_told_to_gateways_at_once_and_a_key_is_kept_sealed(room: Room) -> None:
    provider = wire.Provider(base_url="https://llm.example/v1", serves=["llm-*"])
    await room.models.put_provider(ADMIN, "mine", provider, "sk-secret")
    assert room.told["model/llm-*"]["headers"] == {"authorization": "Bearer sk-secret"}
    assert b"sk-secret" not in (await room.store.settings())[0].sealed  # type: ignore[operator]
    await room.models.put_provider(ADMIN, "mine", wire.Provider(base_url="https://two.example/v1"), None)
    assert room.told["model/mine/*"]["headers"] == {"authorization": "Bearer sk-secret"}, "the stored key stays"
    assert await room.models.put_route(ADMIN, "fast", wire.Route.model_validate({"to": ["mine/x", "gone"]})) == ["gone"]
    assert room.told["route/fast"]["targets"][0] == {"model": "mine/x", "weight": 1}
    await room.models.put_price(ADMIN, "mine", "x*", wire.Price(input=1, output=2))
    assert room.told["prices/mine"]["models"][0]["match"] == {"starts_with": "x"}
    await room.models.drop(ADMIN, "route", "fast")
    assert "route/fast" not in room.told


@pytest.mark.parametrize("caller", [DEVELOPER, NARROW, VIEWER])
async def test_only_the_hosts_admins_say_where_calls_go(room: Room, caller: principals.Principal) -> None:
    with pytest.raises(errors.Forbidden):
        await room.models.put_provider(caller, "mine", wire.Provider(base_url="https://llm.example/v1"), None)
    with pytest.raises(errors.Forbidden):
        await room.models.put_route(caller, "fast", wire.Route.model_validate({"to": ["smollm2"]}))


async def test_bad_settings_are_refused_and_change_nothing(room: Room) -> None:
    before = dict(room.told)
    with pytest.raises(errors.Invalid, match="base_url"):
        await room.models.put_provider(ADMIN, "mine", wire.Provider(), None)
    with pytest.raises(errors.Invalid, match="no name"):
        await room.models.put_provider(ADMIN, "../etc", wire.Provider(base_url="https://x/v1"), None)
    with pytest.raises(errors.Invalid, match="nowhere"):
        await room.models.put_route(ADMIN, "fast", wire.Route.model_validate({"to": ["gone"]}))
    with pytest.raises(errors.NotFound):
        await room.models.drop(ADMIN, "provider", "gone")
    assert room.told == before


async def test_a_budget_counts_what_its_period_has_used_and_is_kept_per_tenant(room: Room) -> None:
    await room.runs.add([], [call(1), call(2, started_at=NOON - 2 * DAY), call(3, tenant="globex"), call(4, cached=True)])
    await room.spending.put(DEVELOPER, "daily", wire.BudgetSpec(limit=10, unit="requests", period="day"))
    entry = room.told["budget/acme/daily"]
    assert entry["spent"]["amount"] == 1
    shown = await room.spending.show(DEVELOPER, "daily")
    assert (shown["used"], shown["left"], shown["source"]) == (1, 9, "api")
    with pytest.raises(errors.NotFound):
        await room.spending.show(principals.Principal(id="k", tenant="globex", roles=DEVELOPER.roles), "daily")
    await room.spending.drop(DEVELOPER, "daily")
    assert "budget/acme/daily" not in room.told


async def test_a_key_for_one_agent_sets_budgets_of_that_agent_only(room: Room) -> None:
    await room.spending.put(NARROW, "mine", wire.BudgetSpec(limit=1, scope="agent", agent="hello"))
    for spec in (wire.BudgetSpec(limit=1), wire.BudgetSpec(limit=1, scope="agent", agent="other")):
        with pytest.raises(errors.Forbidden):
            await room.spending.put(NARROW, "all", spec)
    await room.spending.put(DEVELOPER, "all", wire.BudgetSpec(limit=1))
    assert [one["id"] for one in await room.spending.list(NARROW)] == ["mine"]
    with pytest.raises(errors.NotFound):
        await room.spending.drop(NARROW, "all")
    with pytest.raises(errors.Forbidden):
        await room.spending.put(VIEWER, "x", wire.BudgetSpec(limit=1))


async def test_usage_is_summed_by_what_is_asked(room: Room) -> None:
    await room.runs.add(
        [],
        [
            call(1), call(2, model="big", cost_nano=5_000_000_000, user_id=None), call(3, cost_nano=None, estimated=True),
            call(4, agent="other", outcome="failed", status=500), call(5, tenant="globex"),
        ],
    )  # fmt: skip
    found = await room.spending.usage(DEVELOPER, since=NOON - DAY, by="model")
    assert [(row.group, row.calls) for row in found.rows] == [("big", 1), ("m", 3)]
    assert (found.total.calls, found.total.failed, found.total.unpriced, found.total.estimated) == (4, 1, 1, 1)
    assert found.total.cost_nano == 5_002_000_000
    assert (await room.spending.usage(NARROW, since=NOON - DAY)).total.calls == 3
    by_user = await room.spending.usage(DEVELOPER, since=NOON - DAY, by="user")
    assert {row.group for row in by_user.rows} == {"", "ann"}
    assert [row.group for row in (await room.spending.usage(DEVELOPER, since=NOON - DAY, by="day")).rows] == ["2026-11-20"]
    for bad in ({"by": "colour"}, {"since": -1.0}):
        with pytest.raises(errors.Invalid):
            await room.spending.usage(DEVELOPER, **{"since": NOON - DAY, **bad})  # type: ignore[arg-type]


async def test_stops_are_told_at_once_and_stay(room: Room) -> None:
    await room.models.stop(NARROW, "hello", "it loops")
    assert room.told["stop/acme/hello"]["reason"] == "it loops"
    with pytest.raises(errors.Forbidden):
        await room.models.stop(NARROW, None, "")
    await room.models.stop(DEVELOPER, None, "all")
    assert [one.agent for one in await room.models.stops(DEVELOPER)] == ["*", "hello"]
    await room.models.resume(DEVELOPER, None)
    await room.models.resume(DEVELOPER, "hello")
    with pytest.raises(errors.NotFound):
        await room.models.resume(DEVELOPER, "hello")
    assert not [name for name in room.told if name.startswith("stop/")]


def passed(percent: int = 80, **fields: Any) -> dict[str, Any]:
    return {
        "kind": "budget", "tenant": "acme", "budget": "watched", "scope": "tenant", "subject": "", "agent": "hello",
        "unit": "cost", "period": "day", "percent": percent, "limit": 10**9, "spent": 8 * 10**8, "window_ends": NOON + 100,
        "at": NOON, **fields,
    }  # fmt: skip


async def test_a_notice_is_sent_until_it_is_taken_and_a_repeated_one_is_one(room: Room) -> None:
    spec = wire.BudgetSpec(limit=1, webhook="https://hook.example/x")
    await room.spending.put(DEVELOPER, "watched", spec)
    room.answers[:] = [(503, "the receiver answered 503", 60.0)]
    await room.notices.take([passed(), passed(), {"kind": "budget"}, passed(at="x")])
    await room.notices._round()
    (stored,) = await room.store.notices("acme", "watched", limit=9)
    assert (stored.status, stored.attempts, stored.last_error) == ("pending", 1, "the receiver answered 503")
    assert await room.notices._round() == 0, "not before the receiver wants it"
    room.clock.now += 61
    await room.notices._round()
    assert [one.status for one in await room.store.notices("acme", None, limit=9)] == ["delivered"]
    first, second = (body for _, _, body in room.posts)
    assert first == second
    assert (first["type"], first["data"]["limit"], first["data"]["spent"]) == ("budget.warning", 1.0, 0.8)
    await room.notices.take([passed(100), passed(budget="other")])
    assert {one.status for one in await room.store.notices("acme", "other", limit=9)} == {"noted"}
    await room.notices._round()
    assert room.posts[-1][2]["type"] == "budget.exhausted"


async def test_the_file_is_read_again_when_it_changes_and_a_wrong_one_changes_nothing(room: Room, tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    running = asyncio.create_task(room.models.run())
    try:
        path.write_text("budgets: {all: {limit: 3}}")
        async with asyncio.timeout(10):
            while "budget/default/all" not in room.told:
                await asyncio.sleep(0.01)
            path.write_text("budgets: {all: {limit: -3}}")
            while not room.models.problems:
                await asyncio.sleep(0.01)
        assert room.told["budget/default/all"]["limit"] == 3 * 10**9
        with pytest.raises(errors.Conflict):
            await room.spending.drop(ADMIN, "all")
    finally:
        running.cancel()


async def test_the_migrated_tables_are_those_the_code_describes(room: Room) -> None:
    ours = {table.name for table in METADATA.tables.values() if table in vars(model_schema).values()}
    assert len(ours) == 4

    def compare(connection: sa.Connection) -> list[Any]:
        names = {"include_name": lambda name, kind, parents: kind != "table" or name in ours, "compare_type": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=names), METADATA))

    async with room.store._engine.connect() as connection:
        differences = await connection.run_sync(compare)
    assert [change for change in differences if getattr(getattr(change[-1], "table", change[-1]), "name", "") in ours] == []
