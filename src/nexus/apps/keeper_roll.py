"""Replacing gateways and dispatchers one after another, so that no request fails and no run ends.

A gateway's successor asks the older one for its listening sockets (`nexus.gateway.handover`); a dispatcher is told of its
successor. Here that is started and waited for, and the older one is left to finish what it has.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nexus.apps import keeper_probe
from nexus.apps.keeper_children import Child, Process
from nexus.kit.home import Home

RELIEVED = signal.SIGHUP  # to a dispatcher: take nothing more
_SERVES_WITHIN_S = 20.0
_LOOK_S = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """What the keeper lends: one look at everything it keeps, watching a process, and a word to people."""

    step: Callable[[float], None]
    watch: Callable[[Process], None]
    say: Callable[[str], None]
    stopping: Callable[[], bool]


def find_door(home: Home, child: Child) -> Path | None:
    """Where a gateway or a dispatcher answers; None for what is not replaced while it runs."""
    kind, _, number = child.name.rpartition("-")
    door = {"gateway": home.door_socket, "dispatcher": home.dispatcher_socket}.get(kind)
    return None if door is None else door(int(number))


def replace(old: Process, door: keeper_probe.Address, keeping: Keeping) -> Process | None:
    """The process that serves in `old`'s place, which then ends by itself; None when none came to serve: `old` goes on."""
    successor = Process(child=old.child)
    old.relieved = True
    try:
        successor.start()
    except OSError as error:
        keeping.say(f"{old.child.name} could not be replaced: {error}")
        old.relieved = False
        return None
    keeping.watch(successor)
    deadline = time.monotonic() + _SERVES_WITHIN_S
    while not _answers_as(door, successor.pid):
        late = time.monotonic() > deadline
        if successor.pidfd is None or late or keeping.stopping():
            reason = "does not serve" if late else successor.last_exit or "was not waited for"
            keeping.say(f"{old.child.name} goes on as it is: its successor {reason}")
            successor.kill()
            old.relieved = False
            return None
        keeping.step(_LOOK_S)
    if old.child.name.startswith("dispatcher-"):
        old.send(RELIEVED)
    return successor


def _answers_as(door: keeper_probe.Address, pid: int) -> bool:
    answer = keeper_probe.ask(door, "/health")
    return answer is not None and answer[0] == 200 and isinstance(answer[1], dict) and answer[1].get("pid") == pid
