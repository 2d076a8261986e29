"""What is decided about sessions, as tables: spares, idleness, forking, policy."""

import pytest

from nexus.core.sessions import SESSION_MOVES, SessionPhase
from nexus.drivers.process import sandbox, session_demand, session_plans, session_watch

POLICY = session_plans.Policy(freeze_after_s=10, stop_after_s=100, max_lifetime_s=1000)


@pytest.mark.parametrize(
    ("phase", "idle_s", "expired", "connected", "move"),
    [
        (SessionPhase.LIVE, 0, False, False, "keep"),
        (SessionPhase.LIVE, 10, False, False, "freeze"),
        (SessionPhase.LIVE, 10, False, True, "keep"),
        (SessionPhase.LIVE, 100, False, False, "stop"),
        (SessionPhase.FROZEN, 50, False, False, "keep"),
        (SessionPhase.FROZEN, 100, False, False, "stop"),
        (SessionPhase.SAVED, 500, False, False, "keep"),
        (SessionPhase.STARTING, 500, False, False, "keep"),
        (SessionPhase.LIVE, 0, True, True, "keep"),
        (SessionPhase.LIVE, 0, True, False, "end"),
        (SessionPhase.SAVED, 0, True, False, "end"),
    ],
)
def test_idle_sessions(phase: SessionPhase, idle_s: float, expired: bool, connected: bool, move: str) -> None:
    assert session_watch.decide(phase, POLICY, idle_s=idle_s, expired=expired, connected=connected) == move


def test_every_phase_has_its_moves() -> None:
    assert set(SESSION_MOVES) == set(SessionPhase)
    assert not SESSION_MOVES[SessionPhase.ENDED]


def test_spares_follow_the_demand() -> None:
    demand = session_demand.Demand(start_s=0.02)
    assert demand.target(0.0) == 0, "nobody came yet"
    demand.note(100.0)
    assert demand.target(100.0) == 2, "another one may come while the first is made"
    assert demand.target(200.0) == 1, "one is ready for whoever comes next"
    assert demand.target(500.0) == 0, "nobody came for long"
    for number in range(500):
        demand.note(1000 + number * 0.01)
    assert 3 <= demand.target(1005.0) <= 6, "a hundred a second, each made in 20 ms"
    for _ in range(100):
        demand.note(2000.0)
    assert demand.target(2000.0) == 32, "never more, whatever comes"


def test_a_fixed_number_of_spares_is_kept() -> None:
    demand = session_demand.Demand(fixed=3)
    assert demand.target(0.0) == 3
    demand.fixed = 0
    demand.note(1.0)
    assert demand.target(1.0) == 0


def test_starts_that_take_longer_want_more_spares() -> None:
    quick, slow = session_demand.Demand(start_s=0.01), session_demand.Demand(start_s=0.01)
    for _ in range(50):
        slow.note_start(0.5)
    for demand in (quick, slow):
        for number in range(100):
            demand.note(number * 0.1)
    assert slow.target(10.0) > quick.target(10.0)


def test_spares_are_made_when_the_session_that_came_is_served_or_others_follow() -> None:
    demand = session_demand.Demand(fixed=8)
    assert demand.calm_s(0.0, ready=0, wanted=8) == 0, "nobody came"
    demand.note(10.0)
    assert demand.calm_s(10.01, ready=0, wanted=1) == pytest.approx(0.04), "the one that came has the machine first"
    assert demand.calm_s(10.1, ready=7, wanted=8) == 0
    demand.note(10.2)
    assert demand.calm_s(10.2, ready=6, wanted=8) > 0, "enough are left"
    assert demand.calm_s(10.2, ready=3, wanted=8) == 0, "they follow each other"


@pytest.mark.parametrize(
    ("held", "options", "is_root", "says"),
    [
        ({"namespaces", "user"}, {}, True, None),
        ({"namespaces"}, {"untrusted": False}, False, None),
        ({"namespaces"}, {}, True, "user namespaces"),
        (set(), {}, False, "no namespaces"),
        ({"namespaces", "user"}, {"untrusted": True}, True, "untrusted"),
        ({"namespaces", "user"}, {"runtime_class": "gvisor"}, True, "gvisor"),
    ],
)
def test_why_sessions_are_not_forked(held: set[str], options: dict[str, object], is_root: bool, says: str | None) -> None:
    reason = session_plans.reason_against_forking(options, sandbox.Layers(held=frozenset(held)), is_root=is_root)
    assert (reason is None) if says is None else (reason is not None and says in reason)


def test_a_policy_is_read_from_what_the_config_says() -> None:
    usual = session_plans.Policy()
    assert session_plans.parse_policy({}) == usual
    assert session_plans.parse_policy({"session": "nonsense"}) == usual
    read = session_plans.parse_policy(
        {"session": {"freeze_after_s": 1, "persist": False, "warm": 0, "most": True, "stop_after_s": "x"}}
    )
    assert (read.freeze_after_s, read.persist, read.warm) == (1.0, False, 0)
    assert (read.most, read.stop_after_s) == (usual.most, usual.stop_after_s)
