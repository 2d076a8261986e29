"""Composes tasks, webhooks, records, metrics, traces and session state for the control process.

`async with run_tasks(…) as parts` starts their loops; the fields of `parts` are those of `api.services.Services`.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.ext.asyncio import AsyncEngine

from nexus.apps import dispatching
from nexus.core import errors, principals
from nexus.hosting import service as hosting_service
from nexus.kit import clock as clocks
from nexus.kit import egress, guard
from nexus.ports import task_store as ports
from nexus.stores.postgres import (
    checkpoint_store,
    run_store,
    session_store,
    task_ask_store,
    task_listener,
    task_replay_store,
    task_schedule_store,
    task_step_store,
    task_store,
    task_trigger_store,
    task_webhook_store,
)
from nexus.tasks import (
    asks,
    checkpoints,
    dispatcher,
    recordings,
    replays,
    schedules,
    service,
    sessions,
    tail,
    triggers,
    webhooks,
)
from nexus.tasks.settings import TaskPolicy, TaskSettings, WebhookSettings
from nexus.telemetry import metric_push, metrics, records, traces
from nexus.telemetry.traces import MetricSettings, TraceSettings
from nexus.wire import project

_REMEMBERED_S = 2.0
_POLICY_REMEMBERED_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskParts:
    """`telemetry.store` takes what gateways report; `tasks.queue_depth` is for the autoscaler."""

    tasks: service.TaskService
    webhooks: webhooks.WebhookSender
    schedules: schedules.Schedules
    recordings: recordings.Recordings
    asks: asks.Asks
    replays: replays.Replays
    triggers: triggers.Triggers
    trigger_store: task_trigger_store.PostgresTriggerStore
    checkpoints: checkpoints.Checkpoints
    telemetry: records.RecordSink
    runs: records.RunHistory
    metrics: metrics.Metrics
    traces: traces.TraceForwarder
    sessions: sessions.SessionStates


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEnvironment:
    """What the composition root read from the environment. `service_token` and `webhook_key` are secrets of this host."""

    database_url: str
    service_token: str
    webhook_key: bytes
    link_key: bytes
    trigger_key: bytes
    origin: str
    egress_allow: egress.Allowance
    traces: TraceSettings = TraceSettings()  # noqa: RUF009 - frozen
    pushed: MetricSettings = MetricSettings()  # noqa: RUF009 - frozen
    tasks: TaskSettings = TaskSettings()  # noqa: RUF009 - frozen
    webhooks: WebhookSettings = WebhookSettings()  # noqa: RUF009 - frozen


def read_environment(
    environ: Mapping[str, str],
    *,
    database_url: str,
    service_token: str,
    webhook_key: bytes,
    link_key: bytes,
    trigger_key: bytes,
    origin: str,
) -> TaskEnvironment:
    """Raises `Invalid` (code `setting.invalid`) naming the variable that cannot be used."""
    try:
        return TaskEnvironment(
            database_url=database_url,
            service_token=service_token,
            webhook_key=webhook_key,
            link_key=link_key,
            trigger_key=trigger_key,
            origin=read_public_url(environ.get("NEXUS_PUBLIC_URL")) or origin,
            egress_allow=egress.parse_allowance(environ.get("NEXUS_EGRESS_ALLOW")),
            traces=traces.parse_settings(
                endpoint=environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"),
                traces_endpoint=environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
                headers=environ.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS") or environ.get("OTEL_EXPORTER_OTLP_HEADERS"),
            ),
            pushed=traces.parse_metric_settings(
                endpoint=environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"),
                metrics_endpoint=environ.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"),
                headers=environ.get("OTEL_EXPORTER_OTLP_METRICS_HEADERS") or environ.get("OTEL_EXPORTER_OTLP_HEADERS"),
                interval_ms=environ.get("OTEL_METRIC_EXPORT_INTERVAL"),
            ),
        )
    except ValueError as error:
        raise errors.Invalid(str(error), code="setting.invalid", next_step="correct or unset the variable") from None


def read_public_url(value: str | None) -> str | None:
    """`https://agents.example.com`, where people and webhooks reach this host. Raises ValueError for anything else."""
    if not value:
        return None
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("NEXUS_PUBLIC_URL: give an address such as https://agents.example.com")
    return value.rstrip("/")


@asynccontextmanager
async def run_tasks(
    engine: AsyncEngine,
    *,
    environment: TaskEnvironment,
    door_sockets: Callable[[], Sequence[Path]],
    resolve_target: service.ResolveTarget,
    policy_of: service.PolicyOf | None = None,
    dispatches: bool = True,
    clock: clocks.Clock | None = None,
) -> AsyncIterator[TaskParts]:
    """`door_sockets` names the gateways' door sockets; `resolve_target` is `hosting_targets(hosting)` or the like. Without
    `dispatches` tasks are accepted here and run by dispatchers elsewhere, which hear of them by `NOTIFY`."""
    clock = clock or clocks.SystemClock()
    targets = remember_targets(resolve_target)
    policies = service.no_policy if policy_of is None else remember_policies(policy_of)
    store, wakeups = task_store.PostgresTaskStore(engine), tail.Wakeups()
    runner = (
        dispatching.build(
            engine, token=environment.service_token, door_sockets=door_sockets, clock=clock, settings=environment.tasks
        )
        if dispatches
        else None
    )
    submitted = _told_by_the_database if runner is None else runner.wake
    steps = task_step_store.PostgresStepStore(engine)
    graphs = checkpoints.Checkpoints(store=checkpoint_store.PostgresCheckpointStore(engine))
    trigger_rows = task_trigger_store.PostgresTriggerStore(engine)
    questions = asks.Asks(
        store=task_ask_store.PostgresAskStore(engine),
        key=environment.link_key,
        origin=environment.origin,
        clock=clock,
        resumed=submitted,
        poll_s=environment.tasks.poll_s,
    )
    sender = webhooks.WebhookSender(
        store=task_webhook_store.PostgresWebhookStore(engine),
        key=environment.webhook_key,
        allowance=environment.egress_allow,
        clock=clock,
        settings=environment.webhooks,
        ask_url=questions.url_of,
    )
    rooms = service.TaskService(
        store=store,
        resolve_target=targets,
        policy_of=policies,
        wakeups=wakeups,
        allowance=environment.egress_allow,
        submitted=submitted,
        settings=environment.tasks,
        runner=runner,
    )
    ears = task_listener.Listener(
        url=environment.database_url,
        channels=_CHANNELS if runner is None else (*_CHANNELS, *dispatching.CHANNELS),
        receive=_hear(runner, sender, wakeups),
        owner=None if runner is None else runner.owner,
    )
    timed = schedules.Schedules(
        store=task_schedule_store.PostgresScheduleStore(engine),
        resolve_target=targets,
        policy_of=policies,
        allowance=environment.egress_allow,
        submitted=submitted,
        settings=environment.tasks,
    )
    history, counted = run_store.PostgresRunStore(engine), metrics.Metrics()
    async with guard.Loops() as loops, rooms, traces.TraceForwarder(settings=environment.traces) as forwarder:
        loops.start("task-listener", ears.run)
        pusher = metric_push.MetricPusher(metrics=counted, settings=environment.pushed)
        if pusher.enabled:
            loops.start("metrics", pusher.run)
        async with sender, runner or contextlib.nullcontext(), timed, questions, graphs:
            yield TaskParts(
                tasks=rooms,
                webhooks=sender,
                schedules=timed,
                recordings=recordings.Recordings(store=steps),
                asks=questions,
                trigger_store=trigger_rows,
                checkpoints=graphs,
                triggers=triggers.Triggers(
                    store=trigger_rows,
                    tasks=store,
                    resolve_target=targets,
                    allowance=environment.egress_allow,
                    key=environment.trigger_key,
                    origin=environment.origin,
                    clock=clock,
                    submitted=submitted,
                    policy_of=policies,
                    settings=environment.tasks,
                ),
                replays=replays.Replays(
                    store=task_replay_store.PostgresReplayStore(engine),
                    tasks=store,
                    steps=steps,
                    resolve_target=resolve_target,
                    submitted=submitted,
                ),
                telemetry=records.RecordSink(store=history, metrics=counted, traced=forwarder.take_model_calls),
                runs=records.RunHistory(store=history),
                metrics=counted,
                traces=forwarder,
                sessions=sessions.SessionStates(store=session_store.PostgresSessionStore(engine)),
            )


_CHANNELS = (task_listener.CHANNEL_EVENTS, task_listener.CHANNEL_WEBHOOKS)


def _told_by_the_database() -> None:
    """Whoever runs tasks in another process hears of them by `NOTIFY`, once they are committed."""


def _hear(
    runner: dispatcher.Dispatcher | None, sender: webhooks.WebhookSender, wakeups: tail.Wakeups
) -> Callable[[str, str], None]:
    """An empty channel means: (re)connected, anything may have been missed."""

    def receive(channel: str, payload: str) -> None:
        if runner is not None:
            dispatching.hear(runner, channel, payload)
        if channel in ("", task_listener.CHANNEL_EVENTS):
            for task_id in payload.split(","):
                wakeups.wake(task_id)
        if channel in ("", task_listener.CHANNEL_WEBHOOKS):
            sender.wake()

    return receive


def hosting_targets(hosting: Any) -> service.ResolveTarget:
    """Targets as `HostingService` knows them: its errors for what is absent, ambiguous or not the caller's."""

    async def resolve(caller: principals.Principal, agent: str, environment: str | None) -> str:
        found = await hosting.history(caller, agent, environment)
        return str(found.deployment.environment)

    return resolve


