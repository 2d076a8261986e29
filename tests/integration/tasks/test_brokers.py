"""Queue messages that become tasks, with real brokers where the machine has them; Kafka with FastStream's own test broker."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rig as rigs

from nexus.core import errors
from nexus.kit import clock, egress
from nexus.ports import broker as ports
from nexus.ports import task_store as port
from nexus.providers import brokers
from nexus.stores.postgres import engine as engines
from nexus.stores.postgres import task_trigger_store
from nexus.tasks import listening, triggers
from nexus.wire import triggers as wire

LOOPBACK = egress.parse_allowance("127.0.0.0/8")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def program(*names: str) -> str:
    for name in names:
        if found := shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin"):
            return found
    pytest.skip(f"{names[0]} is not installed")


@contextlib.contextmanager
def running(command: list[str], port_number: int, folder: Path) -> Iterator[None]:
    with (folder / "broker.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
        try:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port_number), timeout=1):
                    break
                assert process.poll() is None, (folder / "broker.log").read_text()
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    number = free_port()
    command = [program("redis-server"), "--port", str(number), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with running(command, number, tmp_path):
        yield f"redis://127.0.0.1:{number}"


@pytest.fixture
def rabbit_url(tmp_path: Path) -> Iterator[str]:
    server, epmd = program("rabbitmq-server"), program("epmd")
    number, spread, names = free_port(), free_port(), free_port()
    home = tmp_path / "rabbit"
    home.mkdir()
    settings = {
        "HOME": str(home), "PATH": os.environ["PATH"] + ":/usr/sbin", "RABBITMQ_NODENAME": f"nexus{number}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1", "RABBITMQ_NODE_PORT": str(number), "RABBITMQ_DIST_PORT": str(spread),
        "RABBITMQ_MNESIA_BASE": str(home), "RABBITMQ_LOG_BASE": str(home), "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
        "ERL_EPMD_PORT": str(names), "RABBITMQ_PID_FILE": str(home / "pid"), "LANG": "C.UTF-8",
    }  # fmt: skip
    script = shutil.which("rabbitmq-server", path="/usr/lib/rabbitmq/bin") or server
    command = ["env", "-i", *(f"{key}={value}" for key, value in settings.items()), script]
    with running([epmd, "-port", str(names), "-address", "127.0.0.1"], names, home), running(command, number, tmp_path):
        yield f"amqp://guest:guest@127.0.0.1:{number}/"


@pytest.fixture
def nats_url(tmp_path: Path) -> Iterator[str]:
    number = free_port()
    command = [program("nats-server"), "-a", "127.0.0.1", "-p", str(number), "-js", "-sd", str(tmp_path)]
    with running(command, number, tmp_path):
        yield f"nats://127.0.0.1:{number}"


class Desk:
    """The listening process of a host, without the process."""

    def __init__(self, rig: rigs.Rig, store: task_trigger_store.PostgresTriggerStore, room: triggers.Triggers) -> None:
        self.rig, self.store, self.room = rig, store, room

    async def create(self, url: str, **more: Any) -> None:
        queue = {"url": url, "name": "jobs", **more}
        request = wire.TriggerParams.model_validate({"name": "in", "agent": "echo", "queue": queue})
        await self.room.create(rigs.CALLER, request)

    @contextlib.asynccontextmanager
    async def listening(self, broker: ports.Broker | None = None) -> AsyncIterator[None]:
        loop = listening.Listening(
            store=self.store, room=self.room, broker=broker or brokers.FastStreamBroker(), allowance=LOOPBACK, poll_s=0.1,
            reply_s=0.05,
        )  # fmt: skip
        task = asyncio.create_task(loop.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def tasks(self, count: int) -> list[port.Task]:
        return await self.until(lambda: self._page(), lambda found: len(found) >= count)

    async def _page(self) -> list[port.Task]:
        return list(await self.rig.store.page("default", agents=None, environment=None, phase=None, before=None, limit=100))

    async def until(self, look: Callable[[], Awaitable[Any]], enough: Callable[[Any], bool]) -> Any:
        async with asyncio.timeout(rigs.PATIENCE_S):
            while not enough(found := await look()):
                await asyncio.sleep(0.02)
        return found

    async def trigger(self) -> Any:
        return await self.store.fetch("default", "in")


@pytest.fixture
async def desk(rig: rigs.Rig) -> AsyncIterator[Desk]:
    async def resolve(caller: Any, agent: str, environment: str | None) -> str:
        return "production"

    async with engines.open_engine(rig.url, pool_size=4) as engine:
        store = task_trigger_store.PostgresTriggerStore(engine)
        room = triggers.Triggers(
            store=store, tasks=rig.store, resolve_target=resolve, allowance=LOOPBACK, key=b"t" * 32, origin="http://host",
            clock=clock.SystemClock(), settings=rigs.SETTINGS,
        )  # fmt: skip
        yield Desk(rig, store, room)


async def test_redis_streams(desk: Desk, redis_url: str, sockets: Path) -> None:
    import redis.asyncio

    async with redis.asyncio.Redis.from_url(redis_url) as client:
        await client.xadd("jobs", {"data": '{"n": 0}'})  # before anybody listened
        await desk.create(redis_url, reply="results")
        async with rigs.gateway(sockets / "door-0.sock", rigs.completes), desk.rig.dispatcher(), desk.listening():
            await desk.tasks(1)
            await client.xadd("jobs", {"n": "1", "correlation_id": "c-7"})
            await client.xadd("jobs", {"data": b"\xff\xfe"})
            tasks = await desk.tasks(2)
            dead = await desk.until(lambda: client.xrange("jobs.dead"), bool)
            results = await desk.until(lambda: client.xrange("results"), lambda found: len(found) >= 2)
            await desk.until(lambda: client.xpending("jobs", "nexus"), lambda found: not found["pending"])
    assert json.loads(dead[0][1][b"data"])["code"] == "trigger.poison"
    told = sorted((json.loads(entry[b"data"]) for _, entry in results), key=lambda entry: entry["created_at"])
    assert [entry["output"] for entry in told] == [{"n": 0}, {"n": "1", "correlation_id": "c-7"}]
    assert {entry["status"] for entry in told} == {"completed"}
    assert b"c-7" in [entry[b"correlation_id"] for _, entry in results]
    assert len(tasks) == 2
    trigger = await desk.trigger()
    assert (trigger.taken, trigger.refused, trigger.problem) == (2, 1, None)


async def test_nats_jetstream(desk: Desk, nats_url: str, sockets: Path) -> None:
    import nats

    client = await nats.connect(nats_url)
    try:
        stream = client.jetstream()
        await stream.add_stream(name="WORK", subjects=["jobs"])
        await stream.publish("jobs", b'{"n": 0}')
        replies = await client.subscribe("results")
        await desk.create(nats_url, stream="WORK", reply="results")
        async with rigs.gateway(sockets / "door-0.sock", rigs.completes), desk.rig.dispatcher(), desk.listening():
            await stream.publish("jobs", b"plain text", headers={"Nats-Msg-Id": "m-1"})
            await desk.tasks(2)
            told = [json.loads((await replies.next_msg(timeout=rigs.PATIENCE_S)).data)["output"] for _ in range(2)]
            assert sorted(map(str, told)) == ["plain text", "{'n': 0}"]

            async def unsettled() -> int:
                return int((await stream.consumer_info("WORK", "nexus-jobs")).num_ack_pending)

            await desk.until(unsettled, lambda count: count == 0)
    finally:
        await client.close()


@pytest.mark.slow
async def test_rabbitmq(desk: Desk, rabbit_url: str, sockets: Path) -> None:
    import aio_pika

    connection = await aio_pika.connect(rabbit_url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("jobs", durable=True)
        for body, name in ((b'{"n": 0}', "m-0"), (b'{"n": 0}', "m-0"), (b"\xff", "m-1")):
            message = aio_pika.Message(body, message_id=name, correlation_id=f"c-{name}", content_type="application/json")
            await channel.default_exchange.publish(message, routing_key="jobs")
        await desk.create(rabbit_url, reply="results")
        async with rigs.gateway(sockets / "door-0.sock", rigs.completes), desk.rig.dispatcher(), desk.listening():
            await desk.tasks(1)
            results = await channel.declare_queue("results", durable=True)
            dead = await channel.declare_queue("jobs.dead", durable=True)
            told = await desk.until(lambda: results.get(fail=False), bool)
            letter = await desk.until(lambda: dead.get(fail=False), bool)
        assert (json.loads(told.body)["output"], told.correlation_id) == ({"n": 0}, "c-m-0")
        assert json.loads(letter.body)["code"] == "trigger.poison"
        assert len(await desk.tasks(1)) == 1, "sent twice under one id, one task"
        assert (await queue.get(fail=False)) is None, "all acknowledged"


class Slow:
    """A broker that delivers what a test hands in, and knows what was acknowledged."""

    def __init__(self) -> None:
        self.acknowledged: list[str] = []
        self.published: list[tuple[str, bytes]] = []
        self.handle: ports.Handle | None = None
        self.lost = asyncio.Event()
        self.connections = 0

    @contextlib.asynccontextmanager
    async def listen(self, source: ports.Source, handle: ports.Handle) -> AsyncIterator["Slow"]:
        self.connections += 1
        self.lost.clear()
        self.handle = handle
        yield self

    async def deliver(self, message_id: str, body: bytes) -> None:
        while self.handle is None:
            await asyncio.sleep(0.01)
        await self.handle(ports.Message(body=body, id=message_id))
        self.acknowledged.append(message_id)

    async def publish(self, topic: str, body: bytes, *, correlation: str | None) -> None:
        self.published.append((topic, body))

    async def ended(self) -> str:
        await self.lost.wait()
        return "it was cut"


async def test_nothing_is_acknowledged_before_it_is_committed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    await desk.create("redis://127.0.0.1:1")
    broker, down = Slow(), True
    take = desk.store.take

    async def fails_at_first(*given: Any, **more: Any) -> Any:
        if down:
            raise errors.Unavailable("away", code="database.unavailable")
        return await take(*given, **more)

    monkeypatch.setattr(desk.store, "take", fails_at_first)
    async with desk.listening(broker):
        delivery = asyncio.create_task(broker.deliver("1", b"5"))
        await desk.until(desk.trigger, lambda found: found.problem is None)
        await asyncio.sleep(0)
        assert not broker.acknowledged
        down = False
        await asyncio.wait_for(delivery, rigs.PATIENCE_S)
        await broker.deliver("1", b"5")
        assert len(await desk.tasks(1)) == 1, "delivered twice, one task"
        broker.lost.set()
        await desk.until(lambda: asyncio.sleep(0, broker.connections), lambda count: count >= 2)
        await desk.room.set_active(rigs.CALLER, "in", active=False)
        await desk.until(
            lambda: asyncio.sleep(0, asyncio.all_tasks()), lambda tasks: not any("trg_" in t.get_name() for t in tasks)
        )


async def test_a_broker_that_is_away_is_a_problem_one_can_see(desk: Desk) -> None:
    await desk.create(f"redis://:geheim@127.0.0.1:{free_port()}")
    async with desk.listening():
        shown = await desk.until(desk.trigger, lambda found: found.problem is not None)
    assert "cannot be used" in shown.problem
    assert "geheim" not in shown.problem


async def test_a_missing_extra_names_the_command(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    await desk.create("kafka://127.0.0.1:9")
    monkeypatch.setattr(brokers.importlib, "import_module", absent)
    async with desk.listening():
        shown = await desk.until(desk.trigger, lambda found: found.problem is not None)
    assert "pip install 'nexus-agent-hosting[kafka]'" in shown.problem


@pytest.mark.parametrize("kind", ["kafka", "rabbit"])
async def test_the_others_by_their_test_broker(kind: str) -> None:
    import importlib

    module = importlib.import_module(f"faststream.{kind}")
    url = {"kafka": "kafka://me:secret@127.0.0.1:9,127.0.0.1:10", "rabbit": "amqp://127.0.0.1:9"}[kind]
    link = brokers._LINKS[kind](module, ports.Source(url=url, name="jobs", group="nexus"))
    seen: list[ports.Message] = []

    async def handle(message: ports.Message) -> None:
        seen.append(message)

    tester = getattr(module, f"Test{kind.capitalize()}Broker")
    for subscriber in link.subscribe():
        link.attach(subscriber, handle)
    async with tester(link.broker) as broker:
        await broker.publish(b'{"n": 1}', "jobs", correlation_id="c-1", **({"message_id": "m-1"} if kind == "rabbit" else {}))
    (message,) = seen
    assert (message.body, message.correlation) == (b'{"n": 1}', "c-1")
    assert message.id == ("m-1" if kind == "rabbit" else "jobs:0:0")
