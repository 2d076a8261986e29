"""What becomes of a message that comes while another one of its session runs: `hosting.session.on_message`.

`queue`: it waits for its turn, in the order of arrival. `reject`: 409 at once. `interrupt`: the one that runs is cancelled, the
new one goes on from the state before it. `parallel`: both run, and share `self.state` in memory.
"""

from collections.abc import Iterable

from nexus.core import errors
from nexus.worker import runs

RULES = ("queue", "reject", "interrupt", "parallel")


def admit(rule: str, session_id: str, active: Iterable[runs.Run]) -> None:
    """Called before a run begins. Raises `Conflict` (`session.busy`) by the rule `reject`; may stop the others."""
    if rule not in ("reject", "interrupt"):
        return
    others = [run for run in active if run.session_id == session_id and not run.done.done()]
    if not others:
        return
    if rule == "reject":
        raise errors.Conflict(
            f"session {session_id} is busy with run {others[0].run_id}",
            code="session.busy",
            phase="run",
            next_step="wait for that run, or set hosting.session.on_message to queue, interrupt or parallel",
        )
    for run in others:
        run.stop("interrupted")
