"""Tasks that are submitted by the clock. `Schedules` has the verbs for the API; its loop fires what is due, on every node."""

import asyncio
import functools
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

from nexus.core import errors, ids, names, principals
from nexus.kit import egress, guard
from nexus.ports import schedule_store, task_store
from nexus.tasks import service, sight, submission, timetable
from nexus.tasks.settings import TaskPolicy, TaskSettings
from nexus.wire import params
from nexus.wire import views as wire_views

_LOG = logging.getLogger(__name__)
_PREVIEW = 5
_AT_ONCE = 20


class Schedules:
    """An async context manager. `submitted` is called after tasks were made."""

    def __init__(
        self,
        *,
        store: schedule_store.ScheduleStore,
        resolve_target: service.ResolveTarget,
        allowance: egress.Allowance,
        submitted: Callable[[], None] = lambda: None,
        policy_of: service.PolicyOf = service.no_policy,
        settings: TaskSettings | None = None,
    ) -> None:
        self._store = store
        self._resolve_target = resolve_target
        self._allowance = allowance
        self._submitted = submitted
        self._policy_of = policy_of
        self._settings = settings or TaskSettings()
        self._life = AsyncExitStack()

    async def __aenter__(self) -> Self:
        loops = await self._life.enter_async_context(guard.Loops())
        loops.start("schedules", self._loop)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._life.aclose()

    async def create(self, caller: principals.Principal, request: params.ScheduleParams) -> wire_views.ScheduleView:
        """`Conflict` (code `schedule.exists`) when the tenant has one of that name."""
        caller.require(principals.Action.RUN, agent=request.agent)
        environment = await self._resolve_target(caller, request.agent, request.environment)
        lane = task_store.Lane(tenant=caller.tenant, agent=request.agent, environment=environment)
        now = await self._store.now()
        made = schedule_store.Schedule(
            id=ids.new_id("sch"),
            lane=lane,
            name=names.parse_label(request.name, "schedule name"),
            principal=caller.id,
            cron=request.cron,
            timezone=timetable.check_zone(request.timezone),
            catch_up=request.catch_up,
            template=request.task.model_dump_json(exclude_defaults=True).encode(),
            active=True,
            next_at=_first(request, now),
            created_at=now,
        )
        self._submission(made, now)  # whatever is wrong with the task is said now, not at night
        if request.task.webhook is not None:
            await submission.check_webhook(request.task.webhook, self._allowance)
        if not await self._store.create(made):
            raise errors.Conflict(
                f"there is a schedule {made.name!r} already",
                code="schedule.exists",
                next_step=f"choose another name, or delete it: nexus schedules delete {made.name}",
            )
        return render(made)

    async def list(self, caller: principals.Principal, *, agent: str | None = None) -> list[wire_views.ScheduleView]:
        caller.require(principals.Action.READ, agent=agent)
        agents = caller.agents if agent is None else frozenset({agent})
        found = await self._store.page(caller.tenant, agents=agents)
        return [render(each) for each in found if sight.sees(caller, each)]

    async def show(self, caller: principals.Principal, name: str) -> wire_views.ScheduleView:
        return render(await self._find(caller, name, principals.Action.READ))

    async def pause(self, caller: principals.Principal, name: str) -> wire_views.ScheduleView:
        found = await self._find(caller, name, principals.Action.RUN)
        return _view(name, await self._store.set_active(caller.tenant, name, active=False, next_at=found.next_at))

    async def resume(self, caller: principals.Principal, name: str) -> wire_views.ScheduleView:
        """Goes on with the next time from now; what was due during the pause is not made up for."""
        found = await self._find(caller, name, principals.Action.RUN)
        next_at = found.next_at
        if found.cron is not None and not found.active:
            next_at = timetable.next_after(found.cron, found.timezone, await self._store.now())
        return _view(name, await self._store.set_active(caller.tenant, name, active=True, next_at=next_at))

    async def delete(self, caller: principals.Principal, name: str) -> None:
        await self._find(caller, name, principals.Action.RUN)
        if not await self._store.delete(caller.tenant, name):
            raise _missing(name)

    async def tick(self) -> int:
        """Fire what is due, once. How many tasks that made."""
        policies = {lane: await self._policy_of(lane) for lane in await self._store.due_lanes(limit=_AT_ONCE)}
        if not policies:
            return 0
        made = await self._store.fire(functools.partial(self.plan, policies), limit=_AT_ONCE)
        if made:
            self._submitted()
        return made

    def plan(
        self, policies: Mapping[task_store.Lane, TaskPolicy], schedule: schedule_store.Schedule, now: float
    ) -> schedule_store.Firing:
        """What a due schedule does: pure, called while the store holds it."""
        due = timetable.plan_due(
            cron=schedule.cron,
            zone=schedule.timezone,
            catch_up=schedule.catch_up,
            next_at=schedule.next_at if schedule.next_at is not None else now,
            now=now,
        )
        if due.missed:
            _LOG.warning("schedule %s missed %d of its times (catch_up: %s)", schedule.id, due.missed, schedule.catch_up)
        policy = policies.get(schedule.lane, submission.NO_POLICY)
        return schedule_store.Firing(
            submissions=tuple(self._submission(schedule, time, policy) for time in due.times),
            last_at=due.times[-1] if due.times else schedule.last_at,
            missed=due.missed,
            next_at=due.next_at,
        )

    def _submission(
        self, schedule: schedule_store.Schedule, time: float, policy: TaskPolicy = submission.NO_POLICY
    ) -> task_store.Submission:
        request = params.SubmitParams.model_validate(json.loads(schedule.template))
        planned = submission.plan_submission(
            schedule.lane,
            request,
            principal=schedule.principal,
            idempotency_key=None,
            traceparent=None,
            max_attempts=self._settings.max_attempts,
            policy=policy,
        )
        return replace(planned, idempotency_key=f"schedule {schedule.id} {time:.3f}", origin=schedule.id)

    async def _find(self, caller: principals.Principal, name: str, action: principals.Action) -> schedule_store.Schedule:
        return sight.permit(caller, await self._store.fetch(caller.tenant, name), action, missing=_missing(name))

    async def _loop(self) -> None:
        while True:
            made = 0
            try:
                made = await self.tick()
            except errors.Unavailable as error:
                _LOG.warning("schedules cannot be looked at: %s", error.cause or error)
            if not made:
                await asyncio.sleep(self._settings.poll_s)