def hosting_policies(hosting: Any) -> service.PolicyOf:
    """What `hosting.tasks` says in the `config.yaml` of the version that serves there (or is on its way)."""

    async def policy_of(lane: ports.Lane) -> TaskPolicy:
        for deployment in await hosting.store.deployments_of(lane.tenant, lane.agent):
            if deployment.environment != lane.environment:
                continue
            number = deployment.active_revision or deployment.target_revision
            for revision in await hosting.store.revisions(lane.tenant, deployment.id):
                if revision.number == number:
                    version = await hosting.store.version(lane.tenant, revision.version_id)
                    return TaskPolicy() if version is None else read_policy(hosting_service.read_config(version))
        return TaskPolicy()

    return policy_of


def read_policy(config: project.ProjectConfig) -> TaskPolicy:
    tasks = config.hosting.tasks
    if tasks is None:
        return TaskPolicy()
    retry = tasks.retry or project.TaskRetry()
    return TaskPolicy(
        max_attempts=tasks.max_attempts,
        retry=ports.Retry(
            first_s=retry.first, longest_s=retry.longest, factor=retry.factor, kinds=tuple(retry.on), unknown=tasks.unknown
        ),
        concurrency=tasks.concurrency,
        per_key=tasks.per_key,
        max_pending=tasks.max_pending,
        queue_timeout_s=tasks.queue_timeout,
        run_timeout_s=tasks.run_timeout,
        total_timeout_s=tasks.total_timeout,
    )


