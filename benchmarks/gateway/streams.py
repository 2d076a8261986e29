"""Event streams through one gateway process: memory of an idle stream, CPU of an event, time to the first event.

    python benchmarks/gateway/streams.py [--streams 9500] [--seconds 4]

Idle streams got one event and then wait. Paced ones get 50 events a second each. The first event is timed one stream at a time,
direct and through the gateway in turn.
"""

import argparse
import asyncio
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import run as bench
import uvloop

from nexus.kit import home, keys

BACKEND = """
import asyncio, resource, sys, uvloop
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
HEAD = b'HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n'
EVENT = b'id: 1\\nevent: message.delta\\ndata: {"text": "' + b'x' * 60 + b'"}\\n\\n'
CHUNK = b'%x\\r\\n%b\\r\\n' % (len(EVENT), EVENT)
class Stream(asyncio.Protocol):
    def connection_made(self, transport): self.transport, self.data, self.timer = transport, b'', None
    def data_received(self, data):
        self.data += data
        if b'{}' not in self.data: return
        wanted, once = b'x-events:' in self.data.lower(), b'x-once:' in self.data.lower()
        self.data = b''
        self.transport.write(HEAD + CHUNK)
        if once: asyncio.get_running_loop().call_later(0.001, self.transport.write, b'0\\r\\n\\r\\n')
        if wanted: self.tick()
    def tick(self):
        self.timer = asyncio.get_running_loop().call_later(0.02, self.tick)
        self.transport.write(CHUNK)
    def connection_lost(self, error):
        if self.timer: self.timer.cancel()
async def main():
    server = await asyncio.get_running_loop().create_unix_server(Stream, sys.argv[1], backlog=8192)
    await server.serve_forever()
uvloop.run(main())
"""


class Reader(asyncio.Protocol):
    """Sends one request; `first` is done when an event came, `events` counts them."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.first: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()
        self.events = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.began = time.perf_counter()
        transport.write(self.request)  # type: ignore[attr-defined]

    def again(self) -> None:
        """Another stream on the same connection."""
        self.first, self.events = asyncio.get_running_loop().create_future(), 0
        self.ended.clear()
        self.connection_made(self.transport)

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"0\r\n\r\n"):
            self.ended.set()
        self.events += data.count(b"event:")
        if self.events and not self.first.done():
            self.first.set_result(time.perf_counter() - self.began)


async def measure(given: argparse.Namespace, folder: Path, children: list["subprocess.Popen[bytes]"]) -> None:
    node = home.Home(folder)
    node.run.mkdir(mode=0o700)
    upstream = folder / "events.sock"
    children.append(subprocess.Popen([sys.executable, "-c", BACKEND, str(upstream)]))
    key = keys.new_key()
    bench.serve_feed(node, key, upstream)
    port = bench.free_port()
    environ = {"PATH": os.environ["PATH"], "NEXUS_HOME": str(folder), "NEXUS_PORT": str(port)}
    gateway = subprocess.Popen([sys.executable, "-m", "nexus.apps.gateway"], env=environ, stderr=(folder / "log").open("ab"))
    children.append(gateway)
    await asyncio.to_thread(bench.wait_for, lambda: upstream.exists() and bench.healthy(node.door_socket(0)))
    loop = asyncio.get_running_loop()

    def request(extra: str = "") -> bytes:
        start = f"POST /agents/echo/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
        return f"{start}{extra}Content-Length: 2\r\n\r\n{{}}".encode()

    async def open_one(extra: str = "") -> Reader:
        _, one = await loop.create_connection(lambda: Reader(request(extra)), "127.0.0.1", port)
        await asyncio.wait_for(one.first, 30)
        return one

    firsts: dict[str, list[float]] = {"direct": [], "gateway": []}
    _, direct = await loop.create_unix_connection(lambda: Reader(request("x-once: 1\r\n")), str(upstream))
    sides = {"direct": direct, "gateway": await open_one("x-once: 1\r\n")}
    for _ in range(500):
        for side, one in sides.items():
            await asyncio.wait_for(one.ended.wait(), 10)
            one.again()
            firsts[side].append(await one.first)
    paced = [await open_one("x-events: 1\r\n") for _ in range(100)]
    before, counted = bench.cpu_s([gateway.pid]), sum(one.events for one in paced)
    await asyncio.sleep(given.seconds)
    events = sum(one.events for one in paced) - counted
    cpu_us = (bench.cpu_s([gateway.pid]) - before) / events * 1e6
    for one in paced:
        one.transport.close()
    await asyncio.sleep(0.5)
    start = pss_kib(gateway.pid)
    idle: list[Reader] = []
    while len(idle) < given.streams:
        idle += await asyncio.gather(*(open_one() for _ in range(min(200, given.streams - len(idle)))))
    grown = pss_kib(gateway.pid) - start
    before = bench.cpu_s([gateway.pid])
    await asyncio.sleep(given.seconds)
    idle_cpu = (bench.cpu_s([gateway.pid]) - before) / given.seconds
    alive = sum(not one.transport.is_closing() for one in idle)
    result = {
        "first_event_us": {side: round(statistics.median(values) * 1e6) for side, values in firsts.items()},
        "events": events,
        "cpu_us_per_event": round(cpu_us, 1),
        "idle_streams": alive,
        "idle_kib_each": round(grown / given.streams, 2),
        "idle_cpu": round(idle_cpu, 3),
    }
    added = result["first_event_us"]["gateway"] - result["first_event_us"]["direct"]
    print(f"first event: +{added} us (direct {result['first_event_us']['direct']} us)")
    print(f"paced: {events} events, {cpu_us:.1f} us CPU each")
    print(f"idle: {alive} streams, {result['idle_kib_each']} KiB each (user memory, PSS), {idle_cpu * 100:.1f} % of a core")
    print(json.dumps(result))


def pss_kib(pid: int) -> int:
    return int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1])


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--streams", type=int, default=9500)
    options.add_argument("--seconds", type=float, default=4.0)
    given = options.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    given.streams = min(given.streams, (most - 500) // 2)
    children: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="nx-bench-", dir="/tmp") as name:
        try:
            uvloop.run(measure(given, Path(name), children))
        finally:
            for child in children:
                child.kill()
                child.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
