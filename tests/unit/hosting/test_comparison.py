"""The tests of two samples, against values worked out by hand or printed in books."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.core.rollouts import Analysis
from nexus.hosting import comparison
from nexus.ports.run_samples import Sample


def test_fisher_on_the_lady_tasting_tea() -> None:
    """Fisher's own table: 3 of 4 right on each side. P(X >= 3) = 17/70; two-sided 34/70."""
    assert comparison.fisher_greater(3, 4, 1, 4) == pytest.approx(17 / 70)
    assert comparison.fisher_two_sided(3, 4, 1, 4) == pytest.approx(34 / 70)


def test_fisher_on_five_failures_of_five() -> None:
    """All of 5 against none of 45: one table in C(50, 5)."""
    assert comparison.fisher_greater(5, 5, 0, 45) == pytest.approx(1 / math.comb(50, 5))
    assert comparison.fisher_greater(0, 0, 0, 45) == 1.0
    assert comparison.fisher_greater(0, 5, 0, 45) == pytest.approx(1.0)


def test_the_binomial_tail() -> None:
    """P(X >= 2 | 3, 1/2) = 4/8; P(X >= 1 | 4, 0.05) = 1 - 0.95^4."""
    assert comparison.binomial_greater(2, 3, 0.5) == pytest.approx(0.5)
    assert comparison.binomial_greater(1, 4, 0.05) == pytest.approx(1 - 0.95**4)


def test_newcombe_on_his_first_example() -> None:
    """Newcombe 1998, table II, method 10: 56/70 - 48/80 has the interval 0.0524 to 0.3339."""
    found = comparison.compare_rates(48, 80, 56, 70)
    assert found.difference == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_wilson_of_nothing_and_of_everything() -> None:
    assert comparison.wilson(0, 0) == (0.0, 1.0)
    low, high = comparison.wilson(0, 10)
    assert (low, high) == (pytest.approx(0.0, abs=1e-12), pytest.approx(1.959964**2 / (10 + 1.959964**2), abs=1e-6))


def test_mann_whitney_counts_the_pairs() -> None:
    """U is the number of pairs in which the second is larger, ties by half."""
    first, second = [1.0, 4.0, 6.0], [2.0, 3.0, 6.0, 9.0]
    pairs = sum(1.0 if b > a else 0.5 if a == b else 0.0 for a in first for b in second)
    assert comparison.mann_whitney(first, second)[0] == pairs == 7.5


def test_mann_whitney_by_hand() -> None:
    """Ten against ten without ties, all of the second larger: U = 100, sd = sqrt(175), z = 49.5/13.229."""
    _, z = comparison.mann_whitney(list(range(10)), list(range(10, 20)))
    assert z == pytest.approx(49.5 / math.sqrt(100 * 21 / 12))
    assert comparison.mann_whitney_greater(list(range(10)), list(range(10, 20))) == pytest.approx(9.13e-5, rel=1e-2)


def test_mann_whitney_corrects_for_ties() -> None:
    """1 1 2 2 against 1 2 2 3 (ties of 3 and 4): var = 16/12 * (9 - (24 + 60)/56) = 10, U = 11."""
    u, z = comparison.mann_whitney([1, 1, 2, 2], [1, 2, 2, 3])
    assert u == 11
    assert z == pytest.approx(2.5 / math.sqrt(10))
    assert comparison.mann_whitney([5.0] * 9, [5.0] * 9) == (40.5, 0.0)


def test_the_shift_is_found_with_its_interval() -> None:
    first = [0.100 + 0.001 * at for at in range(50)]
    second = [value + 0.030 for value in first]
    found = comparison.compare_durations(first, second)
    assert found is not None
    assert found.shift == pytest.approx(0.030)
    assert found.low < 0.030 < found.high
    assert found.high - found.low < 0.02
    assert found.p < 1e-6
    assert comparison.compare_durations([], second) is None


