"""Our queue without agents: what the store accepts, runs and logs in a second, and how soon an accepted task begins."""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from benchmarks.tasks import server

from nexus.core import ids
from nexus.core.phases import RunPhase
from nexus.kit import clock, guard
from nexus.ports import task_store as port
from nexus.stores.postgres import engine as engines
from nexus.stores.postgres import task_listener, task_store
from nexus.tasks import dispatcher, door, grouping, intake, tail

LANE = port.Lane(tenant="bench", agent="echo", environment="production")
CLIENTS = 32
RATE = 200.0
ANSWER = b'event: run.started\ndata: {}\n\nevent: run.completed\ndata: {"output": 1, "metadata": {}}\n\n'
Figures = dict[str, float]


@dataclass(slots=True)
class Bench:
    """One database under measurement. `cost` holds CPU µs of one task (or event): ours, PostgreSQL's."""

    url: str
    store: task_store.PostgresTaskStore
    figures: Figures = field(default_factory=dict)
    cost: dict[str, tuple[float, float]] = field(default_factory=dict)

    async def take(self, what: str, count: int, work: Callable[[], Awaitable[object]]) -> None:
        cpu, began = server.Cpu(self.url), time.perf_counter()
        await work()
        took = time.perf_counter() - began
        own, postgres = cpu.spent()
        self.figures[what] = count / took
        self.cost[what] = own / count * 1e6, postgres / count * 1e6


def submission() -> port.Submission:
    return port.Submission(id=ids.new_id(ids.TASK), lane=LANE, principal="key", body=b'{"input":1,"context":{}}', digest="d")


