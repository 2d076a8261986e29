"""Who uses much of the processor: twice in a row, until much less."""

import pytest

from nexus.drivers.process import appetite


@pytest.mark.parametrize(
    ("used", "told"),
    [
        ([0.0, 0.1, 0.2, 0.3], [False, False, True, True]),
        ([0.0, 0.1, 0.1, 0.2], [False, False, False, False]),  # a run that took one look's time
        ([5.0, 5.01, 5.02, 5.03], [False, False, False, False]),  # what was before the first look is long past
    ],
)
def test_it_is_judged_by_two_looks(used: list[float], told: list[bool]) -> None:
    one = appetite.Appetite()
    assert [one.judge(seconds, 100 + 0.1 * number, 0.4) for number, seconds in enumerate(used)] == told


def test_it_gives_way_until_it_used_little_for_a_second() -> None:
    """Half a processor comes in turns of 50 ms: looks between two turns change nothing."""
    one, told = appetite.Appetite(), []
    used = 0.0
    for number in range(200):
        used += 0.05 if number % 4 < 2 and number < 100 else 0.0
        told.append(one.judge(used, 100 + 0.05 * number, 0.4))
    assert told.index(True) < 8
    assert all(told[8:100])
    assert not any(told[145:])


def test_a_second_look_at_the_same_moment_says_nothing_new() -> None:
    one = appetite.Appetite()
    for _ in range(3):
        assert not one.judge(1.0, 100.0, 0.4)


@pytest.mark.parametrize(("limit", "much"), [(None, 0.4), (4000, 0.4), (500, 0.4), (100, 0.08)])
def test_how_much_is_much_depends_on_how_much_one_may_have(limit: int | None, much: float) -> None:
    assert appetite.much_of(limit) == pytest.approx(much)
