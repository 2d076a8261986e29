"""Rows of what sessions used: told when they grow, until they are acknowledged, and once more to whoever comes anew."""

import asyncio
from dataclasses import replace

from nexus.core import usage
from nexus.drivers.process import egress_meter, usage_ledger

ROW = usage.UsageRow(
    instance_id="ins_1", session_id="anna", part=usage.Part.WORKER, began_at=5.0, tenant="t", agent="a", environment="production",
    version="1.0.0", cpu_s=1.0,
)  # fmt: skip


def told(ledger: usage_ledger.Ledger, after: str) -> tuple[str, list[tuple[str, float]]]:
    answer = ledger.tell(after)
    return answer["token"], [(row["session_id"], row["cpu_s"]) for row in answer["rows"]]


def test_a_row_is_told_when_it_has_grown_and_again_until_it_is_acknowledged() -> None:
    ledger = usage_ledger.Ledger("e1")
    ledger.put(ROW)
    first, rows = told(ledger, "")
    assert rows == [("anna", 1.0)]
    assert told(ledger, "")[1] == rows, "it was not acknowledged"
    ledger.put(ROW)
    assert told(ledger, first) == (first, []), "nothing has grown"
    ledger.put(replace(ROW, cpu_s=2.0))
    ledger.put(replace(ROW, session_id="ben"))
    second, rows = told(ledger, first)
    assert rows == [("anna", 2.0), ("ben", 1.0)]
    assert told(ledger, second)[1] == []
    assert told(ledger, "e0:99")[1] == rows, "what another supervisor was told says nothing"
    assert told(ledger, "nonsense")[1] == rows


def test_an_ended_session_is_told_for_the_last_time_and_forgotten_once_that_is_stored() -> None:
    ledger = usage_ledger.Ledger("e1")
    ledger.put(ROW)
    before, _ = told(ledger, "")
    ledger.put(replace(ROW, cpu_s=3.0), ended=True)
    ledger.put(replace(ROW, cpu_s=9.0))
    after, rows = told(ledger, before)
    assert rows == [("anna", 3.0)]
    assert told(ledger, before)[1] == rows
    assert told(ledger, after)[1] == []
    assert told(ledger, "")[1] == []


def test_a_meter_counts_open_connections_as_they_go_and_goes_on_after_a_restart() -> None:
    async def count() -> None:
        meter, whose = egress_meter.Meter(), asyncio.get_running_loop().create_future()
        own = egress_meter.Tally(connections=1)
        meter.open(own, whose)
        own.sent = 7
        assert meter.sessions() == {}, "it is not known yet whose it is"
        whose.set_result(egress_meter.Caller("run_1", "anna"))
        assert meter.sessions()["anna"].sent == 7
        own.sent = 9
        meter.count(whose.result(), own)
        meter.total.add(own)
        again = egress_meter.Meter()
        again.restore(meter.to_json())
        again.count(egress_meter.Caller("", "anna"), egress_meter.Tally(sent=1, received=5))
        assert again.sessions()["anna"] == egress_meter.Tally(sent=10, received=5, connections=1)
        assert again.total.sent == 9

    asyncio.run(count())
