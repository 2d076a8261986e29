"""What Python costs for a run at the gateway, without sockets: protocols with transports that do nothing, and the parts alone.

    python benchmarks/gateway/parts.py [--rounds 30]

Prints the least of many rounds, in nanoseconds of CPU: other work on the machine moves it little. What `run.py` shows beyond it
is the kernel's part, and uvloop's.
"""

import argparse
import asyncio
import gc
import random
import socket
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import uvloop

from nexus.gateway import balance, limits, process, routes, server, settings, upstream
from nexus.kit import home, keys

CONNECTIONS, RUNS, FLYING = 64, 6400, 16
BODY = b'{"output": "' + b"x" * 75 + b'"}'
ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Fri, 20 Nov 2026 09:00:00 GMT\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\nConnection: keep-alive\r\n\r\n%b" % (len(BODY), BODY)
)


class Sink:
    """A transport that forgets what it is given."""

    def __init__(self) -> None:
        self.socket, self.peer = socket.socketpair()

    def get_extra_info(self, name: str) -> object:
        return self.socket if name == "socket" else ("127.0.0.1", 1)

    def set_write_buffer_limits(self, high: int) -> None: ...

    def is_closing(self) -> bool:
        return False

    def is_reading(self) -> bool:
        return True

    def write(self, data: bytes) -> None: ...


def request(key: str, number: int) -> bytes:
    body = b'{"input": "%b", "context": {}}' % (b"x" * (60 + number % 120))
    return (
        b"POST /agents/echo/run HTTP/1.1\r\nHost: 127.0.0.1:8700\r\nContent-Type: application/json\r\nAccept: */*\r\n"
        b"User-Agent: python-httpx/0.28.1\r\nAuthorization: Bearer %b\r\nNexus-Session-Id: customer-%d\r\n"
        b"Content-Length: %d\r\n\r\n%b"
        % (key.encode(), number, len(body), body)
    )


def entries(key: str) -> dict[str, object]:
    return {
        f"key/{keys.hash_key(key)}": {
            "id": "key_1", "tenant": "acme", "roles": ["runner"], "environment": None, "agents": None, "expires_at": None,
            "requests_per_minute": 1_000_000_000,
        },
        "deployment/acme/echo/production": {
            "id": "dep_1", "revision": 1, "balancer": "least-connections", "timeout_s": 60, "wait_s": 1, "max_queue": 10,
            "max_concurrency": 100000,
            "instances": [{"id": f"ins_{name}", "address": f"unix:/{name}", "version": "1"} for name in "abcd"],
        },
    }  # fmt: skip


async def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        node = home.Home(Path(folder))
        node.run.mkdir(mode=0o700)
        here = process.build_world(settings.Settings(home=node))
        key = keys.new_key()
        here.swap(routes.plan_snapshot(here.table, {"epoch": "e", "version": 1, "entries": entries(key)}))
        clients = []
        for _ in range(CONNECTIONS):
            client = server.ClientConnection(here, inside=False)
            client.connection_made(Sink())  # type: ignore[arg-type]
            clients.append(client)
        for name in "abcd":
            for _ in range(2 * FLYING):
                connection = upstream.Upstream(here.pool, f"unix:/{name}")
                connection.connection_made(Sink())  # type: ignore[arg-type]
                here.pool.give_back(connection)
        flying: list[upstream.Upstream] = []
        watch_pool(here.pool, flying)
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        requests = [request(key, number) for number in range(10_000)]
        turns = sorted(measure(here, clients, requests, flying) for _ in range(rounds))
        whole, there, back = turns[0]
        median = turns[len(turns) // 2][0]
        print(f"a run: {whole:.0f} ns, to the worker {there:.0f}, back to the client {back:.0f} (median round {median:.0f})")
        measure_parts(here, clients[0], requests[0])
        here.rates.close()


def watch_pool(pool: upstream.Pool, flying: list[upstream.Upstream]) -> None:
    """Note every connection that is taken."""
    take = pool.take

    def noted(address: str, now: float) -> upstream.Upstream | None:
        connection = take(address, now)
        if connection is not None:
            flying.append(connection)
        return connection

    pool.take = noted  # type: ignore[method-assign]


def measure(here, clients, requests, flying) -> tuple[float, float, float]:  # type: ignore[no-untyped-def]
    """Nanoseconds of a run, of its way there and of its way back, with a few runs under way at a time."""
    there = back = 0
    for _ in range(RUNS // FLYING):
        flying.clear()
        chosen, sent = random.sample(clients, FLYING), random.choices(requests, k=FLYING)
        began = time.process_time_ns()
        for client, data in zip(chosen, sent, strict=True):
            client.data_received(data)
        reached = time.process_time_ns()
        for connection in list(flying):
            connection.data_received(ANSWER)
        there, back = there + reached - began, back + time.process_time_ns() - reached
    here.outbox._waiting.clear()
    return (there + back) / RUNS, there / RUNS, back / RUNS


def measure_parts(here, client, data) -> None:  # type: ignore[no-untyped-def]
    admission = client.shape.meaning.admission
    deployment, now = admission.deployment, time.monotonic()
    first = deployment.instances[0]
    parts: dict[str, Callable[[], object]] = {
        "reading the request (its shape is known)": lambda: client.shape.fit(data),
        "  the same, line by line": lambda: here.reader.read_request(data),
        "choosing the session's instance": lambda: balance.decide_instance(deployment, session_id="customer-1", now=now),
        "a warm connection, and giving it back": lambda: here.pool.keep(here.pool.take(first.address, now)),
        "counting against the limit": lambda: here.rates.take_all(admission.limits, now),
        "telling what is left of it": lambda: limits.render(admission.limits[0], 59.3),
        "a run id": lambda: here.minter.run_id_bytes(1e9),
        "a trace id": here.minter.traceparent_bytes,
        "reading the answer (its shape is known)": lambda: first.shape.fit(ANSWER),
        "  the same, line by line ": lambda: here.reader.read_answer(ANSWER),
        "noting how it went": lambda: balance.note_answer(first, latency_s=0.001, failed=False),
        "keeping the record": lambda: here.outbox.add(b"{}"),
    }
    for name, part in parts.items():
        print(f"  {name:44} {min(timeit.repeat(part, number=5000, repeat=9)) / 5000 * 1e9:6.0f} ns")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=30)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(options.parse_args().rounds))