def remember_policies(policy_of: service.PolicyOf, *, now: Callable[[], float] = time.monotonic) -> service.PolicyOf:
    """The same, asked at most every five seconds for each lane."""
    known: dict[ports.Lane, tuple[float, TaskPolicy]] = {}

    async def remembering(lane: ports.Lane) -> TaskPolicy:
        at, answer = known.get(lane, (float("-inf"), TaskPolicy()))
        if now() - at < _POLICY_REMEMBERED_S:
            return answer
        answer = await policy_of(lane)
        if len(known) >= 10_000:
            known.clear()
        known[lane] = (now(), answer)
        return answer

    return remembering


def remember_targets(resolve: service.ResolveTarget, *, now: Callable[[], float] = time.monotonic) -> service.ResolveTarget:
    """The same, asked at most every two seconds for each caller and agent. Only answers are remembered, never errors."""
    known: dict[tuple[object, ...], tuple[float, str]] = {}

    async def remembering(caller: principals.Principal, agent: str, environment: str | None) -> str:
        key = (caller.id, caller.tenant, agent, environment)
        at, answer = known.get(key, (float("-inf"), ""))
        if now() - at < _REMEMBERED_S:
            return answer
        answer = await resolve(caller, agent, environment)
        if len(known) >= 10_000:
            known.clear()
        known[key] = (now(), answer)
        return answer

    return remembering
