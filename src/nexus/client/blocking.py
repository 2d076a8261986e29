"""`Client`: performs operations and reads feeds with blocking I/O."""

import functools
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from types import TracebackType
from typing import Concatenate, Generic, ParamSpec, Self, TypeVar

import httpx2

from nexus.client import (
    audit_operations,
    calls,
    connection,
    feeds,
    model_operations,
    operations,
    replay_operations,
    session_operations,
    standing_operations,
    task_operations,
    transport,
)
from nexus.core import errors

P = ParamSpec("P")
T = TypeVar("T")


class Client:
    """A host, called with blocking I/O. Safe to share between threads; close it, or use it as a context manager.

    Without arguments: `NEXUS_URL` and `NEXUS_API_KEY`, else what `nexus login` stored, else the host on this machine.
    `timeout` (seconds) bounds every call but runs, uploads and streams, which take as long as they take.
    """

    def __init__(
        self, base_url: str | None = None, api_key: str | None = None, *, timeout: float = transport.DEFAULT_TIMEOUT_S
    ) -> None:
        self._found = connection.find(base_url, api_key, os.environ)
        self._timeout_s = timeout
        self._http = httpx2.Client(**transport.settings(self._found))
        self.agents = Agents(self)
        self.audit = Audit(self)
        self.schedules = Schedules(self)
        self.triggers = Triggers(self)
        self.models = Models(self)
        self.sessions = Sessions(self)
        self.secrets = Secrets(self)
        self.keys = Keys(self)
        self.tenants = Tenants(self)
        self.host = Host(self)

    @property
    def base_url(self) -> str:
        return self._found.base_url

    @property
    def connection(self) -> connection.Connection:
        """Address and key, and where each was found."""
        return self._found

    def perform(self, operation: calls.Operation[T]) -> T:
        """Drive an operation to its result."""
        try:
            step = next(operation)
            while True:
                if isinstance(step, calls.Pause):
                    time.sleep(step.seconds)
                    step = operation.send(calls.Reply())
                    continue
                try:
                    reply = self._fetch(step)
                except errors.NexusError as error:
                    step = operation.throw(error)
                else:
                    step = operation.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            operation.close()

    def _fetch(self, call: calls.Call) -> calls.Reply:
        with transport.translated(self._found):
            response = self._http.send(self._http.build_request(**transport.arguments(call, self._timeout_s)))
            return transport.reply(response, response.content)

    def open(self, feed: feeds.Feed[T]) -> "Stream[T]":
        return Stream(self, feed)

    def _read(self, feed: feeds.Feed[T]) -> Generator[T, None, None]:
        while True:
            problem: errors.NexusError | None = None
            try:
                with closing(self._chunks(feed.call())) as chunks:
                    for data in chunks:
                        yield from feed.take(data)
                        if feed.finished:
                            return
            except errors.Unavailable as error:
                problem = error
            pause_s = feed.lost(problem)
            if pause_s is None:
                return
            time.sleep(pause_s)

    def _chunks(self, call: calls.Call) -> Generator[bytes, None, None]:
        with transport.translated(self._found):
            request = self._http.build_request(**transport.arguments(call, self._timeout_s))
            response = self._http.send(request, stream=True)
            try:
                if response.status_code >= 400:
                    raise calls.error_of(transport.reply(response, response.read()))
                yield from response.iter_bytes()
            finally:
                response.close()

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Stream(Generic[T]):
    """What a stream yields, as it comes. The request is sent at the first step; `close` (or leaving `with`) ends it."""

    def __init__(self, client: Client, feed: feeds.Feed[T]) -> None:
        self._items = client._read(feed)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return next(self._items)

    def close(self) -> None:
        self._items.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Room:
    def __init__(self, client: Client) -> None:
        self._client = client


def _verb(operation: Callable[P, calls.Operation[T]]) -> Callable[Concatenate[_Room, P], T]:
    @functools.wraps(operation)
    def method(room: _Room, /, *arguments: P.args, **named: P.kwargs) -> T:
        return room._client.perform(operation(*arguments, **named))

    return method


def _stream(operation: Callable[P, feeds.Feed[T]]) -> Callable[Concatenate[_Room, P], Stream[T]]:
    @functools.wraps(operation)
    def method(room: _Room, /, *arguments: P.args, **named: P.kwargs) -> Stream[T]:
        return room._client.open(operation(*arguments, **named))

    return method