def test_a_look_spends_a_part_of_one_alpha() -> None:
    assert sum(comparison.alpha_of_look(0.01, look) for look in range(1, 100_000)) == pytest.approx(0.01, rel=1e-4)
    assert comparison.deserves_look(1, 0)
    assert not comparison.deserves_look(110, 100)
    assert comparison.deserves_look(125, 100)


RULES = Analysis()
QUICK = tuple(0.100 + 0.0001 * at for at in range(200))


def sample(runs: int, errors: int, durations: tuple[float, ...] = ()) -> Sample:
    return Sample(runs=runs, errors=errors, durations=durations)


@pytest.mark.parametrize(
    ("stable", "fresh", "code"),
    [
        (sample(200, 0, QUICK), sample(20, 20), "rollout.more_errors"),
        (sample(200, 0, QUICK), sample(4, 4), "rollout.more_errors"),
        (sample(0, 0), sample(6, 6), "rollout.more_errors"),
        (sample(5, 5), sample(6, 6), "rollout.more_errors"),
        (sample(200, 0), sample(20, 2), None),
        (sample(200, 100), sample(100, 55), None),
        (sample(20_000, 20), sample(10_000, 80), None),
        (sample(200, 0, QUICK), sample(100, 0, tuple(value * 3 for value in QUICK[:100])), "rollout.slower"),
        (sample(200, 0, QUICK), sample(100, 0, tuple(value + 0.02 for value in QUICK[:100])), None),
        (sample(200, 0, QUICK), sample(4, 0, (9.0, 9.0, 9.0, 9.0)), None),
        (sample(200, 0, QUICK), sample(100, 0, QUICK[:100]), None),
        (sample(0, 0), sample(0, 0), None),
    ],
    ids=[
        "a burst of errors", "four of four", "errors without a baseline", "a baseline too small to count", "two errors are noise",
        "as bad as before", "significant but too small to act on", "three times as slow", "slower by less than matters",
        "slow on too few runs", "the same", "nothing at all",
    ],
)  # fmt: skip
def test_what_is_worse(stable: Sample, fresh: Sample, code: str | None) -> None:
    finding = comparison.find_worse(stable, fresh, RULES, look=1)
    assert (finding.code if finding else None) == code


@given(bad=st.integers(0, 30), good=st.integers(0, 30), bad_other=st.integers(0, 30), good_other=st.integers(0, 30))
def test_rates_in_general(bad: int, good: int, bad_other: int, good_other: int) -> None:
    total, total_other = bad + good, bad_other + good_other
    found = comparison.compare_rates(bad, total, bad_other, total_other)
    assert -1 <= found.low <= found.difference + 1e-12
    assert found.difference - 1e-12 <= found.high <= 1
    assert 0 <= found.p <= 1
    mirrored = comparison.compare_rates(bad_other, total_other, bad, total)
    assert found.p == pytest.approx(mirrored.p)
    assert found.low == pytest.approx(-mirrored.high)


def test_noise_does_not_decide() -> None:
    """Two hundred rollouts of a version that is no worse (5 % errors on both sides, same latency), looked at again and again:
    no more may be rolled back than alpha allows, with room for chance."""
    import random

    chance = random.Random(7)
    rolled_back = 0
    for _ in range(200):
        stable, fresh = _draw(chance, 1800), _draw(chance, 200)
        looks, looked_at = 0, 0
        for runs in range(1, 201):
            if not comparison.deserves_look(runs, looked_at):
                continue
            looks, looked_at = looks + 1, runs
            if comparison.find_worse(_first(stable, runs * 9), _first(fresh, runs), RULES, look=looks):
                rolled_back += 1
                break
    assert rolled_back <= 4


def _draw(chance: object, runs: int) -> list[tuple[bool, float]]:
    return [(chance.random() < 0.05, chance.lognormvariate(-2, 0.8)) for _ in range(runs)]  # type: ignore[attr-defined]


def _first(runs: list[tuple[bool, float]], count: int) -> Sample:
    taken = runs[:count]
    return Sample(
        runs=len(taken), errors=sum(bad for bad, _ in taken), durations=tuple(duration for bad, duration in taken if not bad)
    )
