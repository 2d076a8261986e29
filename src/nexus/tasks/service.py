"""Verbs on tasks for the API: submit, look, list, cancel, follow. Acknowledged means committed; a caller sees its tenant only."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from nexus.core import errors, ids, principals
from nexus.core.phases import RunPhase, is_terminal
from nexus.kit import egress, guard
from nexus.ports import task_store
from nexus.tasks import grouping, submission, tail, verdict, views
from nexus.tasks.settings import TaskSettings
from nexus.wire import params
from nexus.wire import views as wire_views

# (caller, agent, environment asked for or None) → the environment; raises NotFound like for anything that is not there.
ResolveTarget = Callable[[principals.Principal, str, str | None], Awaitable[str]]


class TaskService:
    """An async context manager: inside it submissions are committed in groups. `submitted` is called after each commit."""

    def __init__(
        self,
        *,
        store: task_store.TaskStore,
        resolve_target: ResolveTarget,
        wakeups: tail.Wakeups,
        allowance: egress.Allowance,
        submitted: Callable[[], None] = lambda: None,
        settings: TaskSettings | None = None,
    ) -> None:
        self._store = store
        self._resolve_target = resolve_target
        self._wakeups = wakeups
        self._allowance = allowance
        self._submitted = submitted
        self._settings = settings or TaskSettings()
        self._depths = submission.Depths(store)
        self._inbox: grouping.Grouped[task_store.Submission, tuple[task_store.Task, bool]] = grouping.Grouped(
            store.submit, patient=False
        )
        self._life = AsyncExitStack()

    async def __aenter__(self) -> Self:
        loops = await self._life.enter_async_context(guard.Loops())
        loops.start("task-inbox", self._inbox.run)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._life.aclose()

    async def submit(
        self,
        caller: principals.Principal,
        agent: str,
        request: params.SubmitParams,
        *,
        environment: str | None = None,
        idempotency_key: str | None = None,
        traceparent: str | None = None,
    ) -> wire_views.TaskView:
        """The task, committed. The same idempotency key gives the same task, or `Conflict` when something else is asked."""
        caller.require(principals.Action.RUN, agent=agent)
        where = await self._resolve_target(caller, agent, environment)
        lane = task_store.Lane(tenant=caller.tenant, agent=agent, environment=where)
        wanted = submission.plan_submission(
            lane,
            request,
            principal=caller.id,
            idempotency_key=idempotency_key,
            traceparent=traceparent,
            max_attempts=self._settings.max_attempts,
        )
        if request.webhook is not None:
            await submission.check_webhook(request.webhook, self._allowance)
        await submission.settle_depth(self._depths, caller.tenant, most=self._settings.max_pending)
        task, created = await self._inbox.put(wanted)
        if created:
            self._depths.add(lane)
            self._submitted()
        elif task.digest != wanted.digest:
            raise errors.Conflict(
                "this Idempotency-Key was used for another request",
                code="idempotency.key_reused",
                cause=f"it made task {task.id}",
                next_step="use a new key for a new task",
            )
        return views.render_task(task)

    async def show(self, caller: principals.Principal, task_id: str) -> wire_views.TaskView:
        return views.render_task(await self._find(caller, task_id))

    async def list(
        self,
        caller: principals.Principal,
        *,
        agent: str | None = None,
        environment: str | None = None,
        status: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> wire_views.Page:
        """Newest first. `status` is a task state; `cursor` is the last page's `next`."""
        caller.require(principals.Action.READ, agent=agent)
        agents = caller.agents if agent is None else frozenset({agent})
        if caller.environment is not None:
            environment = environment or caller.environment
            if environment != caller.environment:
                return wire_views.Page(items=[])
        tasks = await self._store.page(
            caller.tenant,
            agents=agents,
            environment=environment,
            phase=_phase(status),
            before=_cursor(cursor),
            limit=limit + 1,
        )
        items: list[Any] = [views.render_task(task) for task in tasks[:limit]]
        return wire_views.Page(items=items, next=str(tasks[limit - 1].number) if len(tasks) > limit else None)

    async def cancel(self, caller: principals.Principal, task_id: str) -> wire_views.TaskView:
        """Cancelled at once if it waits; asked to end if it runs. Again is harmless; `Conflict` once it has another end."""
        found = await self._find(caller, task_id)
        caller.require(principals.Action.RUN, agent=found.lane.agent)
        task = await self._store.request_cancel(caller.tenant, task_id, event_data=verdict.cancelled().data)
        if task is None:
            raise _missing(task_id)
        if is_terminal(task.phase) and task.phase is not RunPhase.CANCELLED:
            raise errors.Conflict(
                f"task {task_id} has {task.phase} already",
                code="task.finished",
                next_step=f"nexus ai agent task status {task_id}",
            )
        return views.render_task(task)

    async def follow(
        self, caller: principals.Principal, task_id: str, *, after: int = 0
    ) -> AsyncIterator[task_store.TaskEvent | None]:
        """The task's events behind number `after` (None while nothing happens), until its end. Checks before the first one."""
        task = await self._find(caller, task_id)
        if not 0 <= after <= task.last_seq:
            raise errors.Invalid(
                f"task {task_id} has no event {after} yet",
                code="events.unknown_position",
                cause=f"its last event is number {task.last_seq}",
                next_step="resume with the id of the last event received, or without Last-Event-ID from the beginning",
            )
        if is_terminal(task.phase) and after == task.last_seq:
            return _no_events()
        return tail.tail(self._store, self._wakeups, task_id, after=after)

    async def queue_depth(self, tenant: str, agent: str, environment: str) -> int:
        """Tasks that wait, at most a second old."""
        lane = task_store.Lane(tenant=tenant, agent=agent, environment=environment)
        return (await self._depths.lanes()).get(lane, 0)

    async def queue_depths(self) -> dict[task_store.Lane, int]:
        """Of every lane, at most a second old."""
        return dict(await self._depths.lanes())

    async def _find(self, caller: principals.Principal, task_id: str) -> task_store.Task:
        caller.require(principals.Action.READ)
        task = await self._store.fetch(caller.tenant, task_id) if ids.is_id(task_id, ids.TASK) else None
        if task is None or not _visible(caller, task):
            raise _missing(task_id)
        return task


def _visible(caller: principals.Principal, task: task_store.Task) -> bool:
    return (caller.agents is None or task.lane.agent in caller.agents) and caller.environment in (None, task.lane.environment)


def _missing(task_id: str) -> errors.NotFound:
    return errors.NotFound(
        f"there is no task {task_id[:64]!r}", code="task.not_found", next_step="list what there is: nexus ai agent task list"
    )


def _phase(status: str | None) -> RunPhase | None:
    try:
        return None if status is None else RunPhase(status)
    except ValueError:
        known = ", ".join(RunPhase)
        raise errors.Invalid(f"unknown status {status!r}", code="task.unknown_status", cause=f"the states are {known}") from None


def _cursor(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise errors.Invalid("this cursor is not one of ours", code="request.invalid", next_step="pass `next` of the last page")
    return int(cursor)


async def _no_events() -> AsyncIterator[task_store.TaskEvent | None]:
    return
    yield
