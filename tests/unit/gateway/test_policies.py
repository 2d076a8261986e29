"""Circuits, splits, kept answers, turns in line and the reading of options: decided without I/O."""

import collections
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.core import errors
from nexus.gateway import balance, breaker, kept, mint, routes, splits, waiting, wishes

# circuits


def test_failures_in_a_row_open_a_circuit_and_one_trial_closes_it():
    circuit = breaker.Circuit()
    for _ in range(3):
        assert circuit.may_pass(3, 10.0)
        circuit.note_start(3)
        circuit.note_end(3, failed=True, now=10.0)
    assert not circuit.may_pass(3, 10.9)
    assert circuit.may_pass(3, 11.1)
    circuit.note_start(3)
    assert not circuit.may_pass(3, 11.1), "one trial at a time"
    circuit.note_end(3, failed=False, now=11.2)
    assert circuit.may_pass(3, 11.2)
    assert circuit.failures == 0


def test_a_failed_trial_makes_the_pause_longer_up_to_a_bound():
    circuit, now, pauses = breaker.Circuit(), 0.0, []
    for _ in range(12):
        circuit.note_start(1)
        circuit.note_end(1, failed=True, now=now)
        pauses.append(circuit.open_until - now)
        now = circuit.open_until
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert max(pauses) == 30.0


def test_a_success_between_failures_begins_the_count_anew_and_a_cancelled_trial_counts_for_nothing():
    circuit = breaker.Circuit()
    for failed in (True, True, False, True, True, None):
        circuit.note_start(3)
        circuit.note_end(3, failed=failed, now=5.0)
    assert circuit.failures == 2
    assert circuit.may_pass(3, 5.0)


# splits and versions


def deployment(*versions, split=None, by="session", **fields):
    instances = tuple(
        routes.Instance(id=f"ins_{n}", address=f"unix:/{n}", version=version, tag=mint.tag_of(f"ins_{n}"))
        for n, version in enumerate(versions)
    )
    by_version = {version: tuple(one for one in instances if one.version == version) for version in versions}
    asked = wishes.Options(split=wishes.Split(name="x", by=by, weights=split) if split else None)
    values = {
        "id": "dep", "tenant": "t", "agent": "a", "environment": "e", "revision": 1, "balancer": "least-connections",
        "instances": instances, "tags": {one.tag: one for one in instances}, "timeout_s": 1.0, "wait_s": 5.0,
        "max_concurrency": None, "max_queue": 10, "options": asked, "versions": by_version,
    }  # fmt: skip
    return routes.Deployment(**{**values, **fields})


def version_of(target, session, *, pins=None, user="", draw=lambda: 0.5):
    return balance.decide_version(target, session_id=session, user=user, pins=pins or splits.Pins.private(), draw=draw)


def test_weights_are_kept_within_chance():
    target = deployment("1", "2", split=(("1", 90.0), ("2", 10.0)))
    pins = splits.Pins.private()
    count = collections.Counter(version_of(target, f"customer-{n}", pins=pins) for n in range(10_000))
    assert abs(count["2"] - 1000) < 5 * math.sqrt(10_000 * 0.1 * 0.9)


def test_an_assignment_is_the_same_in_every_process():
    assert splits.point("dep_1", "checkout", "customer-42") == pytest.approx(0.55477085, abs=1e-8)


@given(st.text(min_size=1, max_size=30), st.integers(0, 100), st.integers(0, 100))
def test_a_growing_canary_takes_sessions_and_gives_none_back(key, one, other):
    low, high = sorted((one, other))
    small = wishes.Split(name="n", by="session", weights=(("new", low), ("old", 100 - low)))
    large = wishes.Split(name="n", by="session", weights=(("new", high), ("old", 100 - high)))
    served = ("new", "old")
    if splits.assign(small, "d", key, served) == "new":
        assert splits.assign(large, "d", key, served) == "new"


def test_a_version_without_instances_leaves_its_share_to_the_others():
    split = wishes.Split(name="n", by="session", weights=(("1", 50.0), ("2", 50.0)))
    assert {splits.assign(split, "d", str(n), {"2"}) for n in range(50)} == {"2"}
    assert splits.assign(split, "d", "x", {"3"}) is None
    nothing = wishes.Split(name="n", by="session", weights=(("1", 1.0), ("2", 0.0)))
    assert {splits.assign(nothing, "d", str(n), {"1", "2"}) for n in range(50)} == {"1"}


