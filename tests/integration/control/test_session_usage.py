"""What sessions used, in real rows: it only grows, whoever tells it how often, and a session's rows add up."""

from dataclasses import replace
from typing import Any

import pytest

from nexus.core import errors, sessions, usage
from nexus.ports import session_usage as ports
from nexus.sessions import accounting
from nexus.stores.postgres import engine, session_usage
from nexus.wire import session_node

ROW = usage.UsageRow(
    instance_id="ins_1", session_id="anna", part=usage.Part.WORKER, began_at=5.0, tenant="t", agent="a", environment="production",
    version="1.0.0", cpu_s=1.5, memory_byte_seconds=10.0,
)  # fmt: skip
WIRE = replace(ROW, part=usage.Part.NETWORK, began_at=0.0, cpu_s=0.0, memory_byte_seconds=0.0, bytes_in=7, bytes_out=3)


class Node:
    """Tells what the test wants it to; `away` while it cannot be asked."""

    def __init__(self) -> None:
        self.rows: list[usage.UsageRow] = []
        self.asked: list[str] = []
        self.away = False

    async def usage(self, after: str) -> tuple[str, list[usage.UsageRow]]:
        if self.away:
            raise errors.Unavailable("the node is away", code="driver.unreachable")
        self.asked.append(after)
        return f"e:{len(self.asked)}", self.rows


@pytest.fixture
async def store(postgres_url: str) -> Any:
    async with engine.open_engine(postgres_url, pool_size=2) as database:
        yield session_usage.PostgresUsageStore(database)


async def test_what_is_told_twice_or_late_counts_once(store: session_usage.PostgresUsageStore) -> None:
    node, grown = Node(), list[ports.Grown]()
    used = accounting.Accounting(node=node, store=store, grown=grown.extend)
    for rows in ([ROW, WIRE], [ROW, WIRE], [replace(ROW, cpu_s=2.0)], [replace(ROW, cpu_s=0.5)]):
        node.rows = rows
        await used.collect()
    assert node.asked == ["", "e:1", "e:2", "e:3"]
    assert [(one.cpu_s, one.bytes_in, one.bytes_out) for one in grown] == [(1.5, 7, 3), (0, 0, 0), (0.5, 0, 0), (0, 0, 0)]
    node.away = True
    found = await used.of("t", ["anna"], fresh=True)
    assert {(row.part, row.cpu_s) for row in found["a", "production", "anna"]} == {
        (usage.Part.WORKER, 2.0),
        (usage.Part.NETWORK, 0.0),
    }
    assert await used.of("another", ["anna"]) == {}


def test_a_status_of_an_older_supervisor_is_read() -> None:
    told = session_node.status_to_json(sessions.SessionStatus(session_id="s", instance_id="i", phase=sessions.SessionPhase.LIVE))
    told["usage"] |= {"bytes_in": 0, "cpu_s": 2.0}
    assert session_node.status_from_json(told).usage == sessions.SessionUsage(cpu_s=2.0)


def test_rows_add_up_with_what_the_living_worker_has_used_since() -> None:
    alive = sessions.SessionStatus(
        session_id="anna", instance_id="ins_1", phase=sessions.SessionPhase.LIVE, created_at=5.0,
        usage=sessions.SessionUsage(cpu_s=1.8, memory_byte_seconds=9.0),
    )  # fmt: skip
    earlier = replace(ROW, began_at=1.0, cpu_s=4.0, memory_byte_seconds=1.0)
    elsewhere = replace(ROW, instance_id="ins_0", cpu_s=2.0, memory_byte_seconds=2.0)
    assert accounting.add_up([ROW, earlier, elsewhere, WIRE], alive) == accounting.Used(
        cpu_s=7.8, memory_byte_seconds=13.0, network_in=7, network_out=3
    )
    assert accounting.add_up([ROW, WIRE], None) == accounting.Used(
        cpu_s=1.5, memory_byte_seconds=10.0, network_in=7, network_out=3
    )
    assert accounting.add_up([], None) is None
