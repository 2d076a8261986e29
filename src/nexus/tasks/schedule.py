"""When a webhook is tried again, and when it is given up. Pure."""

import random
from collections.abc import Callable, Sequence

GONE = 410
LONGEST_RETRY_AFTER_S = 86400.0


def plan_retry(
    attempt: int,
    *,
    schedule_s: Sequence[float],
    status: int | None,
    retry_after: str | None,
    draw: Callable[[], float] = random.random,
) -> float | None:
    """Seconds until the next attempt after failed attempt number `attempt` (from 1); None: dead.

    A receiver that says 410 wants no more. `Retry-After` (in seconds) is obeyed where it is longer than the schedule.
    Up to a fifth is added at random, so that receivers that came back are not hit by everybody at once.
    """
    if status == GONE or attempt > len(schedule_s):
        return None
    pause = schedule_s[attempt - 1] * (1.0 + 0.2 * draw())
    if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
        pause = max(pause, min(float(retry_after), LONGEST_RETRY_AFTER_S))
    return pause


def is_delivered(status: int) -> bool:
    return 200 <= status < 300


def describe(status: int) -> str:
    """Why an answer counts as a failure."""
    if 300 <= status < 400:
        return f"the receiver answered {status}; redirects are not followed"
    return f"the receiver answered {status}"
