"""Delivers webhooks: at least once, signed, retried for days, no receiver able to hold up another.

The outbox is written with the task's result; this loop only reads it, calls and records. The URL is judged again at each
call and the judged address is the one connected to.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from nexus.core import errors, principals
from nexus.kit import clock as clocks
from nexus.kit import egress, guard, http1
from nexus.ports import ask_store, webhook_store
from nexus.tasks import endpoints, schedule, signing, verdict
from nexus.tasks.settings import WebhookSettings

_LOG = logging.getLogger(__name__)
_HOLD_MARGIN_S = 30.0
_ASKS_FOR_A_PAUSE = (429, 503)


class WebhookSender:
    """An async context manager. `key` is a platform key of 32 bytes from which tenants' signing secrets follow."""

    def __init__(
        self,
        *,
        store: webhook_store.WebhookStore,
        key: bytes,
        allowance: egress.Allowance,
        clock: clocks.Clock,
        settings: WebhookSettings | None = None,
        tls: ssl.SSLContext | None = None,
        ask_url: Callable[[ask_store.Ask], str] = lambda ask: "",
    ) -> None:
        self._store = store
        self._key = key
        self._allowance = allowance
        self._clock = clock
        self._settings = settings or WebhookSettings()
        self._tls = tls
        self._ask_url = ask_url
        self._endpoints = endpoints.Endpoints(self._settings)
        self._tasks: set[asyncio.Task[None]] = set()
        self._awake = asyncio.Event()
        self._life = AsyncExitStack()

    def wake(self) -> None:
        """There may be something to deliver."""
        self._awake.set()

    async def secret(self, caller: principals.Principal) -> str:
        """The signing secret of the caller's tenant; for those who deploy."""
        caller.require(principals.Action.DEPLOY)
        state = await self._store.key_state(caller.tenant)
        return signing.derive_secret(self._key, caller.tenant, state.generation)

    async def rotate_secret(self, caller: principals.Principal) -> str:
        """A new signing secret; for a day deliveries are signed with the old one too."""
        caller.require(principals.Action.DEPLOY)
        state = await self._store.rotate_key(caller.tenant)
        return signing.derive_secret(self._key, caller.tenant, state.generation)

    async def replay(self, caller: principals.Principal, task_id: str) -> None:
        """Begin a dead delivery anew; `NotFound` (code `webhook.not_dead`) when there is none."""
        caller.require(principals.Action.DEPLOY)
        if not await self._store.requeue(caller.tenant, task_id):
            raise errors.NotFound(f"task {task_id[:64]!r} has no dead webhook delivery", code="webhook.not_dead")
        self.wake()

    async def __aenter__(self) -> Self:
        self._life.push_async_callback(self._let_go)
        loops = await self._life.enter_async_context(guard.Loops())
        loops.start("webhooks", self._loop)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._life.aclose()

    async def _let_go(self) -> None:
        """What is under way is cut; it is due again once its hold is over, so nothing is lost."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _loop(self) -> None:
        while True:
            self._awake.clear()
            if not await self._take():
                await self._rest()

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(self._settings.poll_s):
                await self._awake.wait()
        except TimeoutError:
            return

    async def _take(self) -> bool:
        """Whether there may be more at once."""
        if (free := self._endpoints.free()) <= 0:
            return False
        hold = self._settings.timeout_s + _HOLD_MARGIN_S
        rooms = self._endpoints.rooms(now=self._clock.monotonic())
        try:
            due = await self._store.due(limit=free, hold_s=hold, rooms=rooms)
        except errors.Unavailable as error:
            _LOG.warning("webhooks cannot be delivered: %s", error.cause or error)
            return False
        for delivery in due:
            quick = self._endpoints.begin(delivery.host)
            guard.spawn(self._deliver(delivery, quick=quick), name=f"webhook {delivery.id}", owner=self._tasks)
        return bool(due)

    async def _deliver(self, delivery: webhook_store.Due, *, quick: bool) -> None:
        host, well = delivery.host, False

        def take_long() -> None:
            nonlocal quick
            if self._endpoints.grow_slow(host):
                quick = False
                self._awake.set()

        timer = asyncio.get_running_loop().call_later(self._settings.slow_after_s, take_long) if quick else None
        try:
            attempted = await self._attempt(delivery)
            well = attempted.error is None
            await self._store.settle(attempted)
        except errors.Unavailable as error:
            _LOG.warning(
                "the outcome of webhook %s is not recorded, it will be sent again: %s", delivery.id, error.cause or error
            )
        finally:
            if timer is not None:
                timer.cancel()
            self._endpoints.end(host, quick=quick, well=well)
            self._awake.set()

    async def _attempt(self, delivery: webhook_store.Due) -> webhook_store.Attempted:
        retry_after: str | None = None
        status: int | None = None
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                answer = await self._call(delivery)
            status, retry_after = answer.status, answer.fields.get("retry-after")
            if schedule.is_delivered(status):
                return webhook_store.Attempted(id=delivery.id, attempt=delivery.attempt, status=status)
            error = schedule.describe(status)
            if status in _ASKS_FOR_A_PAUSE and (pause := schedule.parse_retry_after(retry_after, now=self._clock.time())):
                self._endpoints.quiet(delivery.host, until=self._clock.monotonic() + pause)
        except egress.Refused as refusal:
            error = f"the address is refused: {refusal}"
        except TimeoutError:
            error = f"the receiver did not answer within {self._settings.timeout_s:g} s"
        except (OSError, http1.Broken, ValueError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        return webhook_store.Attempted(
            id=delivery.id,
            attempt=delivery.attempt,
            error=verdict.clean(error)[:500],
            status=status,
            retry_in_s=schedule.plan_retry(
                delivery.attempt,
                schedule_s=self._settings.schedule_s,
                status=status,
                retry_after_s=schedule.parse_retry_after(retry_after, now=self._clock.time()),
            ),
        )

    def _ask_body(self, ask: ask_store.Ask) -> bytes:
        return signing.render_ask(ask, url=self._ask_url(ask))

    async def _call(self, delivery: webhook_store.Due) -> http1.Answer:
        body = signing.render_body(delivery.task) if delivery.ask is None else self._ask_body(delivery.ask)
        return await self._send(delivery.url, delivery.task.lane.tenant, delivery.key, message_id=delivery.id, body=body)

    async def post(self, tenant: str, url: str, *, message_id: str, body: bytes) -> tuple[int | None, str | None, float | None]:
        """One signed attempt for a room that keeps its own outbox: the status, why it failed (None: delivered) and, with an
        error, how many seconds the receiver asks to be left alone."""
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                answer = await self._send(url, tenant, await self._store.key_state(tenant), message_id=message_id, body=body)
        except egress.Refused as refusal:
            return None, f"the address is refused: {refusal}", None
        except TimeoutError:
            return None, f"the receiver did not answer within {self._settings.timeout_s:g} s", None
        except (OSError, http1.Broken, ValueError) as failure:
            return None, verdict.clean(f"{type(failure).__name__}: {failure}")[:500], None
        if schedule.is_delivered(answer.status):
            return answer.status, None, None
        asked = answer.fields.get("retry-after", "")
        return answer.status, schedule.describe(answer.status), float(asked) if asked.isascii() and asked.isdigit() else None

    async def _send(self, url: str, tenant: str, key: webhook_store.KeyState, *, message_id: str, body: bytes) -> http1.Answer:
        target = egress.parse_url(url)
        addresses = await egress.resolve(target, self._allowance)
        now = int(self._clock.time())
        secrets = signing.secrets_in_use(self._key, tenant, key)
        fields = {
            "Host": target.authority,
            "User-Agent": "nexus-webhooks/1",
            "Content-Type": "application/json",
            "Accept": "*/*",
            "webhook-id": message_id,
            "webhook-timestamp": str(now),
            "webhook-signature": " ".join(
                signing.sign(secret, message_id=message_id, timestamp=now, body=body) for secret in secrets
            ),
        }
        return await http1.post(
            [str(address) for address in addresses],
            port=target.port,
            server_name=target.host if target.scheme == "https" else None,
            path=target.path,
            fields=fields,
            body=body,
            max_answer=self._settings.max_answer_bytes,
            tls=self._tls,
        )
