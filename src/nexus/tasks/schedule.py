"""When a webhook is tried again, and when it is given up. Pure."""

import email.utils
import random
from collections.abc import Callable, Sequence
from datetime import UTC

GONE = 410
LONGEST_RETRY_AFTER_S = 86400.0


def plan_retry(
    attempt: int,
    *,
    schedule_s: Sequence[float],
    status: int | None,
    retry_after_s: float | None,
    draw: Callable[[], float] = random.random,
) -> float | None:
    """Seconds until the next attempt after failed attempt number `attempt` (from 1); None: dead.

    A receiver that says 410 wants no more. `Retry-After` is obeyed where it is longer than the schedule.
    Up to a fifth is added at random, so that receivers that came back are not hit by everybody at once.
    """
    if status == GONE or attempt > len(schedule_s):
        return None
    pause = schedule_s[attempt - 1] * (1.0 + 0.2 * draw())
    return max(pause, retry_after_s or 0.0)


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Seconds from `now` (since the epoch) of a `Retry-After`, a day at most; None for what is neither seconds nor a date."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), LONGEST_RETRY_AFTER_S)
    try:
        at = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    moment = at.replace(tzinfo=at.tzinfo or UTC).timestamp()
    return min(max(0.0, moment - now), LONGEST_RETRY_AFTER_S)


def is_delivered(status: int) -> bool:
    return 200 <= status < 300


def describe(status: int) -> str:
    """Why an answer counts as a failure."""
    if 300 <= status < 400:
        return f"the receiver answered {status}; redirects are not followed"
    return f"the receiver answered {status}"
