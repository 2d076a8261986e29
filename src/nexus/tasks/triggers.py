"""Tasks that are submitted by others: signed webhooks (`POST /hooks/{id}`) and messages of a broker. Verbs for the API and for
the process that listens to brokers. A message is one task, however often it is delivered."""

import base64
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from nexus.core import errors, ids, names, principals
from nexus.kit import clock as clocks
from nexus.kit import egress
from nexus.ports import task_store, trigger_store
from nexus.tasks import hooks, sealing, service, sight, submission
from nexus.tasks.settings import TaskSettings
from nexus.wire import params, triggers

MAX_MESSAGE_BYTES = 1024 * 1024
_CLIENTS = {"rabbit": "aio_pika", "kafka": "aiokafka", "nats": "nats", "redis": "redis"}
_PLAIN_ID = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-")


class Triggers:
    """`key` seals secrets; `origin` is where webhooks reach this host; `submitted` is called after a task was made."""

    def __init__(
        self,
        *,
        store: trigger_store.TriggerStore,
        tasks: task_store.TaskStore,
        resolve_target: service.ResolveTarget,
        allowance: egress.Allowance,
        key: bytes,
        origin: str,
        clock: clocks.Clock,
        submitted: Callable[[], None] = lambda: None,
        changed: Callable[[], None] = lambda: None,
        policy_of: service.PolicyOf = service.no_policy,
        settings: TaskSettings | None = None,
    ) -> None:
        self._store = store
        self._tasks = tasks
        self._resolve_target = resolve_target
        self._allowance = allowance
        self._key = key
        self._origin = origin.rstrip("/")
        self._clock = clock
        self._submitted = submitted
        self.changed = changed
        self._policy_of = policy_of
        self._settings = settings or TaskSettings()
        self._depths = submission.Depths(tasks)

    async def create(self, caller: principals.Principal, request: triggers.TriggerParams) -> triggers.TriggerView:
        """`Conflict` (code `trigger.exists`) when the tenant has one of that name. The secret is shown in this answer only."""
        caller.require(principals.Action.DEPLOY, agent=request.agent)
        caller.require(principals.Action.RUN, agent=request.agent)
        environment = await self._resolve_target(caller, request.agent, request.environment)
        lane = task_store.Lane(tenant=caller.tenant, agent=request.agent, environment=environment)
        trigger_id = ids.new_id(ids.TRIGGER)
        shown, secret = await self._settings_of(request)
        made = trigger_store.Trigger(
            id=trigger_id,
            lane=lane,
            name=names.parse_label(request.name, "trigger name"),
            kind="hook" if request.hook is not None else "queue",
            principal=caller.id,
            settings=json.dumps(shown),
            sealed=sealing.seal(self._key, trigger_id, secret),
            template=request.task.model_dump_json(exclude_defaults=True).encode(),
            created_at=self._clock.time(),
        )
        self._plan(made, submission.NO_POLICY, None, {}, None)  # whatever is wrong with the task is said now
        if request.task.webhook is not None:
            await submission.check_webhook(request.task.webhook, self._allowance)
        if not await self._store.create(made):
            raise errors.Conflict(
                f"there is a trigger {made.name!r} already",
                code="trigger.exists",
                next_step=f"choose another name, or delete it: nexus triggers delete {made.name}",
            )
        self.changed()
        return self.render(made, secret=secret if made.kind == "hook" else None)

    async def list(self, caller: principals.Principal, *, agent: str | None = None) -> list[triggers.TriggerView]:
        caller.require(principals.Action.READ, agent=agent)
        agents = caller.agents if agent is None else frozenset({agent})
        found = await self._store.page(caller.tenant, agents=agents)
        return [self.render(each) for each in found if sight.sees(caller, each)]

    async def show(self, caller: principals.Principal, name: str) -> triggers.TriggerView:
        return self.render(await self._find(caller, name, principals.Action.READ))

    async def set_active(self, caller: principals.Principal, name: str, *, active: bool) -> triggers.TriggerView:
        await self._find(caller, name, principals.Action.DEPLOY)
        changed = await self._store.set_active(caller.tenant, name, active=active)
        if changed is None:
            raise _missing(name)
        self.changed()
        return self.render(changed)

    async def delete(self, caller: principals.Principal, name: str) -> None:
        await self._find(caller, name, principals.Action.DEPLOY)
        if not await self._store.delete(caller.tenant, name):
            raise _missing(name)
        self.changed()

    async def take_hook(self, trigger_id: str, headers: Mapping[str, str], body: bytes) -> task_store.Task:
        """The task of a webhook. `NotFound` (`trigger.not_found`), `Unauthenticated` (`hook.bad_signature`)."""
        found = await self._store.by_id(trigger_id) if ids.is_id(trigger_id, ids.TRIGGER) else None
        if found is None or found.kind != "hook":
            raise errors.NotFound("there is no such webhook", code="trigger.not_found", next_step="see: nexus triggers list")
        secret = sealing.unseal(self._key, found.id, found.sealed)
        hook = triggers.HookParams.model_validate({**json.loads(found.settings), "secret": secret})
        sent = hooks.verify(hook, secret, headers, body, now=self._clock.time())
        about = {"message_id": sent.id, "type": sent.type}
        return await self.take(found, message_input(body, headers.get("content-type")), about, message_id=sent.id)

    async def take(
        self,
        trigger: trigger_store.Trigger,
        value: Any,
        about: Mapping[str, Any],
        *,
        message_id: str | None,
        reply: trigger_store.Reply | None = None,
    ) -> task_store.Task:
        """The task of a message, committed when this returns; the same `message_id` gives the same task."""
        policy = await self._policy_of(trigger.lane)
        wanted = self._plan(trigger, policy, value, about, message_id)
        await submission.settle_depth(
            self._depths, trigger.lane, most=self._settings.max_pending, most_of_lane=policy.max_pending
        )
        if policy.concurrency is not None:
            await self._tasks.limit_lane(trigger.lane, policy.concurrency)
        task, created = await self._store.take(trigger.id, wanted, reply=reply)
        if created:
            self._depths.add(trigger.lane, due=task.run_at is None)
            self._submitted()
        return task

    def secret_of(self, trigger: trigger_store.Trigger) -> str:
        return sealing.unseal(self._key, trigger.id, trigger.sealed)

    def _plan(
        self, trigger: trigger_store.Trigger, policy: Any, value: Any, about: Mapping[str, Any], message_id: str | None
    ) -> task_store.Submission:
        request = params.SubmitParams.model_validate_json(trigger.template)
        told = {name: entry for name, entry in about.items() if entry is not None}
        context = {**request.context, "trigger": {"id": trigger.id, "name": trigger.name, "kind": trigger.kind, **told}}
        planned = submission.plan_submission(
            trigger.lane,
            request.model_copy(update={"input": value, "context": context}),
            principal=trigger.principal,
            idempotency_key=None,
            traceparent=None,
            max_attempts=self._settings.max_attempts,
            policy=policy,
        )
        key = None if message_id is None else f"trigger {trigger.id} {_short(message_id)}"
        return replace(planned, idempotency_key=key, origin=trigger.id)

    async def _settings_of(self, request: triggers.TriggerParams) -> tuple[dict[str, Any], str]:
        """What is stored openly, and the secret."""
        if request.hook is not None:
            hook = request.hook
            secret = hook.secret or ("whsec_" + base64.b64encode(os.urandom(32)).decode())
            hooks.check_secret(hook.scheme, secret)
            return hook.model_dump(exclude={"secret"}, exclude_none=True), secret
        if request.queue is None:
            raise errors.Invalid("a trigger has a hook or a queue", code="request.invalid")
        check_installed(triggers.SCHEMES[request.queue.url.partition("://")[0]])
        await check_broker(request.queue.url, self._allowance)
        return request.queue.model_dump(exclude={"url"}, exclude_none=True) | {"url": without_password(request.queue.url)}, (
            request.queue.url
        )

    async def _find(self, caller: principals.Principal, name: str, action: principals.Action) -> trigger_store.Trigger:
        return sight.permit(caller, await self._store.fetch(caller.tenant, name), action, missing=_missing(name))

    def render(self, trigger: trigger_store.Trigger, *, secret: str | None = None) -> triggers.TriggerView:
        shown = json.loads(trigger.settings)
        broker = shown.pop("url", "")
        return triggers.TriggerView(
            id=trigger.id,
            name=trigger.name,
            agent=trigger.lane.agent,
            environment=trigger.lane.environment,
            kind=trigger.kind,
            active=trigger.active,
            url=broker or f"{self._origin}/hooks/{trigger.id}",
            settings=shown,
            task=json.loads(trigger.template),
            taken=trigger.taken,
            refused=trigger.refused,
            last_at=trigger.last_at,
            last_task_id=trigger.last_task_id,
            problem=trigger.problem,
            created_at=trigger.created_at,
            secret=secret,
        )


