"""Balancing, sessions, rates, ids: what is decided without I/O."""

import collections
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.core import ids
from nexus.gateway import balance, limits, mint, routes


def deployment(count=3, **fields):
    instances = tuple(
        routes.Instance(id=f"ins_{number}", address=f"unix:/i{number}", version="1", tag=mint.tag_of(f"ins_{number}"))
        for number in range(count)
    )
    values = {
        "id": "dep", "tenant": "t", "agent": "a", "environment": "production", "revision": 1, "balancer": "least-connections",
        "instances": instances, "tags": {one.tag: one for one in instances}, "timeout_s": 1.0, "wait_s": 1.0,
        "max_concurrency": None, "max_queue": 1,
    }  # fmt: skip
    return routes.Deployment(**{**values, **fields})


def choose(target, session=None, *, now=100.0, without=()):
    found = balance.decide_instance(target, session_id=session, now=now, without=without)
    return None if found is None else found.id


def test_least_connections_spreads_equals_and_avoids_the_busy():
    target = deployment()
    assert len({choose(target) for _ in range(6)}) == 3
    target.instances[0].active = target.instances[1].active = 2
    assert {choose(target) for _ in range(6)} == {"ins_2"}


def test_health_based_avoids_the_slow_and_the_failing():
    target = deployment(balancer="health-based")
    for one in target.instances:
        balance.note_answer(one, latency_s=0.01, failed=False)
    for _ in range(10):
        balance.note_answer(target.instances[0], latency_s=2.0, failed=False)
        balance.note_answer(target.instances[1], latency_s=0.01, failed=True)
    assert {choose(target) for _ in range(6)} == {"ins_2"}


def test_an_instance_that_refuses_is_out_for_a_growing_moment():
    target = deployment(1)
    one = target.instances[0]
    balance.note_unreachable(one, 100.0)
    assert (choose(target, now=100.4), choose(target, now=100.6)) == (None, "ins_0")
    balance.note_unreachable(one, 100.6)
    assert choose(target, now=101.5) is None
    for _ in range(50):
        balance.note_unreachable(one, 200.0)
    assert one.out_until == 210.0
    balance.note_answer(one, latency_s=0.1, failed=False)
    assert one.failures == 0


def test_what_was_tried_or_is_full_is_not_chosen():
    target = deployment(2, max_concurrency=1)
    assert choose(target, without={"ins_0"}) == "ins_1"
    target.instances[1].active = 1
    assert choose(target, without={"ins_0"}) is None
    assert choose(target) == "ins_0"


def test_a_session_waits_for_its_full_instance_instead_of_moving():
    target = deployment(3, max_concurrency=1)
    home = choose(target, "customer")
    next(one for one in target.instances if one.id == home).active = 1
    assert choose(target, "customer") is None


@given(st.text(alphabet="abcXYZ019._:@-", min_size=1, max_size=40))
def test_a_session_moves_only_when_its_instance_goes_or_a_new_one_wins_it(session):
    four, five = deployment(4), deployment(5)
    before, after = choose(four, session), choose(five, session)
    assert after in (before, "ins_4")


def test_sessions_are_spread_evenly():
    target = deployment(4)
    counted = collections.Counter(choose(target, f"customer-{number}") for number in range(4000))
    assert all(800 < count < 1200 for count in counted.values()), counted


def test_a_session_id_of_ours_names_its_instance_until_that_is_gone():
    minter, target = mint.Minter(), deployment(5)
    for one in target.instances:
        session = minter.session_id(one.tag)
        assert choose(target, session) == one.id
        assert choose(target, session, without={one.id}) not in (None, one.id)


def test_minted_ids_have_the_common_shape_and_order():
    minter = mint.Minter()
    made = [minter.run_id() for _ in range(500)]
    assert len(set(made)) == 500
    assert all(ids.is_id(one, "run") for one in made)
    assert ids.is_id(minter.session_id(mint.tag_of("ins_1")), "ses")
    assert abs(int.from_bytes(made[0][4:8].encode()) - int.from_bytes(ids.new_id("run")[4:8].encode())) == 0


@pytest.mark.parametrize(
    "given_",
    [
        None, b"", b"junk", b"00-" + b"0" * 32 + b"-" + b"b" * 16 + b"-01", b"00-" + b"a" * 32 + b"-" + b"0" * 16 + b"-01",
        b"ff-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"00-" + b"A" * 32 + b"-" + b"b" * 16 + b"-01",
        b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01-more",
    ],
)  # fmt: skip
def test_a_bad_traceparent_is_not_believed(given_):
    assert mint.parse_traceparent(given_) is None
    sent, trace = mint.Minter().traceparent()
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-01", sent)
    assert sent[3:35].decode() == trace


def test_a_good_traceparent_is_kept_also_of_a_later_version():
    good = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    assert mint.parse_traceparent(good) == "a" * 32
    later = b"01-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01-more"
    assert mint.parse_traceparent(later) == "a" * 32


def test_a_minutes_requests_may_come_at_once_then_one_an_interval():
    rates = limits.Rates.private()
    assert [rates.take("k", 3, 100.0) for _ in range(3)] == [40.0, 20.0, 0.0]
    assert rates.take("k", 3, 100.0) == pytest.approx(-20.0)
    assert rates.take("k", 3, 119.9) < 0
    assert rates.take("k", 3, 120.1) == pytest.approx(0.1)
    assert rates.take("other", 3, 100.0) == 40.0
    assert [rates.take("k", 3, 10_000.0) >= 0 for _ in range(4)].count(True) == 3


def test_one_of_several_limits_that_says_no_takes_nothing_from_the_others():
    rates = limits.Rates.private()
    wide, narrow = limits.limit("key", "k", 10), limits.limit("agent", "d", 2)
    assert rates.take_all((wide, narrow), 50.0) == (narrow, 30.0)
    assert rates.take_all((wide, narrow), 50.0) == (narrow, 0.0)
    for _ in range(5):
        assert rates.take_all((wide, narrow), 50.0) == (narrow, pytest.approx(-30.0))
    assert rates.take_all((wide,), 50.0) == (wide, pytest.approx(60.0 - 3 * 6.0))


def test_what_is_left_is_told_as_the_draft_says():
    limit = limits.limit("key", "k", 120)
    assert limits.render(limit, 30.0) == b'RateLimit-Policy: "key";q=120;w=60\r\nRateLimit: "key";r=60;t=30\r\n'
    assert limits.render(limit, -2.0).endswith(b";r=0;t=62\r\n")


def test_processes_share_one_limit(tmp_path):
    one, two = limits.Rates.open(tmp_path / "map"), limits.Rates.open(tmp_path / "map")
    passed = [rates.take("k", 4, 50.0) >= 0 for rates in (one, two) * 4]
    assert passed.count(True) == 4
    assert (tmp_path / "map").stat().st_mode & 0o777 == 0o600


def test_a_restart_of_the_machine_does_not_lock_a_key_out(tmp_path):
    """The monotonic clock begins anew; what is far in its future is not believed."""
    rates = limits.Rates.open(tmp_path / "map")
    for _ in range(3):
        rates.take("k", 3, 1_000_000.0)
    assert rates.take("k", 3, 5.0) == 40.0
