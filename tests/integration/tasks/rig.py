"""A gateway that does what a test scripts, on a real unix socket, and dispatchers on a real PostgreSQL."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from nexus.apps import dispatching
from nexus.core import principals
from nexus.core.phases import RunPhase, is_terminal
from nexus.kit import clock, egress, guard
from nexus.ports import task_store as port
from nexus.stores.postgres import engine as engines
from nexus.stores.postgres import task_listener, task_store
from nexus.tasks import dispatcher, door, service, settings, tail
from nexus.wire import params, views

CALLER = principals.Principal(id="key_1", tenant="default", roles=frozenset({principals.Role.DEVELOPER}))
SETTINGS = settings.TaskSettings(
    beat_s=0.1, lease_s=3.0, orphan_s=0.5, poll_s=0.2,
    retry=settings.backoff.Backoff(first_s=0.02, longest_s=0.05), defer=settings.backoff.Backoff(first_s=0.05, longest_s=0.1),
)  # fmt: skip
PATIENCE_S = 60.0


@dataclass(slots=True)
class Call:
    """One run as the gateway saw it. `closed` is set when the dispatcher let go of the connection."""

    agent: str
    fields: dict[str, str]
    body: dict[str, object]
    writer: asyncio.StreamWriter
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def attempt(self) -> int:
        return int(self.fields["nexus-attempt"])

    def begin(self) -> None:
        self.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")

    def send(self, name: str, data: object, number: int = 1) -> None:
        text = f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode()
        self.writer.write(b"%x\r\n%s\r\n" % (len(text), text))

    def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")

    def answer(self, status: int, body: object, extra: str = "") -> None:
        text = json.dumps(body).encode()
        self.writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{extra}Content-Length: {len(text)}\r\n\r\n".encode() + text
        )

    def complete(self, output: object = "done") -> None:
        self.begin()
        self.send("run.started", {"attempt": self.attempt})
        self.send("run.completed", {"output": output, "metadata": {"tokens_used": 3}}, 2)
        self.end()


Script = Callable[[Call], Awaitable[None]]


@dataclass(slots=True)
class FakeGateway:
    """`script` decides about each run; `calls` holds all of them in order; `active` counts runs of each task at once."""

    path: Path
    script: Script
    calls: list[Call] = field(default_factory=list)
    most_at_once: dict[str, int] = field(default_factory=dict)
    _active: dict[str, int] = field(default_factory=dict)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request, *lines = head.strip().split("\r\n")
        fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = json.loads(await reader.readexactly(int(fields["content-length"])))
        call = Call(agent=request.split()[1].split("/")[2], fields=fields, body=body, writer=writer)
        task_id = fields["nexus-run-id"]
        self.calls.append(call)
        self._active[task_id] = self._active.get(task_id, 0) + 1
        self.most_at_once[task_id] = max(self.most_at_once.get(task_id, 0), self._active[task_id])
        watching = asyncio.ensure_future(self._watch(reader, call))
        try:
            await self.script(call)
            await writer.drain()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._active[task_id] -= 1
            writer.close()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self, reader: asyncio.StreamReader, call: Call) -> None:
        with suppress(OSError):
            await reader.read()
        call.closed.set()


@asynccontextmanager
async def gateway(path: Path, script: Script) -> AsyncIterator[FakeGateway]:
    fake = FakeGateway(path=path, script=script)
    server = await asyncio.start_unix_server(fake.serve, path)
    try:
        yield fake
    finally:
        server.close()
        for call in fake.calls:
            call.writer.transport.abort()
        await asyncio.sleep(0)


async def completes(call: Call) -> None:
    call.complete(call.body["input"])


@dataclass(slots=True)
class Rig:
    url: str
    socket: Path
    store: task_store.PostgresTaskStore
    service: service.TaskService
    wakeups: tail.Wakeups

    async def submit(self, value: object = 1, agent: str = "echo", **more: object) -> views.TaskView:
        request = params.SubmitParams.model_validate({"input": value, **{k: v for k, v in more.items() if k != "key"}})
        return await self.service.submit(CALLER, agent, request, idempotency_key=more.get("key"))  # type: ignore[arg-type]

    async def finished(self, task_id: str) -> views.TaskView:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                view = await self.service.show(CALLER, task_id)
                if is_terminal(RunPhase(view.status)):
                    return view
                await asyncio.sleep(0.02)

    async def events(self, task_id: str) -> list[port.TaskEvent]:
        return list(await self.store.events_after(task_id, 0, limit=1000))

    @asynccontextmanager
    async def dispatcher(
        self, owner: str = "o1", *, listen: bool = True, config: settings.TaskSettings = SETTINGS
    ) -> AsyncIterator[dispatcher.Dispatcher]:
        way = door.GatewayDoor(sockets=lambda: [self.socket], token="nxs_test")
        runner = dispatcher.Dispatcher(store=self.store, door=way, owner=owner, clock=clock.SystemClock(), settings=config)

        def receive(channel: str, payload: str) -> None:
            dispatching.hear(runner, channel, payload)
            if channel in ("", task_listener.CHANNEL_EVENTS):
                for task_id in payload.split(","):
                    self.wakeups.wake(task_id)

        channels = [*dispatching.CHANNELS, task_listener.CHANNEL_EVENTS]
        async with guard.Loops() as loops:
            if listen:
                ears = task_listener.Listener(url=self.url, channels=channels, receive=receive, owner=owner)
                loops.start(f"listener {owner}", ears.run)
            async with runner:
                yield runner


@asynccontextmanager
async def open_rig(url: str, folder: Path) -> AsyncIterator[Rig]:
    async def resolve(caller: principals.Principal, agent: str, environment: str | None) -> str:
        return environment or "production"

    async with engines.open_engine(url, pool_size=8) as engine:
        store = task_store.PostgresTaskStore(engine)
        wakeups = tail.Wakeups()
        rooms = service.TaskService(
            store=store,
            resolve_target=resolve,
            wakeups=wakeups,
            allowance=egress.parse_allowance("127.0.0.0/8"),
            settings=SETTINGS,
        )
        async with rooms:
            yield Rig(url=url, socket=folder / "door-0.sock", store=store, service=rooms, wakeups=wakeups)
