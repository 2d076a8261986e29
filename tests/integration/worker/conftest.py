"""A real worker process from the host's own copy in a bare environment, and a door it can call."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import tempfile
import venv
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nexus.kit import http_client, sse
from nexus.wire import blobs
from nexus.worker import bundle

TOKEN = "nxi_test-token-of-the-instance"


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An empty environment's interpreter and the worker copy."""
    folder = tmp_path_factory.mktemp("box")
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder / "environment")
    return folder / "environment" / "bin" / "python", bundle.build_worker_copy(folder / "copies")


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name is short enough for unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="nxw-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def run_id(self) -> str:
        return self.headers.get("nexus-run-id", "")


@dataclass
class FakeDoor:
    """Speaks chat completions, counts tokens per run, keeps session state and collects traces."""

    path: str
    seen: list[Seen] = field(default_factory=list)
    states: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, int] | None = None
    token: str = TOKEN
    usage: dict[str, list[int]] = field(default_factory=dict)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    hang_after_first: bool = False
    threads: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    state_status: int = 200

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["FakeDoor"]:
        server = await asyncio.start_unix_server(self._connected, self.path)
        try:
            yield self
        finally:
            server.close()

    def model_calls(self) -> list[Seen]:
        return [entry for entry in self.seen if entry.path.startswith("/v1/")]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, http_client.ProtocolError, asyncio.CancelledError):
            while (head := await http_client.read_head(reader)) is not None:
                body = b"".join([piece async for piece in http_client.read_body(reader, head, until_close=False)])
                request = Seen(head.line[0], head.line[1], dict(head.headers), body)
                self.seen.append(request)
                await self._answer(request, reader, writer)
                await writer.drain()
        writer.close()

    async def _answer(self, request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if request.headers.get("authorization") != f"Bearer {self.token}":
            _reply(writer, 401, {"code": "auth.required"})
        elif request.path == "/v1/chat/completions":
            await self._chat(request, reader, writer)
        elif request.path.startswith("/door/runs/"):
            used = self.usage.get(request.path.split("/")[3], [0, 0, 0])
            _reply(writer, 200, {"input_tokens": used[0], "output_tokens": used[1], "calls": used[2]})
        elif request.path.startswith("/door/threads"):
            self._thread(request, writer)
        elif request.path.startswith("/door/sessions/"):
            self._state(request, writer)
        else:
            _reply(writer, 200, {})

    def _thread(self, request: Seen, writer: asyncio.StreamWriter) -> None:
        """As much of LangGraph's checkpoints as one graph without subgraphs needs; newest last."""
        if request.path == "/door/threads:forget":
            gone = json.loads(request.body)["run_ids"]
            for name, kept in self.threads.items():
                self.threads[name] = [each for each in kept if each["run_id"] not in gone]
            return _reply(writer, 200, {})
        kept = self.threads.setdefault(request.path.split("/")[3], [])
        if request.method == "GET":
            return _reply(writer, 200, {"items": kept[-1:]})
        unpacker = blobs.Unpacker(request.body)
        told, taken = unpacker.head, lambda entry: [unpacker.take(entry)[0], base64.b64encode(unpacker.take(entry)[1]).decode()]
        if (new := told.get("checkpoint")) is not None:
            new |= {name: taken(new[name]) for name in ("state", "meta")}
            new["values"] = {name: taken(entry) for name, entry in new["values"].items()}
            before = next((each for each in kept if each["id"] == new["parent"]), {"values": {}})
            values = {**before["values"], **new["values"]}
            kept.append({**new, "values": {name: values[name] for name in new["versions"] if name in values}, "writes": []})
        if (new := told.get("writes")) is not None:
            mine = next(each for each in kept if each["id"] == new["id"])
            mine["writes"] += [[new["task"], write[1], *taken(write[2:])] for write in new["writes"]]
        return _reply(writer, 200, {})

    def _state(self, request: Seen, writer: asyncio.StreamWriter) -> None:
        path, _, query = request.path.partition("?")
        session = path.split("/")[3]
        version = 0 if self.versions is None else self.versions.get(session, 0)
        if self.state_status == 413 and request.method == "PUT":
            _reply(writer, 413, {"code": "state.too_large", "kind": "invalid", "detail": "too large"})
        elif self.state_status == 503:
            _reply(writer, self.state_status, {"code": "service.unavailable", "kind": "unavailable", "detail": "control is down"})
        elif query and query != f"after={version}":
            _reply(writer, 409, {"code": "state.moved", "kind": "conflict", "detail": "moved"})
        elif request.method == "PUT":
            self.states[session] = json.loads(request.body)
            if self.versions is not None:
                self.versions[session] = version = version + 1
            _reply(writer, 200, {}, version)
        elif session in self.states:
            _reply(writer, 200, self.states[session], version)
        else:
            _reply(writer, 404, {"code": "state.not_found"})

    async def _chat(self, request: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = json.loads(request.body)
        text = "re: " + asked["messages"][-1]["content"]
        used = self.usage.setdefault(request.run_id, [0, 0, 0])
        for index, amount in enumerate((11, 3, 1)):
            used[index] += amount
        if not asked.get("stream"):
            message = {"role": "assistant", "content": text}
            usage = {"prompt_tokens": 11, "completion_tokens": 3}
            _reply(writer, 200, {"model": asked["model"], "choices": [{"message": message}], "usage": usage})
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for word in text.split():
            data = json.dumps({"choices": [{"delta": {"content": word + " "}, "finish_reason": None}]}).encode()
            _chunk(writer, b"data: " + data + b"\n\n")
            await writer.drain()
            if self.hang_after_first:
                await reader.read(1)
                self.gone.set()
                return
        _chunk(writer, b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n')
        writer.write(b"0\r\n\r\n")


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def _reply(writer: asyncio.StreamWriter, status: int, value: object, version: int = 0) -> None:
    body = json.dumps(value).encode()
    told = f"nexus-state-version: {version}\r\n" if version else ""
    head = f"HTTP/1.1 {status} X\r\n{told}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


@pytest.fixture
async def door(short: Path) -> AsyncIterator[FakeDoor]:
    async with FakeDoor(str(short / "door.sock")).serving() as fake:
        yield fake


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def output(self) -> Any:
        assert self.status == 200, self.body
        return self.json["output"]


@dataclass
class Worker:
    process: asyncio.subprocess.Process
    folder: Path

    @property
    def target(self) -> http_client.Target:
        return http_client.Target(unix=str(self.folder / "w.sock"), host="worker")

    async def call(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        answer = await http_client.request(method, self.target, path, headers=headers or {}, body=body, timeout_s=30)
        return Answer(answer.status, dict(answer.headers), answer.body)

    async def run(self, value: Any = None, *, context: Any = None, session: str | None = None, **headers: str) -> Answer:
        sent = {name.replace("_", "-"): entry for name, entry in headers.items()}
        if session is not None:
            sent["Nexus-Session-Id"] = session
        return await self.call("POST", "/run", json.dumps({"input": value, "context": context or {}}).encode(), sent)

    @contextlib.asynccontextmanager
    async def stream(
        self, value: Any = None, *, session: str | None = None
    ) -> AsyncIterator[AsyncIterator[tuple[int, str, Any]]]:
        headers = {"Accept": "text/event-stream"} | ({"Nexus-Session-Id": session} if session else {})
        body = json.dumps({"input": value}).encode()
        async with http_client.open_answer("POST", self.target, "/run", headers=headers, body=body, timeout_s=30) as (
            head,
            pieces,
        ):
            assert head.status == 200
            yield _events(pieces)

    async def events(self, value: Any = None, *, session: str | None = None) -> list[tuple[int, str, Any]]:
        async with self.stream(value, session=session) as events:
            return [event async for event in events]

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for something the worker does; the test's own time limit is the bound."""
        while not (value := condition()):
            await asyncio.sleep(0.01)
        return value

    def log(self) -> list[dict[str, Any]]:
        """Complete lines so far; what is not JSON comes as {"raw": …}."""
        lines = (self.folder / "log").read_text().split("\n")[:-1]
        return [json.loads(line) if line.startswith("{") else {"raw": line} for line in lines]

    def messages(self) -> list[str]:
        return [line.get("message", "") for line in self.log()]

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, str, Any]]:
    decoder = sse.Decoder()
    async for piece in pieces:
        for event in decoder.feed(piece):
            yield int(event.id or 0), event.name, json.loads(event.data)


@dataclass
class Start:
    """Makes workers; those still alive at the end are killed."""

    box: tuple[Path, Path]
    folder: Path
    door: str | None = None
    workers: list[Worker] = field(default_factory=list)

    @property
    def source(self) -> Path:
        return self.folder / "source"

    async def launch(self, code: str | Mapping[str, str], *, entrypoint: str = "", **env: str) -> Worker:
        """Begin a start. `code` is agent.py, or several files by name."""
        self.source.mkdir(exist_ok=True)
        for name, text in ({"agent.py": code} if isinstance(code, str) else code).items():
            (self.source / name).write_text(text)
        variables = {
            "PATH": os.environ["PATH"],
            "NEXUS_SOURCE": str(self.source),
            "NEXUS_ENTRYPOINT": entrypoint,
            "NEXUS_SOCKET": str(self.folder / "w.sock"),
            "NEXUS_STATUS_FILE": str(self.folder / "status.json"),
            "NEXUS_AGENT": "probe",
            "NEXUS_AGENT_VERSION": "1.2.3",
            "NEXUS_GRACE_S": "1",
        }
        if self.door is not None:
            variables |= {"NEXUS_DOOR": self.door, "NEXUS_TOKEN": TOKEN}
        (self.folder / "status.json").unlink(missing_ok=True)
        python, copy = self.box
        with (self.folder / "log").open("ab") as log:
            command = (str(python), "-P", str(copy / "boot.py"))
            process = await asyncio.create_subprocess_exec(
                *command, env=variables | env, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL
            )
        worker = Worker(process, self.folder)
        self.workers.append(worker)
        return worker

    def status(self) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        except FileNotFoundError:
            return {"phase": ""}
        return record

    async def __call__(self, code: str | Mapping[str, str], *, entrypoint: str = "", **env: str) -> Worker:
        """A worker that is ready."""
        worker = await self.launch(code, entrypoint=entrypoint, **env)
        while self.status()["phase"] != "ready":
            if worker.process.returncode is not None:
                raise AssertionError((self.folder / "log").read_text())
            await asyncio.sleep(0.005)
        return worker

    async def fails(self, code: str | Mapping[str, str], *, entrypoint: str = "", **env: str) -> dict[str, Any]:
        """The problem of a worker that must not become ready."""
        worker = await self.launch(code, entrypoint=entrypoint, **env)
        assert await worker.process.wait() == 70, (self.folder / "log").read_text()
        record = self.status()
        assert record["phase"] == "failed"
        problem: dict[str, Any] = record["problem"]
        return problem


@pytest.fixture
async def start(box: tuple[Path, Path], short: Path) -> AsyncIterator[Start]:
    """Workers without a host behind them."""
    starter = Start(box, short)
    yield starter
    await _end(starter)


@pytest.fixture
async def hosted(box: tuple[Path, Path], short: Path, door: FakeDoor) -> AsyncIterator[Start]:
    """Workers with a door."""
    starter = Start(box, short, door=door.path)
    yield starter
    await _end(starter)


async def _end(starter: Start) -> None:
    for worker in starter.workers:
        if worker.process.returncode is None:
            worker.process.kill()
        await worker.process.wait()
