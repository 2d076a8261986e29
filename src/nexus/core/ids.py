"""Ids: a prefix that says what it is, then 26 Crockford base-32 letters that sort by creation time (ULID).

Source: https://github.com/ulid/spec (48 bits of milliseconds, 80 random bits). Clock and randomness are handed in.
"""

import os
import re
import time
from collections.abc import Callable

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID = re.compile(r"[a-z]{2,6}_[0-9a-hjkmnp-tv-z]{26}")

AGENT, VERSION, DEPLOYMENT, INSTANCE = "agt", "ver", "dep", "ins"
SESSION, RUN, TASK, EVENT, KEY, TENANT, WEBHOOK, REVISION, ASK, TRIGGER = (
    "ses",
    "run",
    "task",
    "evt",
    "key",
    "ten",
    "whd",
    "rev",
    "ask",
    "trg",
)


def new_id(
    prefix: str,
    *,
    now: Callable[[], float] = time.time,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> str:
    """A fresh id such as `ver_01kaf3…`; ids made later sort later (to the millisecond)."""
    number = (int(now() * 1000) << 80) | int.from_bytes(random_bytes(10), "big")
    letters = "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))
    return f"{prefix}_{letters}"


def is_id(value: str, prefix: str) -> bool:
    return value.startswith(prefix + "_") and _ID.fullmatch(value) is not None
