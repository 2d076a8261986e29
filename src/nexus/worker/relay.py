"""The relay: a thread that listens on a loopback port and forwards model calls to the platform's door.

It adds the instance's token, so that no key has to be in the author's code, and says which run is calling. Only callers
that show one of the keys given to this process are served: other agents on the machine can reach the port too.
"""

import asyncio
import contextlib
import hmac
import logging
import os
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from nexus.core import errors, names
from nexus.kit import http_client
from nexus.ports import run as ports
from nexus.wire import headers as header_names
from nexus.wire import problem
from nexus.worker import steps

_LOG = logging.getLogger("nexus.worker")
_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "host", "content-length"}
)
_OURS = frozenset(
    {"authorization", "x-api-key", "api-key", "expect", "cookie", "nexus-relay", header_names.RUN_ID.lower(), "nexus-tenant",
     "nexus-principal", header_names.SESSION_ID.lower(), header_names.USER_ID.lower()}
)  # fmt: skip
_BACKLOG = 128
_LIMITS = ("budget.", "model.stopped")
_IDLE_S = 3600.0
_HEAD_S = 3600.0
RELAY_KEY = "Nexus-Relay"
_MODEL_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages")


class _Reader(asyncio.StreamReader):
    """Tells at once when the peer leaves, also while nobody reads: `waiting` is cancelled then."""

    waiting: "asyncio.Task[None] | None" = None

    def feed_eof(self) -> None:
        super().feed_eof()
        self._leave()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self._leave()

    def _leave(self) -> None:
        if self.waiting is not None:
            self.waiting.cancel()


