"""The state of sessions in a real database: versions, and writers that were overtaken."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from nexus.core import errors
from nexus.ports import session_store as port
from nexus.stores.postgres import engine, session_store

KEY = port.SessionKey(tenant="default", agent="a", environment="production", session_id="s")


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[port.SessionStore]:
    async with engine.open_engine(postgres_url, pool_size=2) as database:
        yield session_store.PostgresSessionStore(database)


async def test_a_write_in_place_of_another_version_than_the_stored_one_is_refused(store: port.SessionStore) -> None:
    for after in (1, 7):
        with pytest.raises(errors.Conflict):
            await store.put(KEY, "{}", after=after)
    assert await store.fetch(KEY) is None
    assert await store.put(KEY, '{"n":1}', after=0) == 1
    assert await store.put(KEY, '{"n":2}', after=1) == 2
    assert await store.put(KEY, '{"n":3}') == 3
    for after in (0, 2, 4):
        with pytest.raises(errors.Conflict) as refused:
            await store.put(KEY, '{"n":9}', after=after)
        assert refused.value.code == "state.moved"
    found = await store.fetch(KEY)
    assert found is not None
    assert (found.state, found.version) == ('{"n":3}', 3)


async def test_one_session_or_all_of_an_agent_are_forgotten_and_no_others(store: port.SessionStore) -> None:
    other, staging, elsewhere = (
        replace(KEY, session_id="other"), replace(KEY, environment="staging"), replace(KEY, tenant="else")
    )  # fmt: skip
    for key in (KEY, other, staging, elsewhere):
        await store.put(key, "{}")
    assert await store.delete(KEY)
    assert not await store.delete(KEY)
    await store.delete_agent("default", "a", environment="production")
    assert [await store.fetch(key) is None for key in (other, staging, elsewhere)] == [True, False, False]
    await store.delete_agent("default", "a", environment=None)
    assert [await store.fetch(key) is None for key in (staging, elsewhere)] == [True, False]
