"""Growing pauses with full jitter. Source: AWS Architecture Blog, "Exponential Backoff And Jitter" (2015)."""

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Pause before try number n (from 0): random up to `first_s * factor**n`, at most `longest_s`, at least `least_s`."""

    first_s: float
    longest_s: float
    factor: float = 2.0
    least_s: float = 0.0

    def pause_s(self, attempt: int, draw: Callable[[], float] = random.random) -> float:
        ceiling = min(self.longest_s, self.first_s * self.factor ** min(attempt, 64))
        return max(self.least_s, ceiling * draw())
