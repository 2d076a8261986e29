"""The zygote of a version: imports the agent once, freezes its heap, and forks a worker for each session, each into its own box.

One thread, no event loop: nothing that a fork would break. It listens twice. On `NEXUS_SOCKET` it answers `GET /health` and
`GET /status`, so that to the supervisor it is an instance like any other; on the descriptor it was started with it hears the
supervisor's orders (`session_link`):

    {"do": "fork", "id", "spare"} + [talk, commands, output, entrances…]
                                                        forks; what becomes of it is said on `talk` by the child itself
    {"is": "zygote", "reason"}                          at once: whether it may be forked (`reason` null), else why not
    {"is": "ended", "id", "code"}                       a session's first process has ended

What the child does in its box is `boxing`'s, handed in by the program that starts us (`drivers.process.session_boot`).
"""

import contextlib
import faulthandler
import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import time
from typing import Any, NoReturn, Protocol

from nexus.core import errors
from nexus.wire import problem
from nexus.worker import (
    handed,
    logs,
    main,
    serving,
    session_forkable,
    session_import,
    session_keeper,
    session_link,
    session_memory,
    session_worker,
    settings,
    status,
    work_folder,  # noqa: F401 - what a session may need is imported once, for all of them
)
from nexus.worker.adapters import versions

_LOG = logging.getLogger("nexus.worker")
_BACKLOG = 256
_MOST_LINKS = 4
_REQUEST_S = 1.0
_INIT, _LONGEST_GO = b'{"is": "init"}', 256


class Boxing(Protocol):
    """A session's box. Each call raises an Exception that says which layer failed."""

    isolated: bool

    def fork(self) -> int:
        """As `os.fork`, into new namespaces."""
        ...

    def furnish(self) -> None:
        """In the child: its file tree."""
        ...

    def close(self) -> None:
        """In the child: no privilege is left afterwards."""
        ...

    def serve_ways(self) -> None:
        """In the child: whatever processes the way out needs."""
        ...

    def be_private(self) -> None: ...

    def be_open(self) -> None: ...


def run(boxing: Boxing, orders: int, *, refusal: str | None = None, are_handed: bool = False) -> NoReturn:
    """Never returns. `orders`: the descriptor of the listening socket where the supervisor connects; `are_handed`: of one whose
    connections are handed in."""
    faulthandler.enable(file=2)
    try:
        config = settings.parse_settings(os.environ)
    except ValueError as error:
        print(f"nexus zygote: {error}", file=sys.stderr)  # noqa: T201 - the log is not there yet
        sys.exit(main.EXIT_FAILED)
    capture = logs.install(config.log_level)
    try:
        Zygote(config, capture, boxing, handed.take(orders, handed=are_handed), refusal=refusal).live()
    except errors.NexusError as error:
        status.write(config.status_file, "failed", error.message, problem=problem.render(error))
        _LOG.critical("%s: %s", error.message, error.cause or error.code)
        for line in error.log_tail:
            _LOG.error("%s", line)
        capture.flush_open()
        main.leave(main.EXIT_FAILED)
    sys.exit(0)