def test_a_session_keeps_the_version_it_began_on_when_the_weights_turn():
    pins = splits.Pins.private()
    before = deployment("1", "2", split=(("1", 100.0), ("2", 0.0)))
    after = deployment("1", "2", split=(("1", 0.0), ("2", 100.0)))
    assert version_of(before, "s", pins=pins) == "1"
    balance.note_session(before, "s", before.instances[0], pins, 1.0)
    assert version_of(after, "s", pins=pins) == "1"
    assert version_of(after, "fresh", pins=pins) == "2"
    gone = deployment("2", "3", split=(("2", 1.0), ("3", 0.0)))
    assert version_of(gone, "s", pins=pins) == "2", "its version has no instances any more"


def test_a_session_of_our_own_making_is_on_the_version_of_its_instance():
    target = deployment("1", "2", split=(("1", 0.0), ("2", 100.0)))
    session = mint.Minter().session_id(target.instances[0].tag)
    assert version_of(target, session) == "1"


def test_a_split_by_user_is_the_same_in_all_sessions_of_a_user():
    target = deployment("1", "2", split=(("1", 50.0), ("2", 50.0)), by="user")
    pins = splits.Pins.private()
    for user in ("ada", "grace", "edsger"):
        assert len({version_of(target, f"s{n}", pins=pins, user=user) for n in range(20)}) == 1


def test_one_version_needs_no_decision():
    assert version_of(deployment("1", "1"), "s") is None


def test_pins_are_shared_between_processes_and_full_sets_drop_the_oldest(tmp_path):
    one, two = splits.Pins.open(tmp_path / "m"), splits.Pins.open(tmp_path / "m")
    one.put("dep", "s", "1.0.0", 100.0)
    assert two.find("dep", "s", ["1.0.0", "2.0.0"]) == "1.0.0"
    assert two.find("dep", "s", ["2.0.0"]) is None
    assert two.find("other", "s", ["1.0.0"]) is None
    for n in range(100_000):
        one.put("dep", f"flood-{n}", "1.0.0", 200.0)
    assert (tmp_path / "m").stat().st_size == 16 * 4 * (1 << 14)
    one.put("dep", "s", "2.0.0", 300.0)
    assert two.find("dep", "s", ["1.0.0", "2.0.0"]) == "2.0.0"


# kept answers


def answer(body=b"x", at=0.0):
    return kept.Answer(200, ((b"content-type", b"text/plain"),), body, at)


def test_a_cache_forgets_by_age_and_by_size():
    cache, limits = kept.Cache(), wishes.Cache(ttl_s=10.0, size=5000)
    for n in range(20):
        cache.put(n, answer(b"x" * 500, at=0.0), limits)
        assert cache.size <= 5000
    assert cache.find(0, 10.0, 1.0) is None
    assert cache.find(19, 10.0, 9.0) is not None
    assert cache.find(19, 10.0, 10.1) is None
    cache.put("big", answer(b"x" * 6000), limits)
    assert cache.find("big", 10.0, 0.0) is None


def test_what_was_asked_for_lately_stays_longer():
    cache, limits = kept.Cache(), wishes.Cache(ttl_s=10.0, size=3 * answer().size)
    for name in "abc":
        cache.put(name, answer(), limits)
    cache.find("a", 10.0, 0.0)
    cache.put("d", answer(), limits)
    assert [name for name in "abcd" if cache.find(name, 10.0, 0.0)] == ["a", "c", "d"]


def test_an_idempotency_key_replays_refuses_and_is_free_again():
    uses = kept.Keys()
    assert uses.begin("k", b"one", 0.0) is None
    with pytest.raises(errors.Conflict, match="under way"):
        uses.begin("k", b"one", 0.1)
    uses.finish("k", answer(b"done"))
    assert uses.begin("k", b"one", 1.0).body == b"done"
    with pytest.raises(errors.Conflict) as mismatch:
        uses.begin("k", b"two", 1.0)
    assert mismatch.value.code == "idempotency.mismatch"
    uses.release("k")
    assert uses.begin("k", b"two", 1.0) is None
    uses.finish("k", None)
    with pytest.raises(errors.Conflict, match="too large"):
        uses.begin("k", b"two", 1.0)
    assert uses.begin("k", b"two", 3602.0) is None, "forgotten after an hour"