def message_input(body: bytes, content_type: str | None) -> Any:
    """A message as a task's input: JSON as its value, other text as text. Raises `Invalid` (`trigger.poison`)."""
    if len(body) > MAX_MESSAGE_BYTES:
        raise _poison(f"it has more than {MAX_MESSAGE_BYTES} bytes")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _poison(f"it is not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise _poison("it is nested too deeply") from None
    except ValueError as error:
        if content_type is not None and "json" in content_type:
            raise _poison(f"it says it is JSON, and is not: {error}") from None
        return text


def check_installed(kind: str) -> None:
    """Nothing, or `Unavailable` (`install.incomplete`) with the command that installs what is missing."""
    if all(importlib.util.find_spec(name) is not None for name in ("faststream", _CLIENTS[kind])):
        return
    raise errors.Unavailable(
        f"this installation cannot speak with {kind}",
        code="install.incomplete",
        cause=f"faststream[{kind}] is not installed",
        next_step=f"pip install 'nexus-agent-hosting[{kind}]' on the host",
    )


async def check_broker(url: str, allowance: egress.Allowance) -> None:
    """Nothing, or `Invalid` (`trigger.url_refused`) saying why this broker is not connected to. Every host is judged."""
    scheme, _, rest = url.partition("://")
    if scheme not in triggers.SCHEMES:
        raise _refused("its scheme is none of " + ", ".join(triggers.SCHEMES))
    for place in rest.partition("/")[0].rpartition("@")[2].split(","):
        try:
            await egress.resolve(egress.parse_url(f"http://{place}/"), allowance)
        except egress.Refused as error:
            raise _refused(str(error)) from None
        except (OSError, TimeoutError) as error:
            raise _refused(f"its host name does not resolve ({type(error).__name__})") from None


def without_password(url: str) -> str:
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    return urlunsplit(
        parts._replace(netloc=f"{user.partition(':')[0]}:***@{place}" if at and ":" in user else parts.netloc, query="")
    )


def _short(message_id: str) -> str:
    plain = len(message_id) <= 200 and all(letter in _PLAIN_ID for letter in message_id) and message_id
    return message_id if plain else "sha256:" + hashlib.sha256(message_id.encode("utf-8", "replace")).hexdigest()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _poison(why: str) -> errors.Invalid:
    return errors.Invalid("this message cannot become a task", code="trigger.poison", cause=why, next_step="send JSON or text")


def _refused(why: str) -> errors.Invalid:
    return errors.Invalid(
        "this broker is refused",
        code="trigger.url_refused",
        cause=why,
        next_step="name a public host, or have the operator put the address or range into NEXUS_EGRESS_ALLOW",
    )


def _missing(name: str) -> errors.NotFound:
    return errors.NotFound(
        f"there is no trigger {name[:64]!r}", code="trigger.not_found", next_step="see what there is: nexus triggers list"
    )
