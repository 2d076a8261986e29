"""Webhooks from a finished task to receivers on real sockets: good ones, slow ones, redirecting and refusing ones."""

import asyncio
import base64
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import psycopg
import pytest
import rig as rigs
import standardwebhooks

from nexus.core import errors, principals
from nexus.kit import clock, egress
from nexus.stores.postgres import engine as engines
from nexus.stores.postgres import task_webhook_store
from nexus.tasks import signing, webhooks
from nexus.tasks.settings import WebhookSettings

KEY = b"k" * 32
LOOPBACK = egress.parse_allowance("127.0.0.0/8")
QUICK = WebhookSettings(schedule_s=(0.01, 0.02), timeout_s=5.0, poll_s=0.05)


@dataclass(slots=True)
class Receiver:
    port: int = 0
    answer: Callable[[int], bytes] = lambda number: b"HTTP/1.1 204 No Content\r\n\r\n"
    hang: asyncio.Event | None = None
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str = "/hook?x=1") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            self.got.append((request, fields, await reader.readexactly(int(fields["content-length"]))))
            self.arrived.set()
            if self.hang is not None:
                await self.hang.wait()
            writer.write(self.answer(len(self.got)))
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def receiving(receiver: Receiver, host: str = "127.0.0.1") -> AsyncIterator[Receiver]:
    server = await asyncio.start_server(receiver.serve, host, 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        if receiver.hang is not None:
            receiver.hang.set()
        server.close()


@asynccontextmanager
async def sending(
    rig: rigs.Rig, *, allow: egress.Allowance = LOOPBACK, config: WebhookSettings = QUICK
) -> AsyncIterator[webhooks.WebhookSender]:
    async with engines.open_engine(rig.url, pool_size=4) as engine:
        store = task_webhook_store.PostgresWebhookStore(engine)
        sender = webhooks.WebhookSender(store=store, key=KEY, allowance=allow, clock=clock.SystemClock(), settings=config)
        async with sender:
            yield sender


async def delivery(rig: rigs.Rig, task_id: str, until: Callable[[dict[str, object]], bool]) -> dict[str, object]:
    async with asyncio.timeout(rigs.PATIENCE_S):
        while True:
            webhook = (await rig.service.show(rigs.CALLER, task_id)).webhook
            if webhook is not None and until(webhook):
                return webhook
            await asyncio.sleep(0.02)


def is_over(webhook: dict[str, object]) -> bool:
    return webhook["status"] in ("delivered", "dead")


@pytest.fixture
async def running(rig: rigs.Rig) -> AsyncIterator[rigs.Rig]:
    async with rigs.gateway(rig.socket, rigs.completes), rig.dispatcher():
        yield rig


async def test_a_finished_task_reaches_its_webhook_signed(running: rigs.Rig) -> None:
    async with receiving(Receiver()) as receiver, sending(running) as sender:
        task = await running.submit("value", webhook=receiver.url())
        webhook = await delivery(running, task.task_id, is_over)
        secret = await sender.secret(rigs.CALLER)
    assert (webhook["status"], webhook["attempts"], webhook["last_status"]) == ("delivered", 1, 204)
    ((request, fields, body),) = receiver.got
    assert request == "POST /hook?x=1 HTTP/1.1"
    assert fields["host"] == f"127.0.0.1:{receiver.port}"
    assert secret == signing.derive_secret(KEY, "default")
    message = standardwebhooks.Webhook(secret).verify(body, fields)
    assert message["type"] == "task.completed"
    assert (message["data"]["task_id"], message["data"]["output"]) == (task.task_id, "value")
    assert fields["webhook-signature"] == f"v1,{_by_openssl(secret, fields, body)}"


def _by_openssl(secret: str, fields: dict[str, str], body: bytes) -> str:
    """The signature as OpenSSL's command makes it from what the standard says is signed."""
    key = base64.b64decode(secret.removeprefix("whsec_")).hex()
    command = ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key}", "-binary"]
    signed = f"{fields['webhook-id']}.{fields['webhook-timestamp']}.".encode() + body
    return base64.b64encode(subprocess.run(command, input=signed, capture_output=True, check=True).stdout).decode()


async def test_a_failing_receiver_is_tried_again_with_the_same_id_and_body(running: rigs.Rig) -> None:
    failing = Receiver(answer=lambda number: b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % (500 if number < 3 else 200))
    async with receiving(failing) as receiver, sending(running):
        task = await running.submit(webhook=receiver.url())
        webhook = await delivery(running, task.task_id, is_over)
    assert (webhook["status"], webhook["attempts"]) == ("delivered", 3)
    assert len({(fields["webhook-id"], body) for _, fields, body in receiver.got}) == 1


