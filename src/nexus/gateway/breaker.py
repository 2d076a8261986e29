"""Circuit breakers: what fails again and again is left alone for a while, then tried with one run at a time. Pure.

An instance's circuit takes it out of the choice; an agent's circuit refuses at once what would fail anyway. Both count failures
in a row (a 5xx answer, a lost connection, a time-out); one success closes them.
"""

from nexus.core import errors

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0


class Circuit:
    """`open_until` is monotonic seconds; `probing` says that the one trial run after a pause is under way."""

    __slots__ = ("failures", "open_until", "opened", "probing")

    def __init__(self) -> None:
        self.failures = 0
        self.opened = 0
        self.open_until = 0.0
        self.probing = False

    def may_pass(self, threshold: int, now: float) -> bool:
        if self.failures < threshold:
            return True
        return now >= self.open_until and not self.probing

    def note_start(self, threshold: int) -> None:
        """A run begins. With the circuit open it is the trial."""
        if self.failures >= threshold:
            self.probing = True

    def note_end(self, threshold: int, *, failed: bool | None, now: float) -> None:
        """A run has ended; None: it says nothing about the agent (it was cancelled)."""
        self.probing = False
        if failed is None:
            return
        if not failed:
            self.failures = self.opened = 0
            self.open_until = 0.0
            return
        self.failures += 1
        if self.failures >= threshold:
            self.open_until = now + min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self.opened, 8))
            self.opened += 1


def refusal(agent: str, circuit: Circuit, now: float) -> errors.Unavailable:
    return errors.Unavailable(
        f"the last {circuit.failures} runs of {agent} failed; it is left alone for a moment",
        code="circuit.open",
        retry_after_s=max(1.0, circuit.open_until - now),
        next_step=f"see `nexus ai agent logs {agent}`; one run at a time is let through to try again",
    )