class Agents(_Room):
    """Running, deploying and watching agents."""

    run = _verb(operations.run)
    stream = _stream(operations.stream)
    submit = _verb(operations.submit)
    submit_batch = _verb(task_operations.submit_batch)
    status = _verb(operations.status)
    wait = _verb(operations.wait)
    result = _verb(operations.result)
    cancel = _verb(operations.cancel)
    pause = _verb(task_operations.pause)
    resume = _verb(task_operations.resume)
    set_priority = _verb(task_operations.set_priority)
    asks = _verb(task_operations.asks)
    answer = _verb(task_operations.answer)
    replay = _verb(replay_operations.replay)
    requeue = _verb(task_operations.requeue)
    purge = _verb(task_operations.purge)
    events = _stream(operations.events)
    tasks = _verb(operations.tasks)
    list = _verb(operations.list_agents)
    show = _verb(operations.show)
    upload = _verb(operations.upload)
    versions = _verb(operations.versions)
    deploy = _verb(operations.deploy)
    deployment = _verb(operations.deployment)
    rollout = _stream(operations.rollout)
    promote = _verb(operations.promote)
    abort = _verb(operations.abort)
    rollout_status = _verb(operations.rollout_status)
    rollout_report = _verb(operations.rollout_report)
    history = _verb(operations.history)
    rollback = _verb(operations.rollback)
    scale = _verb(operations.scale)
    delete = _verb(operations.delete)
    logs = _stream(operations.logs)
    runs = _verb(operations.list_runs)


class Audit(_Room):
    """The trail of model calls."""

    list = _verb(audit_operations.list_audit)
    export = _stream(audit_operations.export_audit)
    verify = _verb(audit_operations.verify_audit)


class Sessions(_Room):
    """Sessions of agents, and the workers that some have of their own."""

    list = _verb(session_operations.list_sessions)
    show = _verb(session_operations.show_session)
    open = _verb(session_operations.open_session)
    stop = _verb(session_operations.stop_session)
    kill = _verb(session_operations.kill_session)
    delete = _verb(session_operations.delete_session)
    kill_all = _verb(session_operations.kill_sessions)
    move = _verb(session_operations.move_sessions)
    exec = _stream(session_operations.exec_in_session)


class Triggers(_Room):
    """Tasks that webhooks and queue messages submit."""

    create = _verb(standing_operations.create_trigger)
    list = _verb(standing_operations.TRIGGERS.list)
    show = _verb(standing_operations.TRIGGERS.show)
    pause = _verb(standing_operations.TRIGGERS.pause)
    resume = _verb(standing_operations.TRIGGERS.resume)
    delete = _verb(standing_operations.TRIGGERS.delete)


class Schedules(_Room):
    """Tasks that are submitted by the clock."""

    create = _verb(standing_operations.create_schedule)
    list = _verb(standing_operations.SCHEDULES.list)
    show = _verb(standing_operations.SCHEDULES.show)
    pause = _verb(standing_operations.SCHEDULES.pause)
    resume = _verb(standing_operations.SCHEDULES.resume)
    delete = _verb(standing_operations.SCHEDULES.delete)


class Models(_Room):
    """Where model calls go, what they may cost, and what they used."""

    settings = _verb(model_operations.settings)
    set_provider = _verb(model_operations.set_provider)
    remove_provider = _verb(model_operations.remove_provider)
    set_route = _verb(model_operations.set_route)
    remove_route = _verb(model_operations.remove_route)
    set_price = _verb(model_operations.set_price)
    remove_price = _verb(model_operations.remove_price)
    list_budgets = _verb(model_operations.list_budgets)
    show_budget = _verb(model_operations.show_budget)
    set_budget = _verb(model_operations.set_budget)
    remove_budget = _verb(model_operations.remove_budget)
    list_stops = _verb(model_operations.list_stops)
    stop = _verb(model_operations.stop)
    resume = _verb(model_operations.resume)
    usage = _verb(model_operations.usage)


class Secrets(_Room):
    """Secrets of an agent: set and listed by name, never read back."""

    list = _verb(operations.list_secrets)
    set = _verb(operations.set_secret)
    delete = _verb(operations.delete_secret)


class Keys(_Room):
    """API keys."""

    create = _verb(operations.create_key)
    list = _verb(operations.list_keys)
    revoke = _verb(operations.revoke_key)
    rotate_master = _verb(operations.rotate_master_key)


class Tenants(_Room):
    """Tenants of the host (admins only)."""

    create = _verb(operations.create_tenant)
    list = _verb(operations.list_tenants)


class Host(_Room):
    """The host itself."""

    whoami = _verb(operations.whoami)
    status = _verb(operations.host_status)
    metrics = _verb(operations.metrics)
