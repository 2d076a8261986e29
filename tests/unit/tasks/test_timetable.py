"""When schedules fire: over summer time, after an outage, and when the clock is wrong."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from nexus.core import errors
from nexus.tasks import timetable

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: ZoneInfo = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


def test_a_daily_time_keeps_its_hour_over_summer_time():
    begin = at("2026-03-27 12:00")
    found = timetable.preview("30 7 * * *", "Europe/Berlin", timetable.next_after("30 7 * * *", "Europe/Berlin", begin), 3)
    assert found == [at("2026-03-28 07:30"), at("2026-03-29 07:30"), at("2026-03-30 07:30")]
    assert found[1] - found[0] == 23 * 3600


def test_a_time_that_summer_time_skips_still_fires_once_and_one_that_comes_twice_fires_once():
    skipped = timetable.times_after("30 2 * * *", "Europe/Berlin", at("2026-03-28 12:00"))
    assert [next(skipped), next(skipped)] == [at("2026-03-29 03:00"), at("2026-03-30 02:30")]
    twice = timetable.times_after("30 2 * * *", "Europe/Berlin", at("2026-10-24 12:00"))
    assert next(twice) == at("2026-10-25 02:30")
    assert next(twice) == at("2026-10-26 02:30")


@pytest.mark.parametrize(
    ("catch_up", "late_s", "fired", "missed"),
    [
        ("last", 5, [0], 0), ("skip", 5, [0], 0), ("all", 5, [0], 0),
        ("last", 3 * 3600 + 600, [3], 3), ("skip", 3 * 3600 + 600, [], 4), ("all", 3 * 3600 + 600, [0, 1, 2, 3], 0),
        ("skip", 3 * 3600 + 30, [3], 3),
    ],
)  # fmt: skip
def test_what_was_missed_is_made_up_for_as_the_policy_says(catch_up, late_s, fired, missed):
    first = at("2026-06-01 10:00")
    due = timetable.plan_due(cron="0 * * * *", zone="Europe/Berlin", catch_up=catch_up, next_at=first, now=first + late_s)
    assert due.times == tuple(first + 3600 * hour for hour in fired)
    assert due.missed == missed
    assert due.next_at is not None
    assert due.next_at > first + late_s


def test_making_up_for_all_is_bounded_and_goes_on_at_the_next_look():
    first = at("2026-06-01 10:00")
    now = first + 60 * 2500
    due = timetable.plan_due(cron="* * * * *", zone="UTC", catch_up="all", next_at=first, now=now)
    assert len(due.times) == timetable.MOST_AT_ONCE
    assert due.next_at == first + 60 * timetable.MOST_AT_ONCE


def test_once_is_once():
    due = timetable.plan_due(cron=None, zone="UTC", catch_up="last", next_at=100.0, now=10_000.0)
    assert (due.times, due.next_at) == ((100.0,), None)


@pytest.mark.parametrize("cron", ["", "* * * *", "61 * * * *", "@daily", "* * * * * * *", "0 0 31-30 * *", "0 0 30 2 *"])
def test_what_is_no_cron_expression_is_told(cron):
    with pytest.raises(errors.Invalid) as told:
        timetable.next_after(cron, "UTC", 0.0)
    assert told.value.code == "schedule.invalid_cron"


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "Europe/\0"])
def test_an_unknown_zone_is_told(zone):
    with pytest.raises(errors.Invalid) as told:
        timetable.check_zone(zone)
    assert told.value.code == "schedule.unknown_timezone"