async def measure(url: str, count: int, batch: int) -> Bench:
    """All figures of the queue alone. The database is migrated; what it holds already stays."""
    async with engines.open_engine(url, pool_size=16) as engine:
        bench = Bench(url, task_store.PostgresTaskStore(engine))
        await bench.store.enlist("bench")
        few = max(CLIENTS, count // 4 // CLIENTS * CLIENTS)
        await bench.take("accepted, one commit each", few, lambda: _each(few, bench.store.submit))
        await _drain(bench.store)
        await bench.take("whole life, one commit each", few, lambda: _each(few, lambda entries: _life(bench.store, entries)))
        await bench.take("accepted one by one, grouped commits", count, lambda: _grouped(bench.store, count))
        await _drain(bench.store)
        await bench.take("accepted in batches", count, lambda: _batches(bench.store, count, batch))
        await _analyze(url)
        await bench.take("run to the end", count, lambda: _drain(bench.store))
        rates = bench.figures["accepted in batches"], bench.figures["run to the end"]
        bench.figures["whole life, grouped commits"] = 1 / (1 / rates[0] + 1 / rates[1])
        return bench


async def _each(count: int, store: Callable[[list[port.Submission]], Awaitable[object]]) -> None:
    async def client() -> None:
        for _ in range(count // CLIENTS):
            await store([submission()])

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def _life(store: task_store.PostgresTaskStore, entries: list[port.Submission]) -> None:
    """Stored as claimed, then finished: the two commits of a task that begins at once."""
    ((task, _),) = await store.submit(entries, owner="bench", start={entries[0].id})
    await store.write([_finish(task.id, 1, task.last_seq)])


async def _grouped(store: task_store.PostgresTaskStore, count: int) -> None:
    inbox: grouping.Grouped[port.Submission, intake.Made] = grouping.Grouped(store.submit, patient=False)

    async def one(entries: list[port.Submission]) -> None:
        await inbox.put(entries[0])

    async with guard.Loops() as loops:
        loops.start("inbox", inbox.run)
        await _each(count, one)


async def _batches(store: task_store.PostgresTaskStore, count: int, batch: int) -> None:
    for start in range(0, count, batch):
        await store.submit([submission() for _ in range(min(batch, count - start))])


async def _drain(store: task_store.PostgresTaskStore) -> None:
    while claims := await store.claim("bench", limit=500, per_lane=500, paused=()):
        await store.write([_finish(claim.id, claim.fence, claim.last_seq) for claim in claims])


def _finish(task_id: str, fence: int, last_seq: int) -> port.Finish:
    event = port.TaskEvent(seq=last_seq + 1, name="run.completed", data="{}")
    return port.Finish(task_id=task_id, fence=fence, phase=RunPhase.COMPLETED, event=event, output="1", metadata="{}")


async def _analyze(url: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("ANALYZE")


async def latency(url: str, *, seconds: float, elsewhere: bool) -> list[float]:
    """Milliseconds from the answer that a task is accepted to its run's arrival at a gateway, at 200/s; sorted.

    `elsewhere`: by a dispatcher that hears of it through the database only, as another node's does.
    """
    arrived: dict[str, float] = {}
    accepted: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="nxb-") as folder:
        socket = Path(folder) / "door.sock"
        async with engines.open_engine(url) as engine, engines.open_engine(url) as other, guard.Loops() as loops:
            gateway = await asyncio.get_running_loop().create_unix_server(lambda: _Gateway(arrived), str(socket))
            way = door.GatewayDoor(sockets=lambda: [socket], token="bench")
            store = task_store.PostgresTaskStore(engine)
            owner = ids.new_id("own")
            runner = dispatcher.Dispatcher(store=store, door=way, owner=owner, clock=clock.SystemClock())
            ears = task_listener.Listener(
                url=url, channels=[task_listener.CHANNEL_QUEUE], receive=lambda *_: runner.wake(), owner=owner
            )
            loops.start("ears", ears.run)
            async with runner:
                inlet = (
                    intake.Intake(store=task_store.PostgresTaskStore(other), submitted=lambda: None)
                    if elsewhere
                    else intake.Intake(store=store, submitted=runner.wake, runner=runner)
                )
                inbox: grouping.Grouped[port.Submission, intake.Made] = grouping.Grouped(inlet.store, patient=False)
                loops.start("inbox", inbox.run)

                async def one() -> None:
                    entry = submission()
                    await inbox.put(entry)
                    accepted[entry.id] = time.perf_counter()

                await _open_loop(one, RATE, seconds)
                async with asyncio.timeout(60):
                    while len(arrived) < len(accepted):
                        await asyncio.sleep(0.05)
            gateway.close()
    return sorted(max(0.0, arrived[task] - at) * 1000 for task, at in accepted.items())


async def _open_loop(one: Callable[[], Awaitable[None]], rate: float, seconds: float) -> None:
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            group.create_task(one())  # type: ignore[arg-type]


class _Gateway(asyncio.Protocol):
    """Answers every run at once with its two events, on connections that are kept."""

    def __init__(self, arrived: dict[str, float]) -> None:
        self._arrived = arrived
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields[b"content-length"])
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        self._arrived[fields[b"nexus-run-id"].decode()] = time.perf_counter()
        self._transport.write(  # type: ignore[attr-defined]
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
        )


async def events(url: str, *, count: int, tasks: int = 200, burst: int = 25) -> Bench:
    """Events appended in a second: `tasks` runs write `burst` at a time, as runs that stream do; each waits for its commit."""
    async with engines.open_engine(url) as engine:
        bench = Bench(url, task_store.PostgresTaskStore(engine))
        await bench.store.enlist("bench")
        running = await _running(bench.store, tasks)
        writer: grouping.Grouped[port.Write, bool] = grouping.Grouped(bench.store.write, patient=True)
        async with guard.Loops() as loops:
            loops.start("writer", writer.run)

            async def work() -> None:
                rounds = count // tasks // burst
                await asyncio.gather(*(_append(writer, task, rounds, burst) for task in running))

            await bench.take("events appended", count // tasks // burst * tasks * burst, work)
        await bench.store.write([_finish(task, 1, count) for task in running])
        return bench


async def _append(writer: "grouping.Grouped[port.Write, bool]", task_id: str, rounds: int, burst: int) -> None:
    for turn in range(rounds):
        numbered = range(turn * burst + 1, (turn + 1) * burst + 1)
        entries = tuple(port.TaskEvent(seq=seq, name="message.delta", data='{"text": "a few words "}') for seq in numbered)
        if not await writer.put(port.Append(task_id=task_id, fence=1, events=entries)):
            raise SystemExit("an append was refused")


async def _running(store: task_store.PostgresTaskStore, count: int) -> list[str]:
    wanted = [submission() for _ in range(count)]
    made = await store.submit(wanted, owner="bench", start={entry.id for entry in wanted})
    if any(task.phase is not RunPhase.RUNNING for task, _ in made):
        raise SystemExit("a task could not be started; does something wait in the queue?")
    return [task.id for task, _ in made]


async def readers(url: str, *, count: int, tasks: int, rounds: int) -> Figures:
    """`count` live readers follow `tasks` runs that log 10 events a second each: lag of an event, what writing it takes."""
    lags: list[float] = []
    waits: list[float] = []
    async with engines.open_engine(url) as engine, guard.Loops() as loops:
        store, wakeups = task_store.PostgresTaskStore(engine), tail.Wakeups()
        await store.enlist("bench")

        def hear(channel: str, payload: str) -> None:
            for task_id in payload.split(","):
                wakeups.wake(task_id)

        ears = task_listener.Listener(url=url, channels=[task_listener.CHANNEL_EVENTS], receive=hear)
        loops.start("ears", ears.run)
        running = await _running(store, tasks)

        async def follow(task_id: str) -> None:
            async for event in tail.tail(store, wakeups, task_id, after=0):
                if event is not None and event.name == "tick":
                    lags.append((time.time() - float(event.data)) * 1000)  # noqa: PERF401 - the time counts

        following = [asyncio.create_task(follow(running[number % tasks])) for number in range(count)]
        await asyncio.sleep(1.0)
        cpu = server.Cpu(url)
        for turn in range(rounds):
            began = time.perf_counter()
            event = port.TaskEvent(seq=turn + 1, name="tick", data=str(time.time()))
            await store.write([port.Append(task_id=task, fence=1, events=(event,)) for task in running])
            waits.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(max(0.0, 0.1 - (time.perf_counter() - began)))
        await store.write([_finish(task, 1, rounds) for task in running])
        await asyncio.gather(*following)
        own, postgres = cpu.spent()
    lags.sort()
    return {
        "readers": count,
        "events read": len(lags),
        "lag p50 (ms)": statistics.median(lags),
        "lag p99 (ms)": lags[int(len(lags) * 0.99)],
        "write p50 (ms)": statistics.median(waits),
        "CPU us of an event read": own / len(lags) * 1e6,
        "of it PostgreSQL": postgres / len(lags) * 1e6,
    }


def fill(url: str, count: int) -> None:
    """So many finished tasks, with two events each, as a host that ran for long has them."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            """
            INSERT INTO tasks (id, tenant, agent, environment, principal, body, digest, session_id, phase, fence, attempt,
              last_seq, output, metadata, created_at, started_at, finished_at, progress)
            SELECT 'task_0' || lpad(n::text, 25, '0'), 'bench', 'agent-' || n %% 50, 'production', 'key', '\\x7b7d', 'd',
              'ses_' || n, 'completed', 1, 1, 2, '"some words as they come back from an agent"', '{"tokens_used": 12}',
              nexus_now() - 86400 + n / 20.0, nexus_now() - 86400 + n / 20.0, nexus_now() - 86400 + n / 20.0, 100
            FROM generate_series(1, %(count)s) AS n
            """,
            {"count": count},
        )
        connection.execute(
            """
            INSERT INTO task_events (task_id, seq, name, data, at)
            SELECT t.id, e.seq, e.name, '{"run_id": "x", "output": "some words as they come back"}', t.finished_at
            FROM tasks t, (VALUES (1, 'run.started'), (2, 'run.completed')) AS e(seq, name) WHERE t.id LIKE 'task\\_00000%%'
            """,
            {},
        )
        connection.execute("VACUUM ANALYZE")
