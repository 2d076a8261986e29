"""A whole gateway process between real sockets: a small control (feed and API), small workers, blocking clients.

The small servers live on a loop in a thread, so tests are plain functions that read as transcripts.
"""

import asyncio
import concurrent.futures
import http.client
import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nexus.kit import home, keys

LIMIT_S = 15


class Stage:
    """The loop in a thread on which the small servers play."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(LIMIT_S)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        async def play() -> Any:
            return function(*arguments)

        return self.run(play())

    def close(self) -> None:
        async def stop() -> None:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.run(stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(LIMIT_S)
        self.loop.close()


@dataclass
class Seen:
    """One request as a small server got it."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        values = self.all(name)
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass
class SmallServer:
    """Speaks HTTP/1.1 badly enough to misbehave on request: the header `x-do` names what to do, `does` holds the deeds.

    `closed` gets an item whenever the gateway closes a connection on which an answer was still owed.
    """

    address: str
    name: str
    does: dict[str, Callable[..., Coroutine[Any, Any, bool]]] = field(default_factory=dict)
    seen: "queue.Queue[Seen]" = field(default_factory=queue.Queue)
    closed: "queue.Queue[str]" = field(default_factory=queue.Queue)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    connections: int = 0
    server: Any = None
    writers: set[Any] = field(default_factory=set)

    async def start(self) -> None:
        kind, _, place = self.address.partition(":")
        if kind == "unix":
            self.server = await asyncio.start_unix_server(self._serve, place)
        else:
            host, _, port = place.rpartition(":")
            self.server = await asyncio.start_server(self._serve, host, int(port))

    async def stop(self) -> None:
        self.server.close()
        for writer in list(self.writers):
            writer.transport.abort()

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
                headers = [(name, value.strip()) for name, _, value in (text.partition(":") for text in lines)]
                request = Seen(line, headers, b"")
                deed = self.does.get(request.header("x-do") or "echo", echo)
                if deed not in UNREAD:
                    request.body = await read_body(reader, request)
                self.seen.put(request)
                if not await deed(self, request, reader, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()


UNREAD: set[Any] = set()


async def read_body(reader: asyncio.StreamReader, request: Seen) -> bytes:
    if request.header("transfer-encoding"):
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readline()
        return body
    return await reader.readexactly(int(request.header("content-length") or 0))


def plain(body: bytes, *extra: str, status: str = "200 OK", kind: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *extra]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def echo(server: SmallServer, request: Seen, reader: Any, writer: Any) -> bool:
    writer.write(plain(json.dumps({"output": request.body.decode("latin-1"), "by": server.name}).encode()))
    await writer.drain()
    return True


async def hang(server: SmallServer, request: Seen, reader: asyncio.StreamReader, writer: Any) -> bool:
    """Never answer; tell when the gateway lets go."""
    await reader.read(1)
    server.closed.put(request.header("nexus-run-id") or "")
    return False


async def gated(server: SmallServer, request: Seen, reader: Any, writer: Any) -> bool:
    """Answer once the test opens the gate named in `x-gate`."""
    await asyncio.wait_for(server.gate(request.header("x-gate") or "gate").wait(), LIMIT_S)
    return await echo(server, request, reader, writer)


async def events(server: SmallServer, request: Seen, reader: asyncio.StreamReader, writer: Any) -> bool:
    """One event at once; the second when the gate opens; or notice that the client has left."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    first = b"id: 1\nevent: run.started\ndata: {}\n\n"
    writer.write(head + b"%x\r\n%b\r\n" % (len(first), first))
    gate = asyncio.ensure_future(server.gate(request.header("x-gate") or "gate").wait())
    left = asyncio.ensure_future(reader.read(1))
    done, pending = await asyncio.wait({gate, left}, return_when=asyncio.FIRST_COMPLETED, timeout=LIMIT_S)
    for task in pending:
        task.cancel()
    if left in done:
        server.closed.put(request.header("nexus-run-id") or "")
        return False
    name = (request.header("x-end") or "run.completed").encode()
    last = b'id: 2\nevent: %b\ndata: {"code": "agent.failed"}\n\n' % name
    writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
    await writer.drain()
    return False


class SmallControl:
    """Serves the feed on `feed.sock` and something on `control.sock`; keeps what gateways report."""

    def __init__(self, stage: Stage, where: home.Home) -> None:
        self.stage = stage
        self.home = where
        self.entries: dict[str, Any] = {}
        self.epoch, self.version = "e1", 1
        self.acknowledging = True
        self.records: queue.Queue[dict[str, Any]] = queue.Queue()
        self.batches: queue.Queue[tuple[int, list[Any]]] = queue.Queue()
        self.hellos: queue.Queue[Any] = queue.Queue()
        self.calls: queue.Queue[dict[str, str]] = queue.Queue()
        self.api = SmallServer(address=f"unix:{where.control_socket}", name="control")
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: Any = None

    def start(self) -> None:
        async def begin() -> None:
            self.home.feed_socket.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._serve, str(self.home.feed_socket), limit=1 << 26)
            self.home.control_socket.unlink(missing_ok=True)
            await self.api.start()

        self.stage.run(begin())

    def stop(self) -> None:
        async def end() -> None:
            self._server.close()
            for writer in list(self._writers):
                writer.transport.abort()
            await self.api.stop()
            self.home.feed_socket.unlink(missing_ok=True)
            self.home.control_socket.unlink(missing_ok=True)

        self.stage.run(end())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            self.hellos.put(json.loads(await reader.readline())["hello"])
            snapshot = {"epoch": self.epoch, "version": self.version, "entries": self.entries}
            writer.write(json.dumps({"snapshot": snapshot}).encode() + b"\n")
            while line := await reader.readline():
                message = json.loads(line)
                if "call" in message:
                    self.calls.put(message["call"])
                    continue
                self.batches.put((message["batch"], message["records"]))
                for record in message["records"]:
                    self.records.put(record)
                if self.acknowledging:
                    writer.write(json.dumps({"ack": message["batch"]}).encode() + b"\n")
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def say(self, message: dict[str, Any]) -> None:
        def write() -> None:
            for writer in self._writers:
                writer.write(json.dumps(message).encode() + b"\n")

        self.stage.call(write)

    def change(self, set_: dict[str, Any], delete: tuple[str, ...] = ()) -> None:
        """A delta, as control sends it."""
        self.entries.update(set_)
        for name in delete:
            self.entries.pop(name, None)
        self.version += 1
        delta = {
            "epoch": self.epoch, "previous": self.version - 1, "version": self.version, "set": set_, "delete": list(delete)
        }  # fmt: skip
        self.say({"delta": delta})

    def next_record(self, **wanted: Any) -> dict[str, Any]:
        deadline = time.monotonic() + LIMIT_S
        while True:
            record = self.records.get(timeout=max(0.01, deadline - time.monotonic()))
            if all(record.get(name) == value for name, value in wanted.items()):
                return record


def key_entry(**fields: Any) -> dict[str, Any]:
    return {
        "id": "key_1", "tenant": "acme", "roles": ["developer"], "environment": None, "agents": None, "expires_at": None,
        "requests_per_minute": None, **fields,
    }  # fmt: skip


def deployment_entry(*instances: SmallServer, **fields: Any) -> dict[str, Any]:
    return {
        "id": "dep_1", "revision": 1, "balancer": "least-connections",
        "instances": [{"id": f"ins_{one.name}", "address": one.address, "version": "1.0.0"} for one in instances],
        "timeout_s": 30.0, "wait_s": 10.0, "max_concurrency": None, "max_queue": 10, **fields,
    }  # fmt: skip


SETTINGS = {"hosts": ["agents.example"], "origins": ["https://app.example"], "default_model": None, "max_body_bytes": 1 << 20}


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Node:
    """A home with a small control, small workers and real gateway processes."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self.home = home.Home(folder)
        self.home.run.mkdir(mode=0o700, parents=True)
        (self.home.run / "i").mkdir()
        self.port = free_port()
        self.control = SmallControl(stage, self.home)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.workers: list[SmallServer] = []
        self.key = keys.new_key()
        self.service = keys.new_key(keys.SERVICE_TOKEN)
        self.token = keys.new_key(keys.INSTANCE_TOKEN)
        self.control.entries = {
            "settings": dict(SETTINGS),
            f"key/{keys.hash_key(self.key)}": key_entry(),
            f"key/{keys.hash_key(self.service)}": key_entry(id="key_service", tenant="system", roles=["service"]),
            f"token/{keys.hash_key(self.token)}": {
                "instance_id": "ins_a", "tenant": "acme", "agent": "hello", "environment": "production"
            },
        }  # fmt: skip

    def worker(self, name: str, **does: Any) -> SmallServer:
        path = self.home.run / "i" / f"{name}.sock"
        path.unlink(missing_ok=True)
        one = SmallServer(address=f"unix:{path}", name=name, does={"hang": hang, "gated": gated, "events": events, **does})
        self.stage.run(one.start())
        self.workers.append(one)
        return one

    def start(self, number: int = 0, *, wait: bool = True, **environ: str) -> subprocess.Popen[bytes]:
        log = (self.home.root / f"gateway-{number}.log").open("ab")
        child = subprocess.Popen(
            [sys.executable, "-m", "nexus.apps.gateway"],
            env={
                "PATH": os.environ["PATH"], "NEXUS_HOME": str(self.home.root), "NEXUS_HOST": "127.0.0.1",
                "NEXUS_PORT": str(self.port), "NEXUS_GATEWAY": str(number),
                "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **environ,
            },
            stderr=log,
        )  # fmt: skip
        log.close()
        self.processes.append(child)
        if wait:
            self.wait_for(lambda: self._is_up(number, child))
        return child

    def _is_up(self, number: int, child: subprocess.Popen[bytes]) -> bool:
        if child.poll() is not None:
            raise AssertionError((self.home.root / f"gateway-{number}.log").read_text())
        try:
            return self.door(number, "GET", "/health").status == 200
        except OSError:
            return False

    def wait_for(self, true: Callable[[], bool]) -> None:
        """Poll until a condition holds; fails the test when it does not within the limit."""
        deadline = time.monotonic() + LIMIT_S
        while not true():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.01)

    def settled(self) -> None:
        """Wait until the gateways have applied everything control said."""
        for number in range(len(self.processes)):
            self.wait_for(
                lambda number=number: self.door(number, "GET", "/health").json["routes_version"] == self.control.version
            )

    def connect(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def raw(self, data: bytes) -> bytes:
        """Send bytes, read until the gateway closes."""
        with self.connect() as client:
            client.sendall(data)
            return read_all(client)

    def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = "", headers: dict[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        return _ask(connection, method, path, body, self.key if key == "" else key, headers)

    def door(
        self,
        number: int,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("localhost", timeout=LIMIT_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(LIMIT_S)
        try:
            connection.sock.connect(str(self.home.door_socket(number)))
        except OSError:
            connection.sock.close()
            raise
        return _ask(connection, method, path, body, key, headers)

    def later(self, *arguments: Any, **named: Any) -> "concurrent.futures.Future[Answer]":
        """`ask` in a thread."""
        future: concurrent.futures.Future[Answer] = concurrent.futures.Future()

        def play() -> None:
            try:
                future.set_result(self.ask(*arguments, **named))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=play, daemon=True).start()
        return future

    def open_gate(self, worker: SmallServer, name: str) -> None:
        self.stage.call(lambda: worker.gate(name).set())

    def close(self) -> None:
        for child in self.processes:
            if child.poll() is None:
                child.kill()
            child.wait(LIMIT_S)
        for worker in self.workers:
            self.stage.run(worker.stop())
        self.control.stop()


def _ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any, key: str | None, headers: dict[str, str] | None
) -> Answer:
    given = dict(headers or {})
    if key is not None:
        given["Authorization"] = f"Bearer {key}"
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    try:
        connection.request(method, path, data, given)
        answer = connection.getresponse()
        return Answer(answer.status, answer.getheaders(), answer.read())
    finally:
        connection.close()


def read_all(client: socket.socket) -> bytes:
    data = b""
    try:
        while part := client.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


def read_until(client: socket.socket, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        part = client.recv(65536)
        assert part, f"closed before {mark!r}: {data!r}"
        data += part
    return data


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def small() -> Any:
    """This file's own words, for tests that write deeds: a test file cannot import its conftest."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def stage() -> Iterator[Stage]:
    one = Stage()
    yield one
    one.close()


@pytest.fixture
def bare_node(stage: Stage) -> Iterator[Node]:
    """A node whose control and gateways the test starts itself."""
    with tempfile.TemporaryDirectory(prefix="nx-gw-", dir="/tmp") as folder:
        node = Node(stage, Path(folder) / "home")
        node.control.start()
        yield node
        node.close()


@pytest.fixture(scope="module")
def node(stage: Stage) -> Iterator[Node]:
    """One node for a whole file: agent `hello` on worker `a` in production."""
    with tempfile.TemporaryDirectory(prefix="nx-gw-", dir="/tmp") as folder:
        one = Node(stage, Path(folder) / "home")
        one.control.entries["deployment/acme/hello/production"] = deployment_entry(one.worker("a"))
        one.control.start()
        one.start()
        yield one
        one.close()
