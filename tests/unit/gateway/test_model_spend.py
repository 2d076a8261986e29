"""The ledger of model money: one for all processes, exact, and true after a process was killed."""

import multiprocessing
import os
import signal

import pytest

from nexus.core import errors
from nexus.gateway import model_spend
from nexus.gateway.model_spend import Meter

NOW = 1_000_000.0
METER = Meter("acme\0b", NOW + 60)


@pytest.fixture
def ledger(tmp_path):
    spend = model_spend.Spend.open(tmp_path / "spend")
    yield spend
    spend.close()


def balance(spend, meter=METER):
    with spend.locked():
        return spend.read(meter, NOW)


def test_what_is_reserved_becomes_what_was_used(ledger):
    with ledger.locked():
        place = ledger.take(METER, 100, NOW)
        ledger.add(place, 20)
    assert balance(ledger) == (0, 120)
    with ledger.locked():
        assert ledger.settle(place, reserved=120, used=7) == 7
    assert balance(ledger) == (7, 0)


def test_a_new_counter_begins_with_what_was_spent_before(ledger):
    assert balance(ledger, Meter("other", NOW + 60, 55)) == (55, 0)
    assert balance(ledger, Meter("other", NOW + 60, 99)) == (55, 0)


def test_a_threshold_is_told_once_by_whichever_process_sees_it(ledger, tmp_path):
    other = model_spend.Spend.open(tmp_path / "spend")
    with ledger.locked():
        place = ledger.take(METER, 1, NOW)
        assert ledger.tell_once(place, 2)
    with other.locked():
        assert not other.tell_once(other.take(METER, 1, NOW), 2)
        assert other.tell_once(place, 1)
    other.close()


def test_a_full_neighbourhood_refuses_instead_of_forgetting_and_is_free_again_when_windows_end(ledger, monkeypatch):
    monkeypatch.setattr(model_spend, "SLOTS", 8)
    monkeypatch.setattr(model_spend, "_PROBES", 8)
    for number in range(8):
        assert balance(ledger, Meter(f"run {number}", NOW + 60, number)) == (number, 0)
    with pytest.raises(errors.Unavailable) as caught:
        balance(ledger, Meter("one more", NOW + 60))
    assert caught.value.code == "budget.ledger_full"
    with ledger.locked():
        assert ledger.read(Meter("one more", NOW + 200), NOW + 61) == (0, 0)


def spender(folder, times, limit, results):
    spend = model_spend.Spend.open(folder)
    taken = 0
    for _ in range(times):
        with spend.locked():
            spent, reserved = spend.read(METER, NOW)
            place = spend.take(METER, 3, NOW) if spent + reserved + 3 <= limit else None
        if place is not None:
            taken += 3
            with spend.locked():
                spend.settle(place, reserved=3, used=3)
    spend.close()
    results.put(taken)


def test_processes_in_parallel_never_take_more_than_there_is(tmp_path):
    limit, results = 3000, multiprocessing.Queue()
    children = [multiprocessing.Process(target=spender, args=(tmp_path / "spend", 800, limit, results)) for _ in range(4)]
    for child in children:
        child.start()
    taken = sum(results.get(timeout=60) for _ in children)
    for child in children:
        child.join()
    ledger = model_spend.Spend.open(tmp_path / "spend")
    assert (taken, balance(ledger)) == (limit, (limit, 0))
    ledger.close()


def hoarder(folder, ready):
    spend = model_spend.Spend.open(folder)
    with spend.locked():
        spend.settle(spend.take(METER, 10, NOW), reserved=10, used=4)
        spend.take(METER, 50, NOW)
    ready.put(os.getpid())
    signal.pause()


def test_what_a_killed_process_had_reserved_counts_as_spent(ledger, tmp_path):
    ready = multiprocessing.Queue()
    child = multiprocessing.Process(target=hoarder, args=(tmp_path / "spend", ready))
    child.start()
    ready.get(timeout=60)
    assert (ledger.sweep(), balance(ledger)) == (0, (4, 50))
    child.kill()
    child.join()
    assert (ledger.sweep(), balance(ledger)) == (1, (54, 0))
    assert ledger.sweep() == 0