class Relay:
    """`port` is set once started. `active_runs` tells the ids of the runs in hand, `whose` a run's session and user
    (both called from the relay's thread)."""

    def __init__(
        self,
        door: str,
        token: str,
        *,
        keys: Sequence[str],
        active_runs: Callable[[], Sequence[str]],
        whose: Callable[[str], tuple[str, str]] = lambda run_id: ("", ""),
        recorder: steps.Recorder | None = None,
        port: int = 0,
    ) -> None:
        self.port = port
        self._target = http_client.Target(unix=door, host="door")
        self._token = token
        self._key = secrets.token_urlsafe(24)
        self._keys = [token, *(key for key in keys if key)]
        self._active = active_runs
        self._whose = whose
        self._recorder = recorder
        self._calls: Counter[str] = Counter()
        self._refusals: dict[str, str] = {}
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: threading.Thread | None = None
        self._ready = threading.Event()
        self._starting = threading.Lock()
        self._listener: socket.socket | None = None
        self._error: BaseException | None = None

    def rebind(self, token: str) -> None:
        """Another token from now on: for the door, and for callers that show it."""
        self._keys[0] = self._token = token

    def listen(self) -> None:
        """Connections wait from now on, until `start`. Raises OSError when no loopback port can be had."""
        if self._listener is None:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("127.0.0.1", self.port))
                listener.listen(_BACKLOG)
            except OSError:
                listener.close()
                raise
            self._listener, self.port = listener, listener.getsockname()[1]

    def fileno(self) -> int:
        """The listening descriptor, -1 when there is none."""
        return self._listener.fileno() if self._listener is not None else -1

    def start(self) -> None:
        """Serving when this returns; nothing when it does already. Raises OSError when no loopback port can be had."""
        with self._starting:
            if self._running is not None:
                return
            self.listen()
            assert self._listener is not None
            self._running = threading.Thread(target=self._thread, args=(self._listener,), name="relay", daemon=True)
            self._running.start()
        self._ready.wait(timeout=10)
        if self._error is not None:
            raise OSError(f"the relay did not start: {self._error}") from self._error

    def stop(self) -> None:
        """Close what is open and end the thread."""
        if self._loop is None or self._running is None:
            if self._listener is not None:
                self._listener.close()
            return
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._running.join(timeout=2)

    def attribution(self, run_id: str, host: str, port: int) -> dict[str, str]:
        """Headers for a call to `host:port` made in a run; empty unless it is this relay."""
        if port != self.port or host not in ("127.0.0.1", "localhost"):
            return {}
        return {header_names.RUN_ID: run_id, RELAY_KEY: self._key}

    def model_calls(self, run_id: str) -> int:
        """How many this run made; the second asking finds none. What was refused is forgotten too."""
        with self._lock:
            self._refusals.pop(run_id, None)
            return self._calls.pop(run_id, 0)

    def refusal(self, run_id: str) -> str | None:
        """The code of the budget (or stop) that refused a call of this run; asked once, when the run has failed."""
        with self._lock:
            self._calls.pop(run_id, None)
            return self._refusals.pop(run_id, None)

    def _thread(self, listener: socket.socket) -> None:
        loop = self._loop = asyncio.new_event_loop()
        try:
            server = loop.run_until_complete(loop.create_server(lambda: self._protocol(loop), sock=listener))
        except BaseException as error:  # noqa: BLE001 - told to whoever waits in start
            self._error = error
            return
        finally:
            self._ready.set()
        loop.run_forever()
        server.close()
        if open_ones := asyncio.all_tasks(loop):
            for task in open_ones:
                task.cancel()
            loop.run_until_complete(asyncio.wait(open_ones))
        if self._recorder is not None:
            loop.run_until_complete(self._recorder.close())
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    def _protocol(self, loop: asyncio.AbstractEventLoop) -> asyncio.StreamReaderProtocol:
        reader = _Reader(limit=128 * 1024, loop=loop)
        return asyncio.StreamReaderProtocol(reader, lambda _, writer: self._connected(reader, writer), loop=loop)

    async def _connected(self, reader: _Reader, writer: asyncio.StreamWriter) -> None:
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                async with asyncio.timeout(_IDLE_S):
                    head = await http_client.read_head(reader)
                if head is None:
                    return
                if (refusal := self._refusal(head)) is not None:
                    await _refuse(writer, refusal)
                    return
                if upstream is not None and upstream[0].at_eof():
                    upstream[1].close()
                    upstream = None
                if upstream is None:
                    upstream = await http_client.connect(self._target)
                if not await self._exchange(head, reader, writer, upstream):
                    return
                reader.waiting = None
        except asyncio.CancelledError:
            return
        except http_client.ProtocolError as error:
            await _refuse(writer, errors.Invalid("the relay could not read this", code="http.malformed", cause=str(error)))
        except (OSError, TimeoutError) as error:
            await _refuse(writer, _unreachable(error))
        finally:
            for side in (writer, upstream[1] if upstream is not None else None):
                if side is not None:
                    side.close()

    async def _exchange(
        self,
        head: http_client.Head,
        reader: _Reader,
        writer: asyncio.StreamWriter,
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> bool:
        """One request and its answer; whether both connections can be used again.

        A client that leaves in the middle cancels this, which closes the door's side: nobody pays for an unread answer.
        """
        up_reader, up_writer = upstream
        run_id = self._run_of(head)
        if (head.get("expect") or "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if (recording := self._recording_of(head, run_id)) is not None:
            return await self._recorded(head, recording, run_id, reader, writer, upstream)
        up_writer.write(self._forwarded(head, run_id))
        await _copy(reader, up_writer, head, until_close=False)
        if reader.at_eof():
            return False
        reader.waiting = asyncio.current_task()
        answer = await self._answer_head(up_reader)
        if answer is None:
            await _refuse(writer, _unreachable(ConnectionResetError("the door closed without an answer")))
            return False
        self._count(head, run_id, answer)
        bodiless = head.line[0] == "HEAD" or answer.status in (204, 304)
        framed = answer.chunked or answer.length is not None or bodiless
        keep = framed and not _closes(head) and not _closes(answer)
        writer.write(_answer(answer, keep=keep))
        if bodiless:
            await writer.drain()
            return keep
        await _copy(up_reader, writer, answer, until_close=True)
        return keep

    def _count(self, head: http_client.Head, run_id: str, answer: http_client.Head) -> None:
        if run_id and _is_model_call(head):
            code = answer.get(header_names.ERROR_CODE.lower()) or ""
            with self._lock:
                self._calls[run_id] += 1
                if code.startswith(_LIMITS):
                    self._refusals[run_id] = code

    def _recording_of(self, head: http_client.Head, run_id: str) -> steps.Recording | None:
        """Where this call is to be recorded; None for calls of plain runs."""
        if self._recorder is None or not _is_model_call(head):
            return None
        return self._recorder.find(run_id)

    async def _recorded(
        self,
        head: http_client.Head,
        recording: steps.Recording,
        run_id: str,
        reader: _Reader,
        writer: asyncio.StreamWriter,
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> bool:
        """A model call of a task: the answer an earlier attempt got, or a live one that is recorded before it is handed on
        whole. What streams is recorded as it passes, and its end is held back until the record is committed."""
        up_reader, up_writer = upstream
        body = b"".join([piece async for piece in http_client.read_body(reader, head, until_close=False)])
        try:
            call = await recording.open_call(head.line[1], body)
        except errors.NexusError as error:
            await _refuse(writer, error)
            return False
        except ports.Asked as asked:
            waits = errors.Conflict("this call waits for a person's decision", code="ask.waiting", cause=str(asked)[:200])
            await _refuse(writer, waits)
            return False
        if call.head is not None:
            answered = [(str(name), str(value)) for name, value in call.head["headers"]]
            told = http_client.Head(("HTTP/1.1", str(call.head["status"]), "OK"), answered)
            _write_whole(writer, told, call.body, keep=not _closes(head))
            await writer.drain()
            return not _closes(head)
        up_writer.write(self._forwarded(_framed(head, len(body)), run_id) + body)
        await up_writer.drain()
        reader.waiting = asyncio.current_task()
        answer = await self._answer_head(up_reader)
        if answer is None:
            await _refuse(writer, _unreachable(ConnectionResetError("the door closed without an answer")))
            return False
        self._count(head, run_id, answer)
        keep = not _closes(head) and not _closes(answer) and (answer.chunked or answer.length is not None)
        kept = bytearray()
        streams = answer.chunked
        if streams:
            writer.write(_answer(answer, keep=keep))
        async for piece in http_client.read_body(up_reader, answer, until_close=True):
            if len(kept) <= steps.MOST_RECORDED or not streams:
                kept += piece
            if streams:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
        await _keep(call, answer, bytes(kept))
        if streams:
            writer.write(b"0\r\n\r\n")
        else:
            _write_whole(writer, answer, bytes(kept), keep=keep)
        await writer.drain()
        return keep

    async def _answer_head(self, up_reader: asyncio.StreamReader) -> http_client.Head | None:
        async with asyncio.timeout(_HEAD_S):
            answer = await http_client.read_head(up_reader)
            while answer is not None and 100 <= answer.status < 200:
                answer = await http_client.read_head(up_reader)
        return answer

    def _refusal(self, head: http_client.Head) -> errors.NexusError | None:
        shown = [head.get("x-api-key") or "", head.get("api-key") or "", _bearer(head), head.get("nexus-relay") or ""]
        for key in (*self._keys, self._key):
            if any(hmac.compare_digest(given.encode(), key.encode()) for given in shown if given):
                return None
        return errors.Unauthenticated(
            "this model door belongs to another process, or the call carries no key",
            code="relay.refused",
            next_step="send the API key found in OPENAI_API_KEY or ANTHROPIC_API_KEY",
        )

    def _run_of(self, head: http_client.Head) -> str:
        """The run that calls: said by the hook, or the only one in hand; empty when it cannot be told."""
        active = self._active()
        given = head.get(header_names.RUN_ID.lower())
        if given and given in active:
            return given
        return active[0] if len(active) == 1 else ""

    def _forwarded(self, head: http_client.Head, run_id: str) -> bytes:
        method, path, _ = head.line
        headers = [(name, value) for name, value in head.headers if name not in _HOP and name not in _OURS]
        headers.append(("authorization", f"Bearer {self._token}"))
        if run_id and names.is_session_id(run_id):
            headers.append((header_names.RUN_ID.lower(), run_id))
            session_id, user_id = self._whose(run_id)
            headers += [(header_names.SESSION_ID.lower(), session_id)] if session_id else []
            headers += [(header_names.USER_ID.lower(), user_id)] if user_id else []
        return _render(f"{method} {path} HTTP/1.1", [("host", "door"), *headers], head)


def environment(port: int, token: str, present: Mapping[str, str]) -> dict[str, str]:
    """Variables that lead model clients to the relay; keys the author set are left alone."""
    found = {"OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}"}
    found["OPENAI_API_BASE"] = found["OPENAI_BASE_URL"]
    found |= {name: token for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY") if not present.get(name)}
    bypass = present.get("NO_PROXY") or present.get("no_proxy") or ""
    if "127.0.0.1" not in bypass and any(present.get(name) for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")):
        found["NO_PROXY"] = found["no_proxy"] = f"{bypass},127.0.0.1,localhost".lstrip(",")
    return found


def export(variables: Mapping[str, str]) -> None:
    os.environ.update(variables)


async def _keep(call: steps.Call, answer: http_client.Head, body: bytes) -> None:
    headers = [(name, value) for name, value in answer.headers if name not in _HOP]
    try:
        await call.keep(answer.status, headers, body)
    except errors.NexusError as error:
        _LOG.warning("a model call is not recorded, a new attempt will repeat it: %s", error.cause or error.message)


def _is_model_call(head: http_client.Head) -> bool:
    return head.line[0] == "POST" and head.line[1].partition("?")[0] in _MODEL_PATHS


def _framed(head: http_client.Head, length: int) -> http_client.Head:
    """The same head for a body that is sent whole."""
    others = [(name, value) for name, value in head.headers if name not in ("transfer-encoding", "content-length")]
    return http_client.Head(head.line, [*others, ("content-length", str(length))])


def _write_whole(writer: asyncio.StreamWriter, answer: http_client.Head, body: bytes, *, keep: bool) -> None:
    writer.write(_answer(_framed(answer, len(body)), keep=keep) + body)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: http_client.Head, *, until_close: bool) -> None:
    chunked = head.chunked
    async for piece in http_client.read_body(reader, head, until_close=until_close):
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        await writer.drain()
    if chunked:
        writer.write(b"0\r\n\r\n")
    await writer.drain()


def _bearer(head: http_client.Head) -> str:
    scheme, _, key = (head.get("authorization") or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _closes(head: http_client.Head) -> bool:
    return "close" in (head.get("connection") or "").lower() or "HTTP/1.0" in head.line


def _answer(answer: http_client.Head, *, keep: bool) -> bytes:
    headers = [(name, value) for name, value in answer.headers if name not in _HOP]
    if not keep:
        headers.append(("connection", "close"))
    return _render(" ".join(("HTTP/1.1", *answer.line[1:])), headers, answer)


def _render(line: str, headers: http_client.Headers, framing: http_client.Head) -> bytes:
    lines = [line, *(f"{name}: {value}" for name, value in headers)]
    if framing.chunked:
        lines.append("transfer-encoding: chunked")
    elif (length := framing.get("content-length")) is not None:
        lines.append(f"content-length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def _refuse(writer: asyncio.StreamWriter, error: errors.NexusError) -> None:
    """An answer that model clients understand too: a problem with OpenAI's `error` object in it."""
    error.extra.setdefault("error", {"message": error.message, "type": error.kind, "code": error.code})
    body = problem.encode(error)
    status = problem.status_of(error)
    head = f"HTTP/1.1 {status} {error.code}\r\ncontent-type: {problem.CONTENT_TYPE}\r\ncontent-length: {len(body)}\r\n"
    with contextlib.suppress(OSError):
        writer.write(f"{head}connection: close\r\n\r\n".encode() + body)
        await writer.drain()


def _unreachable(error: Exception) -> errors.Unavailable:
    _LOG.warning("a model call did not reach the platform: %s: %s", type(error).__name__, error)
    return errors.Unavailable(
        "the platform's model door does not answer",
        code="door.unreachable",
        cause=f"{type(error).__name__}: {error}",
        next_step="nexus status shows whether the gateway runs",
    )
