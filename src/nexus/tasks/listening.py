"""Listens to the brokers of all queue triggers: a message becomes a task, its result is published back. In a process of its own.

A message is acknowledged only when its task is committed, and its id makes it one task however often it is delivered. What can
never become a task goes to the trigger's dead letters.
"""

import asyncio
import json
import logging
from typing import Any

from nexus.core import errors
from nexus.kit import backoff, egress
from nexus.ports import broker as brokers
from nexus.ports import trigger_store
from nexus.tasks import triggers, verdict, views

_LOG = logging.getLogger("nexus.brokers")
_PAUSES = backoff.Backoff(first_s=0.2, longest_s=15.0, least_s=0.1)
_REPLIES_AT_ONCE = 100
_ANSWER = {"status", "output", "error", "metadata", "task_id", "agent", "environment", "created_at", "finished_at"}


class Listening:
    """`run` in a guarded loop. `poll_s`: how often triggers and results are looked for."""

    def __init__(
        self,
        *,
        store: trigger_store.TriggerStore,
        room: triggers.Triggers,
        broker: brokers.Broker,
        allowance: egress.Allowance,
        poll_s: float = 1.0,
        reply_s: float = 0.25,
    ) -> None:
        self._store = store
        self._room = room
        self._broker = broker
        self._allowance = allowance
        self._poll_s = poll_s
        self._reply_s = reply_s
        self._tasks: dict[str, tuple[str, asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """Until cancelled: one listener for each active trigger, ended when it is paused, changed or deleted."""
        try:
            while True:
                await self._look()
                await asyncio.sleep(self._poll_s)
        finally:
            for _, task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*(task for _, task in self._tasks.values()), return_exceptions=True)
            self._tasks.clear()

    async def _look(self) -> None:
        try:
            wanted = {trigger.id: trigger for trigger in await self._store.queues()}
        except errors.Unavailable as error:
            _LOG.warning("triggers cannot be looked at: %s", error.cause or error)
            return
        for trigger_id, (settings, task) in list(self._tasks.items()):
            if trigger_id not in wanted or wanted[trigger_id].settings != settings or task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                del self._tasks[trigger_id]
        for trigger in wanted.values():
            if trigger.id not in self._tasks:
                task = asyncio.create_task(self._keep(trigger), name=f"trigger {trigger.id}")
                self._tasks[trigger.id] = (trigger.settings, task)

    async def _keep(self, trigger: trigger_store.Trigger) -> None:
        """Listen, and again after a growing pause whenever that ends."""
        failures = 0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                problem = await self._listen(trigger)
            except errors.NexusError as error:
                problem = " ".join(filter(None, (error.message + ":", error.cause, error.next_step)))
            except Exception as error:  # noqa: BLE001 - one trigger may not end the others; it is logged and shown
                _LOG.exception("trigger %s failed", trigger.id)
                problem = f"{type(error).__name__}: {error}"
            _LOG.warning("trigger %s does not listen: %s", trigger.id, problem)
            await self._note(trigger, verdict.clean(problem)[:500])
            failures = 0 if asyncio.get_running_loop().time() - began > 30 else failures + 1
            await asyncio.sleep(_PAUSES.pause_s(failures))

    async def _listen(self, trigger: trigger_store.Trigger) -> str:
        settings = json.loads(trigger.settings)
        url = self._room.secret_of(trigger)
        await triggers.check_broker(url, self._allowance)
        source = brokers.Source(
            url=url, name=settings["name"], group=settings["group"], stream=settings.get("stream"), prefetch=settings["prefetch"]
        )
        connected: asyncio.Future[brokers.Connection] = asyncio.get_running_loop().create_future()

        async def handle(message: brokers.Message) -> None:
            await self._settle(trigger, settings, message, await asyncio.shield(connected))

        async with self._broker.listen(source, handle) as connection:
            connected.set_result(connection)
            _LOG.info("trigger %s listens to %s", trigger.id, source.name)
            await self._note(trigger, None)
            ended = asyncio.create_task(connection.ended())
            replying = asyncio.create_task(self._reply(trigger, connection))
            try:
                done, _ = await asyncio.wait({ended, replying}, return_when=asyncio.FIRST_COMPLETED)
                return str(done.pop().result())
            finally:
                for task in (ended, replying):
                    task.cancel()
                await asyncio.gather(ended, replying, return_exceptions=True)

    async def _settle(
        self,
        trigger: trigger_store.Trigger,
        settings: dict[str, Any],
        message: brokers.Message,
        connection: brokers.Connection,
    ) -> None:
        """Returns once the message is a task, or a dead letter. Until then it stays unacknowledged, however long that takes."""
        correlation = message.correlation or message.id or ""
        reply = trigger_store.Reply(topic=settings["reply"], correlation=correlation) if settings.get("reply") else None
        failures = 0
        while True:
            try:
                value = triggers.message_input(message.body, message.content_type)
                about = {"message_id": message.id, "correlation_id": message.correlation, "queue": settings["name"]}
                await self._room.take(trigger, value, about, message_id=message.id, reply=reply)
                return
            except errors.Invalid as error:
                if await self._bury(trigger, settings, message, connection, error):
                    return
            except errors.NexusError as error:
                _LOG.warning("a message of trigger %s waits: %s", trigger.id, error.cause or error.message)
                await asyncio.sleep(error.retry_after_s or 0)
            failures += 1
            await asyncio.sleep(_PAUSES.pause_s(failures))

    async def _bury(
        self,
        trigger: trigger_store.Trigger,
        settings: dict[str, Any],
        message: brokers.Message,
        connection: brokers.Connection,
        why: errors.NexusError,
    ) -> bool:
        """Whether the message is with the dead letters."""
        letter = {
            "code": why.code,
            "cause": why.cause or why.message,
            "message_id": message.id,
            "body": message.body.decode("utf-8", "backslashreplace"),
        }
        try:
            topic = settings.get("dead") or f"{settings['name']}.dead"
            await connection.publish(topic, verdict.text_of(letter).encode(), correlation=message.correlation)
        except errors.Unavailable as error:
            _LOG.warning("a dead letter of trigger %s cannot be published: %s", trigger.id, error.cause or error.message)
            return False
        await self._note(trigger, None, refused=1)
        return True

    async def _reply(self, trigger: trigger_store.Trigger, connection: brokers.Connection) -> str:
        """Publish results as tasks end, each at least once. Ends with the reason when the broker takes none."""
        while True:
            try:
                due = await self._store.due_replies(trigger.id, limit=_REPLIES_AT_ONCE)
                for entry in due:
                    view = views.render_task(entry.task).model_dump(include=_ANSWER)
                    body = verdict.text_of(view).encode()
                    await connection.publish(entry.reply.topic, body, correlation=entry.reply.correlation or None)
                    await self._store.replied([entry.task.id])
            except errors.Unavailable as error:
                if error.code == "broker.unavailable":
                    return str(error.cause)
                _LOG.warning("results of trigger %s wait: %s", trigger.id, error.cause or error)
                due = []
            if not due:
                await asyncio.sleep(self._reply_s)

    async def _note(self, trigger: trigger_store.Trigger, problem: str | None, *, refused: int = 0) -> None:
        try:
            await self._store.note(trigger.id, problem=problem, refused=refused)
        except errors.Unavailable as error:
            _LOG.warning("the state of trigger %s is not recorded: %s", trigger.id, error.cause or error)
