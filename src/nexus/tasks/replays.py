"""Replays: a finished task is run again, its recording answers, and what differs is told. Nothing it asks leaves the host."""

from collections.abc import Callable

from nexus.core import errors, ids, principals
from nexus.core.phases import is_terminal
from nexus.ports import replay_store, step_store, task_store
from nexus.tasks import comparison, service, views
from nexus.wire import views as wire_views


class Replays:
    """`submitted` is called after a replay was queued."""

    def __init__(
        self,
        *,
        store: replay_store.ReplayStore,
        tasks: task_store.TaskStore,
        steps: step_store.StepStore,
        resolve_target: service.ResolveTarget,
        submitted: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._tasks = tasks
        self._steps = steps
        self._resolve_target = resolve_target
        self._submitted = submitted

    async def start(self, caller: principals.Principal, task_id: str, *, environment: str | None = None) -> wire_views.TaskView:
        """A new task with the same input and an empty session, where `environment` says (default: as the original)."""
        original = await self._find(caller, task_id)
        caller.require(principals.Action.RUN, agent=original.lane.agent)
        if not is_terminal(original.phase):
            raise errors.Conflict(
                f"task {task_id} is {original.phase}", code="task.not_finished", next_step="wait for its end, or cancel it"
            )
        if original.replay_of is not None:
            raise errors.Conflict(
                f"task {task_id} is a replay itself",
                code="replay.of_replay",
                next_step=f"replay the original: nexus ai agent task replay {original.replay_of}",
            )
        where = await self._resolve_target(caller, original.lane.agent, environment or original.lane.environment)
        plan = replay_store.Plan(
            id=ids.new_id(ids.TASK),
            original=task_id,
            environment=where,
            session_id=ids.new_id(ids.SESSION),
            principal=caller.id,
        )
        made = await self._store.start(caller.tenant, plan)
        if made is None:
            raise service.missing(task_id)
        self._submitted()
        return views.render_task(made)

    async def report(self, caller: principals.Principal, replay_id: str) -> wire_views.ReplayView:
        """How a finished replay compares with its original; `Conflict` (`task.not_finished`) before its end."""
        replay = await self._find(caller, replay_id)
        if replay.replay_of is None:
            raise errors.Conflict(
                f"task {replay_id} is no replay",
                code="replay.none",
                next_step=f"make one: nexus ai agent task replay {replay_id}",
            )
        if not is_terminal(replay.phase):
            raise errors.Conflict(f"the replay is {replay.phase}", code="task.not_finished", next_step="wait for its end")
        original = await self._find(caller, replay.replay_of)
        recorded = await self._steps.recorded(original.id)
        asked = await self._steps.recorded(replay.id)
        difference = comparison.compare(original, replay, recorded, asked)
        return wire_views.ReplayView(
            task_id=original.id,
            replay_id=replay.id,
            same=difference is None,
            recorded_calls=sum(call.status == "done" for call in recorded),
            replayed_calls=sum(call.status == "done" for call in asked),
            recorded_version=await self._store.version_of(original.id),
            replayed_version=await self._store.version_of(replay.id),
            status=str(replay.phase),
            difference=difference,
        )

    async def version(self, caller: principals.Principal, task_id: str) -> str | None:
        """The version that ran a task last; None when it never began."""
        return await self._store.version_of((await self._find(caller, task_id)).id)

    async def _find(self, caller: principals.Principal, task_id: str) -> task_store.Task:
        return await service.find(self._tasks, caller, task_id)
