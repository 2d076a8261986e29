"""Which sessions are idle, judged from outside: whether anything is connected to them, and whether they use the processor.

What a worker says of itself is not asked. Source of the columns: net/unix/af_unix.c of Linux, `unix_seq_show`.
"""

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from nexus.core.sessions import SessionPhase
from nexus.drivers.process import session_plans

_SOCKETS = Path("/proc/net/unix")
_LISTENING = "00010000"
IDLE_CPU = 0.01
Move = Literal["keep", "freeze", "stop", "end"]


def count_connections(folder: Path, *, table: str | None = None) -> Mapping[str, int]:
    """How many connections each socket of this folder has, those included that wait to be accepted."""
    table = _SOCKETS.read_text() if table is None else table
    found: collections.Counter[str] = collections.Counter()
    beginning = f" {folder}/"
    for line in table.splitlines():
        at = line.find(beginning)
        if at >= 0 and line.split(None, 4)[3] != _LISTENING:
            found[line[at + 1 :]] += 1
    return found


def decide(phase: SessionPhase, policy: session_plans.Policy, *, idle_s: float, expired: bool, connected: bool) -> Move:
    """What becomes of a session that has done nothing for `idle_s`. One whose time is over ends when nobody is connected, and in
    any case at twice its time."""
    if expired and not connected:
        return "end"
    if connected or phase not in (SessionPhase.LIVE, SessionPhase.FROZEN):
        return "keep"
    if idle_s >= policy.stop_after_s:
        return "stop"
    if phase is SessionPhase.LIVE and idle_s >= policy.freeze_after_s:
        return "freeze"
    return "keep"