@pytest.mark.parametrize(
    ("answer", "attempts", "says"),
    [
        (b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n", 3, "answered 500"),
        (b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n", 1, "answered 410"),
        (b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", 3, "redirects are not followed"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", 3, "not HTTP"),
        (b"", 3, "ended before"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", 3, "Broken"),
    ],
)  # fmt: skip
async def test_a_delivery_that_cannot_succeed_is_dead_lettered(
    running: rigs.Rig, answer: bytes, attempts: int, says: str
) -> None:
    async with receiving(Receiver(answer=lambda number: answer)) as receiver, sending(running):
        task = await running.submit(webhook=receiver.url())
        webhook = await delivery(running, task.task_id, is_over)
    assert (webhook["status"], webhook["attempts"], len(receiver.got)) == ("dead", attempts, attempts)
    assert says in str(webhook["last_error"])


async def test_a_dead_delivery_can_be_replayed(running: rigs.Rig) -> None:
    gone_once = Receiver(answer=lambda number: b"HTTP/1.1 %d X\r\n\r\n" % (410 if number == 1 else 200))
    async with receiving(gone_once) as receiver, sending(running) as sender:
        task = await running.submit(webhook=receiver.url())
        assert (await delivery(running, task.task_id, is_over))["status"] == "dead"
        viewer = principals.Principal(id="key_2", tenant="other", roles=frozenset({principals.Role.DEVELOPER}))
        with pytest.raises(errors.NotFound):
            await sender.replay(viewer, task.task_id)
        await sender.replay(rigs.CALLER, task.task_id)
        webhook = await delivery(running, task.task_id, lambda seen: seen["status"] == "delivered")
    assert webhook["attempts"] == 1


async def test_a_big_answer_is_not_read_to_its_end(running: rigs.Rig) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n" + b"x" * 100_000
    async with receiving(Receiver(answer=lambda number: head)) as receiver, sending(running):
        task = await running.submit(webhook=receiver.url())
        assert (await delivery(running, task.task_id, is_over))["status"] == "delivered"


async def test_an_unreachable_receiver_is_reported_and_tried_on(running: rigs.Rig) -> None:
    async with receiving(Receiver()) as receiver:
        url = receiver.url()
    async with sending(running):
        task = await running.submit(webhook=url)
        webhook = await delivery(running, task.task_id, is_over)
    assert (webhook["status"], webhook["attempts"]) == ("dead", 3)
    assert "Connection" in str(webhook["last_error"]) or "OSError" in str(webhook["last_error"])


async def test_hanging_receivers_do_not_delay_a_healthy_one(running: rigs.Rig) -> None:
    hanging = [Receiver(hang=asyncio.Event()) for _ in range(20)]
    config = WebhookSettings(timeout_s=600, poll_s=0.05, per_host=2)
    async with sending(running, config=config), stacked(map(receiving, hanging)), receiving(Receiver()) as healthy:
        for receiver in hanging:
            for _ in range(3):
                await running.submit(webhook=receiver.url())
        async with asyncio.timeout(rigs.PATIENCE_S):
            for receiver in hanging:
                await receiver.arrived.wait()
        task = await running.submit(webhook=healthy.url())
        assert (await delivery(running, task.task_id, is_over))["status"] == "delivered"
        assert all(len(receiver.got) <= 3 for receiver in hanging)


async def test_gone_ends_every_delivery_to_that_address(running: rigs.Rig) -> None:
    gone = Receiver(answer=lambda number: b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")
    config = WebhookSettings(schedule_s=(0.01, 0.02), poll_s=0.05, per_host=1)
    async with receiving(gone):
        tasks = [await running.submit(webhook=gone.url()) for _ in range(3)]
        other = await running.submit(webhook=gone.url("/other"))
        for task in [*tasks, other]:
            await running.finished(task.task_id)
        async with sending(running, config=config):
            over = [await delivery(running, task.task_id, is_over) for task in [*tasks, other]]
    assert [(each["status"], each["last_status"]) for each in over] == [("dead", 410)] * 4
    assert len(gone.got) == 2, "one call for each address"


async def test_an_endpoint_that_asks_for_a_pause_is_left_alone(running: rigs.Rig) -> None:
    answers = [b"HTTP/1.1 429 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"]
    busy = Receiver(answer=lambda number: answers[0] if number == 1 else b"HTTP/1.1 204 No Content\r\n\r\n")
    config = WebhookSettings(schedule_s=(0.01, 0.02), poll_s=0.05, per_host=1)
    async with receiving(busy), sending(running, config=config):
        first = await running.submit(webhook=busy.url())
        refused = await delivery(running, first.task_id, lambda webhook: webhook["last_status"] == 429)
        began = asyncio.get_running_loop().time()
        second = await running.submit(webhook=busy.url())
        over = [await delivery(running, task.task_id, is_over) for task in (first, second)]
        waited = asyncio.get_running_loop().time() - began
    assert refused["status"] == "pending"
    assert [each["status"] for each in over] == ["delivered", "delivered"]
    assert waited > 0.5, "neither came before the pause was over"


async def test_a_scheme_in_capitals_is_as_good(running: rigs.Rig) -> None:
    async with receiving(Receiver()) as receiver, sending(running):
        task = await running.submit(webhook=receiver.url().replace("http", "HTTP"))
        assert (await delivery(running, task.task_id, is_over))["status"] == "delivered"


async def test_a_slow_receiver_times_out(running: rigs.Rig) -> None:
    config = WebhookSettings(schedule_s=(), timeout_s=0.05, poll_s=0.05)
    async with receiving(Receiver(hang=asyncio.Event())) as receiver, sending(running, config=config):
        task = await running.submit(webhook=receiver.url())
        webhook = await delivery(running, task.task_id, is_over)
    assert "did not answer within" in str(webhook["last_error"])


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1/", "http://169.254.169.254/latest", "http://2130706433/", "http://[::1]/", "http://0.0.0.0/", "x"]
)
async def test_a_private_url_is_refused_at_submission(running: rigs.Rig, url: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        await running.submit(webhook=url)
    assert caught.value.code == "webhook.url_refused"


async def test_an_address_that_is_no_longer_allowed_is_refused_at_sending(running: rigs.Rig) -> None:
    async with receiving(Receiver()) as receiver, sending(running, allow=egress.Allowance()):
        task = await running.submit(webhook=receiver.url())
        webhook = await delivery(running, task.task_id, is_over)
    assert (webhook["status"], receiver.got) == ("dead", [])
    assert "refused" in str(webhook["last_error"])


async def test_failed_and_cancelled_tasks_are_told_too(rig: rigs.Rig) -> None:
    async def fails(call: rigs.Call) -> None:
        call.begin()
        call.send("run.failed", {"code": "agent.failed", "kind": "agent_failed", "detail": "no"})
        call.end()

    async with receiving(Receiver()) as receiver, sending(rig):
        cancelled = await rig.submit(webhook=receiver.url())
        await rig.service.cancel(rigs.CALLER, cancelled.task_id)
        async with rigs.gateway(rig.socket, fails), rig.dispatcher():
            failed = await rig.submit(webhook=receiver.url())
            for task in (cancelled, failed):
                await delivery(rig, task.task_id, is_over)
    told = {(message := json.loads(body))["data"]["task_id"]: message["type"] for _, _, body in receiver.got}
    assert told == {cancelled.task_id: "task.cancelled", failed.task_id: "task.failed"}


async def test_a_delivery_whose_sender_died_is_sent_again(running: rigs.Rig) -> None:
    async with receiving(Receiver(hang=asyncio.Event())) as receiver:
        async with sending(running):
            task = await running.submit(webhook=receiver.url())
            await asyncio.wait_for(receiver.arrived.wait(), rigs.PATIENCE_S)
        held = (await running.service.show(rigs.CALLER, task.task_id)).webhook
        assert held is not None
        assert (held["status"], held["attempts"]) == ("pending", 1)
        with psycopg.connect(running.url) as connection:  # as if the hold were over
            connection.execute("UPDATE webhook_deliveries SET next_at = 0")
        receiver.hang = None
        async with sending(running):
            webhook = await delivery(running, task.task_id, is_over)
    assert (webhook["status"], webhook["attempts"]) == ("delivered", 2)


@asynccontextmanager
async def stacked(contexts: Iterable[AbstractAsyncContextManager[object]]) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for context in contexts:
            await stack.enter_async_context(context)
        yield


async def test_a_changed_secret_and_the_one_before_both_verify_for_a_day(running: rigs.Rig) -> None:
    async with receiving(Receiver()) as receiver, sending(running) as sender:
        before = await sender.secret(rigs.CALLER)
        after = await sender.rotate_secret(rigs.CALLER)
        assert after == await sender.secret(rigs.CALLER) != before
        task = await running.submit("value", webhook=receiver.url())
        await delivery(running, task.task_id, is_over)
        with psycopg.connect(running.url, autocommit=True) as connection:
            connection.execute("UPDATE webhook_keys SET rotated_at = rotated_at - 86401")
        later = await running.submit("value", webhook=receiver.url())
        await delivery(running, later.task_id, is_over)
    (_, during, first), (_, past, second) = receiver.got
    for secret in (before, after):
        assert standardwebhooks.Webhook(secret).verify(first, during)["type"] == "task.completed"
    assert standardwebhooks.Webhook(after).verify(second, past)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(before).verify(second, past)
