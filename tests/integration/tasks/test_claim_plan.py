"""What a claim reads: its tasks, however many others the table holds and whatever the statistics say of them."""

import psycopg
import rig as rigs

from nexus.core import ids
from nexus.ports import task_store as port
from nexus.stores.postgres import task_claim, task_link

LANE = port.Lane(tenant="default", agent="echo", environment="production")
OLD, NEW = 4000, 3
_VALUES = {
    "owner": "me", "limit": 50, "per_lane": 50, "per_tenant": 50, "paused": [], "counted": False, "limited": [], "most": [],
}  # fmt: skip


def _entries(count: int) -> list[port.Submission]:
    return [port.Submission(id=ids.new_id(ids.TASK), lane=LANE, principal="key", body=b"{}", digest="d") for _ in range(count)]


async def test_a_claim_after_a_burst_reads_no_more_than_what_it_takes(rig: rigs.Rig, postgres_url: str) -> None:
    """Its kept plan once joined the picked ids with the whole table: 10 ms a claim beside 20,000 finished tasks."""
    await rig.store.enlist("me")
    await rig.store.submit(_entries(OLD))
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await connection.execute("ANALYZE tasks")
        await connection.execute("UPDATE tasks SET phase = 'completed'")
        await connection.execute("VACUUM tasks")
    await rig.store.submit(_entries(NEW))
    async with rig.store._link.begin("claiming") as connection:
        claimed = await task_link.rows(connection, task_claim._CLAIM, _VALUES)
        (told,) = await task_link.rows(
            connection,
            "SELECT seq_tup_read + idx_tup_fetch AS read FROM pg_stat_xact_user_tables WHERE relname = 'tasks'",
            {},
        )
    assert len(claimed) == NEW
    assert told["read"] < 100
