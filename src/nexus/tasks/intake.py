"""Takes submissions into the store, and hands those that may begin at once to the dispatcher of this process.

A task that is started is stored as claimed: one commit instead of two, and no way through the queue. It begins after that
commit, never before.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Protocol

from nexus.core.phases import RunPhase
from nexus.ports import task_store

Made = tuple[task_store.Task, bool]


class Runner(Protocol):
    """What `Dispatcher` offers to submissions."""

    owner: str

    def reserve(self, wanted: Sequence[task_store.Submission]) -> set[str]: ...

    def start(self, reserved: Collection[str], claims: Sequence[task_store.Claim] | None) -> None: ...

    def expect(self, delay_s: float) -> None: ...


class Intake:
    """`submitted` is called when tasks were stored that stand in the queue. Without a runner every task does."""

    def __init__(self, *, store: task_store.TaskStore, submitted: Callable[[], None], runner: Runner | None = None) -> None:
        self._store = store
        self._submitted = submitted
        self._runner = runner

    async def store(self, wanted: Sequence[task_store.Submission]) -> Sequence[Made]:
        """See `TaskStore.submit`; the tasks are as they were accepted, those that begin at once too."""
        if self._runner is None:
            made = await self._store.submit(wanted)
            self._tell(made)
            return made
        reserved = self._runner.reserve(wanted)
        claims: list[task_store.Claim] | None = None
        try:
            made = await self._store.submit(wanted, owner=self._runner.owner, start=reserved)
            claims = [_claim(entry) for entry, (task, fresh) in zip(wanted, made, strict=True) if fresh and _runs(task)]
        finally:
            self._runner.start(reserved, claims)
        self._tell(made)
        return [(_accepted(task) if fresh and _runs(task) else task, fresh) for task, fresh in made]

    def _tell(self, made: Sequence[Made]) -> None:
        waits = False
        for task, fresh in made:
            if fresh and task.run_at is not None and self._runner is not None:
                self._runner.expect(task.run_at - task.created_at)
            elif fresh and not _runs(task):
                waits = True
        if waits:
            self._submitted()


def _runs(task: task_store.Task) -> bool:
    return task.phase is RunPhase.RUNNING


def _accepted(task: task_store.Task) -> task_store.Task:
    return replace(task, phase=RunPhase.PENDING, attempt=0)


def _claim(entry: task_store.Submission) -> task_store.Claim:
    """The claim on a task that was stored as claimed: the first there is on it."""
    return task_store.Claim(
        id=entry.id,
        lane=entry.lane,
        principal=entry.principal,
        body=entry.body,
        fence=1,
        attempt=1,
        strikes=0,
        deferrals=0,
        max_attempts=entry.max_attempts,
        last_seq=0,
        session_id=entry.session_id,
        traceparent=entry.traceparent,
        retry=entry.retry,
        run_timeout_s=entry.run_timeout_s,
        remaining_s=entry.total_timeout_s,
    )
