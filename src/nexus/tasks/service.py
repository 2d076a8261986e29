"""Verbs on tasks for the API: submit, look, list, cancel, follow. Acknowledged means committed; a caller sees its tenant only."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from nexus.core import errors, ids, principals
from nexus.core.phases import RunPhase, is_terminal
from nexus.kit import egress, guard
from nexus.ports import task_store
from nexus.tasks import grouping, intake, sight, submission, tail, verdict, views
from nexus.tasks.settings import TaskPolicy, TaskSettings
from nexus.wire import params
from nexus.wire import views as wire_views

# (caller, agent, environment asked for or None) → the environment; raises NotFound like for anything that is not there.
ResolveTarget = Callable[[principals.Principal, str, str | None], Awaitable[str]]
# What the configuration of the version that is deployed there says about tasks.
PolicyOf = Callable[[task_store.Lane], Awaitable[TaskPolicy]]


async def no_policy(lane: task_store.Lane) -> TaskPolicy:
    return submission.NO_POLICY


_LOOK_AGAIN_S = 5.0
_MOST_LIMITS = 10_000


class TaskService:
    """An async context manager: inside it submissions are committed in groups. Tasks begin at once where
    `runner` has room; `submitted` is called when others were committed."""

    def __init__(
        self,
        *,
        store: task_store.TaskStore,
        resolve_target: ResolveTarget,
        wakeups: tail.Wakeups,
        allowance: egress.Allowance,
        submitted: Callable[[], None] = lambda: None,
        settings: TaskSettings | None = None,
        policy_of: PolicyOf = no_policy,
        runner: intake.Runner | None = None,
    ) -> None:
        self._store = store
        self._resolve_target = resolve_target
        self._wakeups = wakeups
        self._allowance = allowance
        self._submitted = submitted
        self._settings = settings or TaskSettings()
        self._policy_of = policy_of
        self._limits: dict[task_store.Lane, int | None] = {}
        self._depths = submission.Depths(store)
        self._intake = intake.Intake(store=store, submitted=submitted, runner=runner)
        self._inbox: grouping.Grouped[task_store.Submission, intake.Made] = grouping.Grouped(self._intake.store, patient=False)
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
        lane, policy = await self._target(caller, agent, environment)
        wanted = self._plan(caller, lane, policy, request, idempotency_key=idempotency_key, traceparent=traceparent)
        if request.webhook is not None:
            await submission.check_webhook(request.webhook, self._allowance)
        await submission.settle_depth(self._depths, lane, most=self._settings.max_pending, most_of_lane=policy.max_pending)
        return views.render_task(self._taken(wanted, *await self._inbox.put(wanted)))

    async def submit_batch(
        self,
        caller: principals.Principal,
        agent: str,
        batch: params.BatchParams,
        *,
        environment: str | None = None,
        idempotency_key: str | None = None,
        traceparent: str | None = None,
    ) -> list[wire_views.TaskView]:
        """All of them committed together, in order, or none. With a key for the batch, entry number n has the key `<key>/<n>`."""
        lane, policy = await self._target(caller, agent, environment)
        wanted = []
        for number, entry in enumerate(batch.tasks):
            key = entry.idempotency_key or (None if idempotency_key is None else f"{idempotency_key}/{number}")
            try:
                wanted.append(self._plan(caller, lane, policy, entry, idempotency_key=key, traceparent=traceparent))
            except errors.Invalid as error:
                error.message = f"task {number} of the batch: {error.message}"
                raise
        for url in {entry.webhook for entry in batch.tasks if entry.webhook is not None}:
            await submission.check_webhook(url, self._allowance)
        await submission.settle_depth(
            self._depths, lane, most=self._settings.max_pending, most_of_lane=policy.max_pending, count=len(wanted)
        )
        made = await self._intake.store(wanted)
        return [views.render_task(self._taken(entry, *found)) for entry, found in zip(wanted, made, strict=True)]

    async def _target(
        self, caller: principals.Principal, agent: str, environment: str | None
    ) -> tuple[task_store.Lane, TaskPolicy]:
        caller.require(principals.Action.RUN, agent=agent)
        where = await self._resolve_target(caller, agent, environment)
        lane = task_store.Lane(tenant=caller.tenant, agent=agent, environment=where)
        policy = await self._policy_of(lane)
        if lane not in self._limits or self._limits[lane] != policy.concurrency:
            await self._store.limit_lane(lane, policy.concurrency)
            if len(self._limits) >= _MOST_LIMITS:
                self._limits.clear()
            self._limits[lane] = policy.concurrency
        return lane, policy

    def _plan(
        self,
        caller: principals.Principal,
        lane: task_store.Lane,
        policy: TaskPolicy,
        request: params.SubmitParams,
        *,
        idempotency_key: str | None,
        traceparent: str | None,
    ) -> task_store.Submission:
        return submission.plan_submission(
            lane,
            request,
            principal=caller.id,
            idempotency_key=idempotency_key,
            traceparent=traceparent,
            max_attempts=self._settings.max_attempts,
            policy=policy,
        )

    def _taken(self, wanted: task_store.Submission, task: task_store.Task, created: bool) -> task_store.Task:
        if created:
            self._depths.add(wanted.lane, due=task.run_at is None)
        elif task.digest != wanted.digest:
            raise errors.Conflict(
                "this Idempotency-Key was used for another request",
                code="idempotency.key_reused",
                cause=f"it made task {task.id}",
                next_step="use a new key for a new task",
            )
        return task

    async def wait(self, caller: principals.Principal, task_id: str, *, seconds: float) -> wire_views.TaskView:
        """The task once it is over, or as it is after `seconds`."""
        task = await self._find(caller, task_id)
        woken = self._wakeups.subscribe(task_id)
        try:
            async with asyncio.timeout(seconds):
                while not is_terminal(task.phase):
                    woken.clear()
                    task = await self._find(caller, task_id)
                    if not is_terminal(task.phase):
                        await tail.nothing_within(woken, _LOOK_AGAIN_S)
        except TimeoutError:
            pass
        finally:
            self._wakeups.unsubscribe(task_id, woken)
        return views.render_task(task)

    async def pause(self, caller: principals.Principal, task_id: str) -> wire_views.TaskView:
        """Waiting until it is resumed; an attempt that runs is ended first and does not count as lost."""
        await self._changeable(caller, task_id)
        return self._render(task_id, await self._store.request_pause(caller.tenant, task_id))

    async def resume(self, caller: principals.Principal, task_id: str) -> wire_views.TaskView:
        await self._changeable(caller, task_id)
        view = self._render(task_id, await self._store.resume(caller.tenant, task_id))
        self._submitted()
        return view

    async def change(self, caller: principals.Principal, task_id: str, request: params.TaskChangeParams) -> wire_views.TaskView:
        await self._changeable(caller, task_id)
        return self._render(task_id, await self._store.set_priority(caller.tenant, task_id, request.priority))

    async def requeue(self, caller: principals.Principal, request: params.DeadLettersParams) -> wire_views.DeadLettersView:
        """New tasks with the input of dead ones. The old ones stay as they ended, and are no dead letters any more."""
        known = await self._letters(caller, request, principals.Action.RUN)
        made = await self._store.revive(caller.tenant, {task_id: ids.new_id(ids.TASK) for task_id in known})
        self._submitted()
        return wire_views.DeadLettersView(tasks=[views.render_task(task) for task in made])

    async def purge(self, caller: principals.Principal, request: params.DeadLettersParams) -> wire_views.DeadLettersView:
        """Delete dead letters. One whose webhook is still to be delivered stays until it is."""
        known = await self._letters(caller, request, principals.Action.DEPLOY)
        return wire_views.DeadLettersView(deleted=await self._store.purge(caller.tenant, known))

    async def _letters(
        self, caller: principals.Principal, request: params.DeadLettersParams, action: principals.Action
    ) -> list[str]:
        """Ids of the tasks meant, each checked to be the caller's to act on and to be finished."""
        if request.task_ids is not None:
            found = []
            for task_id in dict.fromkeys(request.task_ids):
                task = await self._find(caller, task_id)
                caller.require(action, agent=task.lane.agent)
                if not is_terminal(task.phase):
                    raise errors.Conflict(
                        f"task {task_id} is {task.phase}", code="task.not_finished", next_step="cancel it, or wait for its end"
                    )
                found.append(task_id)
            return found
        caller.require(action, agent=request.agent)
        page = await self.list(caller, agent=request.agent, environment=request.environment, dead=True, limit=request.limit)
        return [view.task_id for view in page.items]

    async def _changeable(self, caller: principals.Principal, task_id: str) -> None:
        found = await self._find(caller, task_id)
        caller.require(principals.Action.RUN, agent=found.lane.agent)
        if is_terminal(found.phase):
            raise _finished(found)

    def _render(self, task_id: str, task: task_store.Task | None) -> wire_views.TaskView:
        if task is None:
            raise missing(task_id)
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
        dead: bool = False,
    ) -> wire_views.Page:
        """Newest first. `status` is a task state; `cursor` is the last page's `next`; `dead`: only dead letters."""
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
            dead=dead,
        )
        items: list[Any] = [views.render_task(task) for task in tasks[:limit]]
        return wire_views.Page(items=items, next=str(tasks[limit - 1].number) if len(tasks) > limit else None)

    async def cancel(self, caller: principals.Principal, task_id: str) -> wire_views.TaskView:
        """Cancelled at once if it waits; asked to end if it runs. Again is harmless; `Conflict` once it has another end."""
        found = await self._find(caller, task_id)
        caller.require(principals.Action.RUN, agent=found.lane.agent)
        task = await self._store.request_cancel(caller.tenant, task_id, event_data=verdict.cancelled().data)
        if task is None:
            raise missing(task_id)
        if is_terminal(task.phase) and task.phase is not RunPhase.CANCELLED:
            raise _finished(task)
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
        """Tasks that wait for a slot, not for their time; at most a second old."""
        lane = task_store.Lane(tenant=tenant, agent=agent, environment=environment)
        return (await self._depths.lanes()).get(lane, task_store.Depth()).due

    async def dispatchers(self) -> int:
        """How many there are on this database; one that died counts until it is taken for dead, a second or so."""
        return len(await self._store.owners())

    async def queue_depths(self) -> dict[task_store.Lane, int]:
        """Of every lane, at most a second old."""
        return {lane: depth.due for lane, depth in (await self._depths.lanes()).items() if depth.due}

    async def _find(self, caller: principals.Principal, task_id: str) -> task_store.Task:
        return await find(self._store, caller, task_id)


async def find(store: task_store.TaskStore, caller: principals.Principal, task_id: str) -> task_store.Task:
    """A task that the caller may read; `NotFound` (code `task.not_found`) for what is not there or not the caller's to see."""
    task = await store.fetch(caller.tenant, task_id) if ids.is_id(task_id, ids.TASK) else None
    return sight.permit(caller, task, principals.Action.READ, missing=missing(task_id))


def missing(task_id: str) -> errors.NotFound:
    return errors.NotFound(
        f"there is no task {task_id[:64]!r}", code="task.not_found", next_step="list what there is: nexus ai agent task list"
    )


def _finished(task: task_store.Task) -> errors.Conflict:
    return errors.Conflict(
        f"task {task.id} has {task.phase} already",
        code="task.finished",
        next_step=f"nexus ai agent task status {task.id}",
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
