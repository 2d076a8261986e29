"""Records into a real PostgreSQL and out again; spans to a collector on a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import parser

from nexus.core import deployments, errors, principals
from nexus.ports import session_usage
from nexus.stores.postgres import engine as engines
from nexus.stores.postgres import run_store, session_store
from nexus.tasks import sessions
from nexus.telemetry import metric_push, metrics, records, traces

CALLER = principals.Principal(id="key_1", tenant="default", roles=frozenset({principals.Role.ADMIN}))
OWNER = deployments.InstanceOwner(
    instance_id="ins_1", tenant="default", agent="echo", environment="production", deployment_id="dep_1", version="1.0.0"
)
RUN = {
    "kind": "run", "id": "run_1", "tenant": "default", "agent": "echo", "environment": "production", "deployment_id": "dep_1",
    "version": "1", "instance_id": "ins_1", "session_id": "s", "principal": "p", "mode": "sync", "outcome": "completed",
    "status": 200, "started_at": 1000.5, "duration_s": 0.1, "bytes_in": 1, "bytes_out": 2, "trace_id": "ab",
}  # fmt: skip
MODEL = {
    "kind": "model", "run_id": "run_1", "tenant": "default", "agent": "echo", "environment": "production", "instance_id": "ins_1",
    "model": "m", "provider": "p", "input_tokens": 7, "output_tokens": 5, "status": 200,
    "started_at": 1000.55, "duration_s": 0.01,
}  # fmt: skip


class Book:
    def __init__(self, store: run_store.PostgresRunStore) -> None:
        self.metrics = metrics.Metrics()
        self.sink = records.RecordSink(store=store, metrics=self.metrics)
        self.history = records.RunHistory(store=store)

    def total(self, name: str) -> float:
        text = self.metrics.render(CALLER, {}).decode()
        families = parser.text_string_to_metric_families(text)
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)


@pytest.fixture
async def book(postgres_url: str) -> AsyncIterator[Book]:
    async with engines.open_engine(postgres_url, pool_size=3) as engine:
        yield Book(run_store.PostgresRunStore(engine))


async def test_a_batch_that_comes_twice_is_stored_and_counted_once(book: Book) -> None:
    for _ in range(2):
        await book.sink.store([RUN, MODEL, MODEL, {"kind": "nonsense"}, {**MODEL, "provider": "", "input_tokens": 99}])
    (shown,) = (await book.history.list(CALLER)).items
    assert (shown.id, shown.input_tokens, shown.output_tokens, shown.outcome) == ("run_1", 7, 5, "completed")
    assert (book.total("agent_requests_total"), book.total("agent_tokens_total")) == (1, 12)


async def test_runs_carry_what_they_sent_by_themselves_where_that_is_known(book: Book) -> None:
    asked: list[tuple[str, list[str]]] = []

    async def network(instance_id: str, run_ids: Any) -> dict[str, tuple[int, int]]:
        asked.append((instance_id, list(run_ids)))
        if instance_id == "ins_away":
            raise errors.Unavailable("the node is away", code="driver.unreachable")
        return {"run_1": (700, 30)}

    book.sink.network = network
    await book.sink.store([RUN, {**RUN, "id": "run_2"}, {**RUN, "id": "run_3", "instance_id": "ins_away"}])
    assert asked == [("ins_1", ["run_1", "run_2"]), ("ins_away", ["run_3"])]
    shown = {run.id: (run.network_in, run.network_out, run.bytes_in) for run in (await book.history.list(CALLER)).items}
    assert shown == {"run_1": (700, 30, 1), "run_2": (None, None, 1), "run_3": (None, None, 1)}
    grown = session_usage.Grown(tenant="default", agent="echo", environment="production", cpu_s=2.5, bytes_in=700, bytes_out=30)
    book.metrics.count_usage([grown])
    assert (book.total("agent_bytes_total"), book.total("agent_cpu_seconds_total")) == (3 * (1 + 2) + 730, 2.5)


async def test_attempts_of_a_task_are_runs_of_their_own(book: Book) -> None:
    await book.sink.store([{**RUN, "outcome": "failed"}, {**RUN, "started_at": 1010.0}, MODEL])
    shown = (await book.history.list(CALLER)).items
    assert [(run.outcome, run.input_tokens) for run in shown] == [("completed", 0), ("failed", 7)]
    assert (await book.history.show(CALLER, "run_1")).started_at == 1010.0


async def test_history_is_paged_filtered_and_the_tenants_own(book: Book) -> None:
    await book.sink.store([{**RUN, "id": f"run_{n}", "started_at": 1000.0 + n // 2, "agent": f"a{n % 2}"} for n in range(6)])
    await book.sink.store([{**RUN, "id": "theirs", "tenant": "other"}])
    seen: list[str] = []
    cursor = None
    while True:
        page = await book.history.list(CALLER, limit=2, cursor=cursor)
        seen += [run.id for run in page.items]
        if (cursor := page.next) is None:
            break
    assert seen == ["run_5", "run_4", "run_3", "run_2", "run_1", "run_0"]
    assert [run.id for run in (await book.history.list(CALLER, agent="a1", limit=2)).items] == ["run_5", "run_3"]
    with pytest.raises(errors.NotFound):
        await book.history.show(CALLER, "theirs")
    for cursor in ("x", "nan~run_1", "1~", "~"):
        with pytest.raises(errors.Invalid):
            await book.history.list(CALLER, cursor=cursor)


async def test_session_state_is_kept_per_instance_owner(postgres_url: str) -> None:
    async with engines.open_engine(postgres_url, pool_size=2) as engine:
        states = sessions.SessionStates(store=session_store.PostgresSessionStore(engine))
        with pytest.raises(errors.NotFound) as caught:
            await states.fetch(OWNER, "s1")
        assert caught.value.code == "state.not_found"
        assert await states.put(OWNER, "s1", b'{"n": 1, "t": "\\u0000\\ud800"}') == 1
        assert await states.put(OWNER, "s1", b'{"n": 2}') == 2
        found = await states.fetch(OWNER, "s1")
        assert (found.state, found.version) == ('{"n":2}', 2)
        stranger = deployments.InstanceOwner(
            instance_id="ins_2", tenant="other", agent="echo", environment="production", deployment_id="dep_2", version="1"
        )
        with pytest.raises(errors.NotFound):
            await states.fetch(stranger, "s1")
        for body, code in (
            (b"[]", "state.invalid"), (b"{", "state.invalid"), (b'{"a":NaN}', "state.invalid"), (b"\xff", "state.invalid"),
            (b'{"a":' * 100_000, "state.invalid"), (b" " * (1024 * 1024 + 1), "state.too_large"),
        ):  # fmt: skip
            with pytest.raises(errors.Invalid) as refused:
                await states.put(OWNER, "s1", body)
            assert refused.value.code == code
        with pytest.raises(errors.Invalid):
            await states.fetch(OWNER, "a/b")


class Collector:
    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.arrived = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        self.got.append((fields, await reader.readexactly(int(fields["content-length"]))))
        status = self.statuses.pop(0) if self.statuses else 200
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        await writer.drain()
        writer.close()
        self.arrived.set()


@asynccontextmanager
async def collecting(collector: Collector) -> AsyncIterator[Collector]:
    server = await asyncio.start_server(collector.serve, "127.0.0.1", 0)
    collector.port = server.sockets[0].getsockname()[1]
    yield collector
    server.close()


def spans(number: int = 0) -> bytes:
    return b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"%032d","name":"process_input"}]}]}]}' % number


async def settle(forwarder: traces.TraceForwarder, count: int) -> None:
    async with asyncio.timeout(20):
        while forwarder.forwarded + forwarder.dropped < count:
            await asyncio.sleep(0.01)


def settings(collector: Collector, **more: Any) -> traces.TraceSettings:
    parsed = traces.parse_settings(endpoint=f"http://127.0.0.1:{collector.port}", traces_endpoint=None, headers="x-key=secret")
    return traces.TraceSettings(endpoint=parsed.endpoint, headers=parsed.headers, **more)


async def test_spans_reach_the_collector_marked_and_are_tried_again(book: Book) -> None:
    async with collecting(Collector(503)) as collector, traces.TraceForwarder(settings=settings(collector)) as forwarder:
        forwarder.take(OWNER, spans(), content_type="application/json")
        await settle(forwarder, 1)
    assert (forwarder.forwarded, forwarder.dropped, len(collector.got)) == (1, 0, 2)
    fields, body = collector.got[-1]
    assert (fields["x-key"], fields["content-type"]) == ("secret", "application/json")
    assert b'"nexus.agent"' in body
    assert b"process_input" in body


async def test_each_model_call_is_one_span_however_often_it_is_reported(postgres_url: str) -> None:
    async with (
        engines.open_engine(postgres_url, pool_size=2) as engine,
        collecting(Collector()) as collector,
        traces.TraceForwarder(settings=settings(collector)) as forwarder,
    ):
        store = run_store.PostgresRunStore(engine)
        sink = records.RecordSink(store=store, metrics=metrics.Metrics(), traced=forwarder.take_model_calls)
        call = {**MODEL, "id": "call_1", "path": "chat/completions", "trace_id": "c" * 32, "parent_span_id": "d" * 16}
        for _ in range(3):
            await sink.store([RUN, call])
        await settle(forwarder, 1)
    ((_, body),) = collector.got
    assert body.count(b'"spanId"') == 1
    assert b'"traceId":"%b"' % (b"c" * 32) in body
    assert b'"parentSpanId":"%b"' % (b"d" * 16) in body


async def test_metrics_reach_the_collector_and_a_collector_that_is_away_does_no_harm() -> None:
    counted = metrics.Metrics()
    counted.count_model_calls([{**MODEL, "path": "chat/completions"}])
    async with collecting(Collector()) as collector:
        endpoint = f"http://127.0.0.1:{collector.port}/v1/metrics"
        pusher = metric_push.MetricPusher(metrics=counted, settings=traces.MetricSettings(endpoint=endpoint))
        assert await pusher.push()
    ((fields, body),) = collector.got
    assert fields["content-type"] == "application/json"
    assert b"gen_ai.client.operation.duration" in body
    assert not await pusher.push()


async def test_spans_a_collector_refuses_or_cannot_take_are_dropped_and_counted() -> None:
    async with collecting(Collector(400)) as collector, traces.TraceForwarder(settings=settings(collector)) as forwarder:
        forwarder.take(OWNER, spans(), content_type="application/json")
        await settle(forwarder, 1)
        assert (forwarder.forwarded, forwarder.dropped) == (0, 1)
    away = Collector()
    async with collecting(away):
        pass
    async with traces.TraceForwarder(settings=settings(away, queue=2, tries=1)) as forwarder:
        for number in range(5):
            forwarder.take(OWNER, spans(number), content_type="application/json")
        assert forwarder.dropped >= 3
        await settle(forwarder, 5)
    assert forwarder.forwarded == 0


async def test_without_a_collector_spans_are_dropped_politely() -> None:
    async with traces.TraceForwarder(settings=traces.TraceSettings()) as forwarder:
        forwarder.take(OWNER, spans(), content_type="application/json")
    assert (forwarder.forwarded, forwarder.dropped) == (0, 0)
