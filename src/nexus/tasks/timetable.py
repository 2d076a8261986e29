"""When a schedule fires: cron expressions in time zones, and what becomes of times that nobody was there for. Pure.

Source: Debian's cron, as cronsim implements it: a time skipped by summer time fires right after, one that comes twice fires once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from nexus.core import errors
from nexus.ports.schedule_store import CatchUp

GRACE_S = 60.0
MOST_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Times to fire now, how many were passed over, and the next time (None: never again)."""

    times: tuple[float, ...]
    missed: int
    next_at: float | None


def check_zone(name: str) -> str:
    """The name, or `Invalid` (code `schedule.unknown_timezone`)."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise errors.Invalid(
            f"there is no time zone {name[:64]!r}",
            code="schedule.unknown_timezone",
            next_step="use a name of the IANA database, such as Europe/Berlin or UTC",
        ) from None
    return name


def times_after(cron: str, zone: str, moment: float) -> Iterator[float]:
    """The times behind `moment`, without end. `Invalid` (code `schedule.invalid_cron`) for what is no cron expression."""
    start = datetime.fromtimestamp(moment, UTC).astimezone(ZoneInfo(zone))
    try:
        found = CronSim(cron, start)
    except CronSimError as error:
        raise errors.Invalid(
            f"{cron[:64]!r} is not a cron expression",
            code="schedule.invalid_cron",
            cause=str(error),
            next_step='use five fields: minute hour day month weekday, such as "30 7 * * mon-fri"',
        ) from None
    return (each.timestamp() for each in found)


def next_after(cron: str, zone: str, moment: float) -> float | None:
    """None when it never fires, like on 30 February."""
    return next(times_after(cron, zone, moment), None)


def plan_due(*, cron: str | None, zone: str, catch_up: CatchUp, next_at: float, now: float) -> Due:
    """What a schedule that was to fire at `next_at` does at `now`.

    A time is missed when it is more than a minute old. `skip` passes over missed ones, `last` makes up for the newest only,
    `all` for each of them (up to 1000 at once; the rest at the next look).
    """
    times = [next_at]
    following: float | None = None
    if cron is not None:
        for time in times_after(cron, zone, next_at):
            if time > now or (catch_up == "all" and len(times) >= MOST_AT_ONCE):
                following = time
                break
            times.append(time)
    if catch_up == "all":
        return Due(times=tuple(times), missed=0, next_at=following)
    chosen = times[-1:] if catch_up == "last" or now - times[-1] <= GRACE_S else []
    return Due(times=tuple(chosen), missed=len(times) - len(chosen), next_at=following)


def preview(cron: str | None, zone: str, next_at: float | None, count: int) -> list[float]:
    """The next times, for people to look at."""
    if next_at is None:
        return []
    return [next_at] if cron is None else [next_at, *islice(times_after(cron, zone, next_at), count - 1)]
