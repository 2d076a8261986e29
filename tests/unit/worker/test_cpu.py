"""CPU time is told of runs that had their worker to themselves."""

from nexus.worker import cpu


def test_runs_one_after_the_other_are_counted_and_those_side_by_side_are_not():
    clock = [0.0]
    meter = cpu.Meter(read=lambda: clock[0])
    meter.begin()
    clock[0] += 0.25
    assert meter.end() == 0.25
    meter.begin()
    meter.begin()
    clock[0] += 1
    assert meter.end() is None
    assert meter.end() is None
    meter.begin()
    clock[0] += 0.5
    assert meter.end() == 0.5


def test_what_this_process_used_grows():
    before = cpu.used()
    sum(range(3_000_000))
    assert cpu.used() > before