class Zygote:
    """One version, imported."""

    def __init__(
        self,
        config: settings.Settings,
        capture: logs.Capture,
        boxing: Boxing,
        orders: socket.socket,
        *,
        refusal: str | None = None,
    ) -> None:
        """`refusal`: why nothing is forked here, whatever was imported."""
        self._refusal = refusal
        self._config, self._capture, self._boxing = config, capture, boxing
        self._orders = orders
        self._links: dict[int, socket.socket] = {}
        self._children: dict[int, str] = {}
        self._started = time.time()

    def live(self) -> None:
        """Import, look whether we may be forked, and serve until SIGTERM."""
        config = self._config
        status.write(config.status_file, "importing")
        own: list[int] = []  # the event loop's among them, which makes its own anew after a fork
        imported = session_import.load(
            config, self._capture, isolated=self._boxing.isolated, before=lambda: own.extend(session_forkable.descriptors())
        )
        self._imported, adapter = imported, imported.adapter
        self._reason = self._refusal or session_forkable.find_reason(own=own)
        self._face = serving.bind(config)
        self._face.listen(_BACKLOG)
        self._wake, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, _ignore)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        self._wakes = wakes
        self._filling = session_memory.settle()
        said = "sessions: fork" if self._reason is None else f"sessions: exec ({self._reason})"
        _LOG.info("ready: %s %s (%s; %s)", config.agent, config.version, adapter.name, said)
        note = "; ".join(part for part in (said, versions.noted()) if part)
        status.write(config.status_file, "ready", f"imported with the {adapter.name} adapter", note=note)
        self._serve()

    # orders

    def _serve(self) -> None:
        ready = self._ready = select.poll()
        for number in (self._wake, self._orders.fileno(), self._face.fileno()):
            ready.register(number, select.POLLIN)
        while True:
            for number, _ in ready.poll():
                if number == self._wake:
                    if set(os.read(self._wake, 256)) & {signal.SIGTERM, signal.SIGINT}:
                        return
                    self._reap()
                elif number == self._face.fileno():
                    self._answer()
                elif number == self._orders.fileno():
                    self._welcome()
                elif (link := self._links.get(number)) is not None:
                    self._hear(link)

    def _welcome(self) -> None:
        link, _ = self._orders.accept()
        if len(self._links) >= _MOST_LINKS:
            link.close()
            return
        self._links[link.fileno()] = link
        self._ready.register(link.fileno(), select.POLLIN)
        self._say({"is": "zygote", "reason": self._reason})

    def _hear(self, link: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            message, descriptors = session_link.receive(link)
            if message.get("do") == "fork" and len(descriptors) >= 3:
                self._fork(str(message["id"]), descriptors, rehearses=message.get("spare") is True)
        except (session_link.Gone, OSError, ValueError):
            self._ready.unregister(link.fileno())
            self._links.pop(link.fileno(), None)
            link.close()
        finally:
            for number in descriptors:
                os.close(number)

    def _fork(self, worker_id: str, descriptors: list[int], *, rehearses: bool) -> None:
        try:
            child = self._boxing.fork()
        except Exception as error:  # noqa: BLE001 - whatever it is, the supervisor has to know
            with socket.socket(fileno=os.dup(descriptors[0])) as talk:
                _tell_failure(talk, error)
            return
        if child == 0:
            self._become_session(descriptors, rehearses=rehearses)
        self._children[child] = worker_id

    def _become_session(self, descriptors: list[int], *, rehearses: bool) -> NoReturn:
        """In the first process of a new box. Its box is closed before anything of the session's is known here."""
        talk = socket.socket(fileno=descriptors[0])
        try:
            for number in descriptors[3:]:
                _enter(number)
            talk.sendall(_INIT)
            self._drop_zygote()
            boxing = self._boxing
            boxing.furnish()
            talk.recv(_LONGEST_GO)  # we stand in our control groups
            boxing.close()
            boxing.serve_ways()
            gc.freeze()
            worker = os.fork()
        except BaseException as error:  # noqa: BLE001 - told, and the end of this process
            _tell_failure(talk, error)
            os._exit(main.EXIT_FAILED)
        if worker == 0:
            self._become_worker(talk, descriptors, rehearses=rehearses)
        boxing.be_private()
        talk.close()
        for number in (1, 2):
            os.dup2(descriptors[2], number)
        os.close(descriptors[2])
        session_keeper.Keeper(worker, socket.socket(fileno=descriptors[1])).run()
        os._exit(main.EXIT_FAILED)

    def _become_worker(self, talk: socket.socket, descriptors: list[int], *, rehearses: bool) -> NoReturn:
        self._boxing.be_open()
        os.close(descriptors[1])
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        gc.enable()
        code = main.EXIT_FAILED
        try:
            code = session_worker.live(self._imported, talk, descriptors[2], rehearses=rehearses)
        except BaseException as error:  # noqa: BLE001 - told, and the end of this process
            _LOG.exception("the session's worker failed")
            _tell_failure(talk, error)
        session_worker.leave(code)

    def _drop_zygote(self) -> None:
        """What only the zygote may have."""
        signal.set_wakeup_fd(-1)
        for number in (self._wake, self._wakes, *self._links):
            os.close(number)
        for listener in (self._orders, self._face, self._imported.held):
            listener.close()
        for link in self._links.values():
            link.detach()

    def _reap(self) -> None:
        while self._children:
            try:
                ended, code = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if ended == 0:
                return
            if (worker_id := self._children.pop(ended, None)) is not None:
                self._say({"is": "ended", "id": worker_id, "code": os.waitstatus_to_exitcode(code)})

    def _say(self, message: dict[str, Any]) -> None:
        for link in self._links.values():
            with contextlib.suppress(OSError):
                session_link.send(link, message)

    # the instance's face

    def _answer(self) -> None:
        """One small request, at once and to its end: only the supervisor can connect here."""
        try:
            client, _ = self._face.accept()
        except OSError:
            return
        with client:
            client.settimeout(_REQUEST_S)
            try:
                line = client.recv(16 * 1024).split(b"\r\n", 1)[0].split()
                path = line[1].decode("latin-1") if len(line) == 3 else ""
                code, report = self._report(path)
                body = json.dumps(report).encode()
                head = f"HTTP/1.1 {code}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
                client.sendall(f"{head}connection: close\r\n\r\n".encode() + body)
            except OSError:
                return

    def _report(self, path: str) -> tuple[str, dict[str, Any]]:
        if path in (self._config.health_path, "/health"):
            uptime = round(time.time() - self._started, 3)
            return "200 OK", {"status": "healthy", "uptime_s": uptime, "sessions": len(self._children)}
        if path == "/status":
            sessions = "fork" if self._reason is None else f"exec ({self._reason})"
            report = {"phase": "ready", "agent": self._config.agent, "version": self._config.version, "active_runs": 0}
            return "200 OK", {**report, "sessions": sessions, "forked": len(self._children)}
        return "404 Not Found", {}


def _tell_failure(talk: socket.socket, error: BaseException) -> None:
    layer = str(getattr(error, "layer", "worker"))
    with contextlib.suppress(OSError):
        session_link.send(talk, {"is": "failed", "layer": layer, "text": str(error) or type(error).__name__})


def _enter(entrance: int) -> None:
    """A control group, by the `tasks` file that somebody opened who may."""
    try:
        os.write(entrance, b"0")
    except OSError as error:
        error.layer = "limits"  # type: ignore[attr-defined]
        raise
    finally:
        os.close(entrance)


def _ignore(*_: object) -> None:
    """The loop is woken by its descriptor."""
