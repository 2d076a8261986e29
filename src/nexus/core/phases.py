"""Every phase a thing can be in, and the only table of legal moves between them."""

from enum import StrEnum


class InstancePhase(StrEnum):
    PENDING = "pending"
    BUILDING = "building"
    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class RevisionPhase(StrEnum):
    """A revision is one desired state of a deployment; exactly one is active while others are history."""

    PENDING = "pending"
    ROLLING = "rolling"
    ACTIVE = "active"
    SUPERSEDED = "superseded"
    FAILED = "failed"


class RunPhase(StrEnum):
    """Also the public task states (DESIGN: pending, running, waiting, completed, failed, cancelled)."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


_I, _R, _T = InstancePhase, RevisionPhase, RunPhase

INSTANCE_MOVES: dict[InstancePhase, frozenset[InstancePhase]] = {
    _I.PENDING: frozenset({_I.BUILDING, _I.STARTING, _I.STOPPING, _I.FAILED}),
    _I.BUILDING: frozenset({_I.STARTING, _I.STOPPING, _I.FAILED, _I.PENDING}),
    _I.STARTING: frozenset({_I.READY, _I.STOPPING, _I.FAILED, _I.PENDING}),
    _I.READY: frozenset({_I.UNHEALTHY, _I.STARTING, _I.STOPPING, _I.FAILED, _I.PENDING}),
    _I.UNHEALTHY: frozenset({_I.READY, _I.STARTING, _I.STOPPING, _I.FAILED, _I.PENDING}),
    _I.STOPPING: frozenset({_I.STOPPED}),
    _I.STOPPED: frozenset({_I.STARTING}),
    _I.FAILED: frozenset({_I.BUILDING, _I.STARTING, _I.STOPPING}),
}  # back to PENDING: it ended while its supervisor was down, and waits for its secrets from control
REVISION_MOVES: dict[RevisionPhase, frozenset[RevisionPhase]] = {
    _R.PENDING: frozenset({_R.ROLLING, _R.SUPERSEDED, _R.FAILED}),
    _R.ROLLING: frozenset({_R.ACTIVE, _R.SUPERSEDED, _R.FAILED}),
    _R.ACTIVE: frozenset({_R.SUPERSEDED}),
    _R.SUPERSEDED: frozenset(),
    _R.FAILED: frozenset(),
}
RUN_MOVES: dict[RunPhase, frozenset[RunPhase]] = {
    _T.PENDING: frozenset({_T.RUNNING, _T.WAITING, _T.CANCELLED, _T.FAILED}),
    _T.RUNNING: frozenset({_T.PENDING, _T.WAITING, _T.COMPLETED, _T.FAILED, _T.CANCELLED}),
    _T.WAITING: frozenset({_T.PENDING, _T.FAILED, _T.CANCELLED}),
    _T.COMPLETED: frozenset(),
    _T.FAILED: frozenset(),
    _T.CANCELLED: frozenset(),
}


def is_terminal(phase: RunPhase) -> bool:
    return not RUN_MOVES[phase]