def test_many_keys_are_forgotten_oldest_first_but_never_one_in_use():
    uses = kept.Keys()
    uses.begin("busy", b"", 0.0)
    for n in range(10_500):
        uses.begin(n, b"", 0.0)
        uses.finish(n, answer())
    with pytest.raises(errors.Conflict):
        uses.begin("busy", b"", 0.0)
    assert uses.begin(0, b"", 0.0) is None
    assert uses.begin(10_499, b"", 0.0) is not None


def test_a_digest_keeps_its_parts_apart():
    assert kept.digest((b"ab", b"c")) != kept.digest((b"a", b"bc"))


# turns in line


class Waiter:
    def __init__(self, name, caller, log, room=1):
        self.name, self.waits_as, self._log, self._room = name, caller, log, room
        self.call = type("Call", (), {"session_given": False, "tried": set()})()

    def try_again(self):
        if self._room["free"] <= 0:
            return False
        self._room["free"] -= 1
        self._log.append(self.name)
        return True


def test_a_caller_with_many_runs_waits_beside_one_with_few():
    room, target, log, free = waiting.Room(), deployment("1", max_concurrency=1), [], {"free": 0}
    for n in range(4):
        room.join(Waiter(f"many-{n}", "many", log, free), target)
    room.join(Waiter("few-0", "few", log, free), target)
    for _ in range(5):
        free["free"] = 1
        room.look_again("dep")
    assert log.index("few-0") <= 1
    assert [name for name in log if name.startswith("many")] == [f"many-{n}" for n in range(4)]
    assert not room.has("dep")


def test_a_run_whose_turn_would_come_too_late_is_refused_at_once():
    room, target, free = waiting.Room(), deployment("1", max_concurrency=1, wait_s=5.0), {"free": 0}
    target.instances[0].latency_s = 2.0
    for n in range(3):
        room.join(Waiter(str(n), "c", [], free), target)
    with pytest.raises(errors.Exhausted) as shed:
        room.join(Waiter("late", "c", [], free), target)
    assert (shed.value.code, shed.value.retry_after_s) == ("queue.full", 6.0)


# options


def test_options_are_read_as_people_write_them():
    read = wishes.parse_options(
        {
            "cache_responses": True, "cache_ttl": "5m", "cache_size": "100MB", "cache_headers": ["Accept-Language"],
            "circuit_breaker": True, "failure_threshold": 7, "requests_per_minute": 60, "compression": "none",
            "split": [{"version": "1", "weight": 9}, {"version": "2", "weight": 1}], "split_by": "user", "other": object(),
        },
        where="t/a/e",
    )  # fmt: skip
    assert read.cache == wishes.Cache(ttl_s=300.0, size=100_000_000, headers=(b"accept-language",))
    assert (read.threshold, read.requests_per_minute, read.compression) == (7, 60, "none")
    assert read.split == wishes.Split(name="", by="user", weights=(("1", 9.0), ("2", 1.0)))


@pytest.mark.parametrize(
    "bad",
    [
        {"cache_responses": "yes"}, {"circuit_breaker": 1}, {"requests_per_minute": 0}, {"requests_per_minute": "many"},
        {"split": "1"}, {"split": [{"version": "1"}]}, {"split": [{"version": "1", "weight": -1}]},
        {"split": [{"version": "1", "weight": 0}]}, {"split": [{"version": "1", "weight": math.nan}]}, {"compression": "lzma"},
        {"split": 5}, {"requests_per_minute": [1]},
    ],
)  # fmt: skip
def test_a_bad_option_is_left_out_and_stops_nothing(bad):
    assert wishes.parse_options(bad, where="t/a/e") == wishes.Options()


@pytest.mark.parametrize("bad", ["", "five", "-1s", "1y", 0, -3, True, "31d", 1e12])
def test_bad_durations(bad):
    with pytest.raises(ValueError, match=r"not"):
        wishes.parse_seconds(bad)


@pytest.mark.parametrize(("given_", "size"), [(10, 10), ("10", 10), ("1k", 1000), ("64Mi", 64 << 20), ("1GB", 10**9)])
def test_sizes(given_, size):
    assert wishes.parse_size(given_) == size
