"""Time as something that is handed in: wall time for records, monotonic time for durations."""

import time
from typing import Protocol


class Clock(Protocol):
    def time(self) -> float:
        """Seconds since the epoch. May jump; only for what people read and for schedules."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back; for every deadline, lease and duration."""
        ...


class SystemClock:
    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()