def _first(request: params.ScheduleParams, now: float) -> float | None:
    if request.at is not None:
        return request.at.timestamp()
    first = timetable.next_after(request.cron or "", timetable.check_zone(request.timezone), now)
    if first is None:
        raise errors.Invalid(
            f"{request.cron!r} never comes", code="schedule.invalid_cron", next_step="choose a day that exists in some year"
        )
    return first


def render(schedule: schedule_store.Schedule) -> wire_views.ScheduleView:
    return wire_views.ScheduleView(
        id=schedule.id,
        name=schedule.name,
        agent=schedule.lane.agent,
        environment=schedule.lane.environment,
        cron=schedule.cron,
        timezone=schedule.timezone,
        catch_up=schedule.catch_up,
        active=schedule.active,
        next_at=schedule.next_at,
        upcoming=timetable.preview(schedule.cron, schedule.timezone, schedule.next_at, _PREVIEW) if schedule.active else [],
        last_at=schedule.last_at,
        last_task_id=schedule.last_task_id,
        fired=schedule.fired,
        missed=schedule.missed,
        task=json.loads(schedule.template),
        created_at=schedule.created_at,
    )


def _view(name: str, schedule: schedule_store.Schedule | None) -> wire_views.ScheduleView:
    if schedule is None:
        raise _missing(name)
    return render(schedule)


def _missing(name: str) -> errors.NotFound:
    return errors.NotFound(
        f"there is no schedule {name[:64]!r}", code="schedule.not_found", next_step="see what there is: nexus schedules list"
    )
