"""The node supervisor as a process: `python -m nexus.apps.supervisor`. Started by the keeper.

SIGTERM or SIGINT ends every instance gracefully and exits (a second one at once); SIGHUP exits and leaves them running;
after `kill -9` they run on too, and the next supervisor adopts them.
"""

import asyncio
import contextlib
import gc
import hashlib
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from nexus.core import errors
from nexus.drivers.process import api, cgroups, indexes, launcher
from nexus.drivers.process import node as nodes
from nexus.kit import egress
from nexus.kit.home import Home, find_home

_LOG = logging.getLogger("nexus.supervisor")
_TRANSLATIONS = 512
_GRACE_S = 10.0
_BUILD_S = 120.0
_BUILD = """
import pathlib, sys
from nexus.worker import bundle
sys.stdout.write(str(bundle.build_worker_copy(pathlib.Path(sys.argv[1]))))
"""


class _Server(uvicorn.Server):
    """Signals are ours: the server stops after the instances have."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _WorkerCopy:
    """The host's worker copy, made on first use."""

    def __init__(self, folder: Path, build: Callable[[Path], Path]) -> None:
        self._folder = folder
        self._build = build
        self._lock = asyncio.Lock()
        self._made: Path | None = None

    async def __call__(self) -> Path:
        async with self._lock:
            made = self._made
            if made is None or not made.is_dir():
                made = self._made = await asyncio.to_thread(self._build, self._folder)
            return made


async def serve(home: Home, build_worker_copy: Callable[[Path], Path]) -> int:
    """Runs until a signal; the exit code."""
    stop = _Stop()
    stop.listen()
    environ = indexes.plan_environ(os.environ, indexes.read_pip_files(indexes.pip_files(os.environ)))
    name = "nexus-" + hashlib.sha256(os.fsencode(home.root)).hexdigest()[:12]
    layout = await asyncio.to_thread(cgroups.detect, name)
    async with contextlib.AsyncExitStack() as stack:
        node = nodes.Node(
            home,
            environ=environ,
            worker_copy=_WorkerCopy(home.worker_copies, build_worker_copy),
            layout=layout,
            grace_s=_GRACE_S,
            allowance=egress.parse_allowance(os.environ.get("NEXUS_EGRESS_ALLOW")),
        )
        await stack.enter_async_context(node)
        await _enter_local_model(stack, home)
        listener = listen(home.supervisor_socket)
        stack.callback(home.supervisor_socket.unlink, missing_ok=True)
        config = uvicorn.Config(
            api.App(node),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            timeout_keep_alive=60,
            ws="none",
            loop="asyncio",
        )
        server = _Server(config)
        _settle_memory()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve(sockets=[listener]))
            _LOG.info("supervisor listens on %s", home.supervisor_socket)
            await stop.first.wait()
            if not stop.leave_running:
                await _either(node.stop_all(grace_s=_GRACE_S), stop.second.wait())
            server.should_exit = True
    return 0


def build_worker_copy_apart(target: Path) -> Path:
    """`bundle.build_worker_copy` in a process of its own: it reads and compiles megabytes that we need not keep."""
    command = [sys.executable, "-c", _BUILD, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_S, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise errors.Unavailable(
            "the worker that runs agents could not be put together",
            code="worker.incomplete",
            phase="build",
            cause=(done.stderr.strip().splitlines() or ["it ended without a word"])[-1],
            next_step="reinstall: pip install --force-reinstall 'nexus-agent-hosting[server]'",
        )
    return Path(done.stdout)


class _Stop:
    """Signals as events: `first` begins the end, `second` forces it."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.leave_running = False

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._on, number)

    def _on(self, number: signal.Signals) -> None:
        if self.first.is_set():
            self.second.set()
        self.leave_running = self.leave_running or number is signal.SIGHUP
        self.first.set()


def listen(path: Path) -> socket.socket:
    """A listening unix socket that only its owner may open. The home's lock says that nobody else listens there."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old)
    listener.listen(256)
    listener.setblocking(False)
    return listener


async def _enter_local_model(stack: contextlib.AsyncExitStack, home: Home) -> None:
    """The local model starts on its first use. Without the `offline` extra there is none."""
    try:
        from nexus.providers import local_model
    except ImportError as error:
        _LOG.info("no local model: %s", error)
        return
    try:
        await stack.enter_async_context(local_model.Activator(home))
    except (OSError, errors.NexusError) as error:
        _LOG.warning("no local model: %s", error)
    await _enter_translator(stack, home)


async def _enter_translator(stack: contextlib.AsyncExitStack, home: Home) -> None:
    """It starts on its first use, too; where it is not installed, calls that need it are told how to."""
    from nexus.models import translator as installed
    from nexus.providers import local_model, translator

    settings = translator.Settings(
        python=installed.python_of(home),
        socket=home.run / f"engine-{installed.SOCKET}.sock",
        log=home.logs / f"model-{installed.SOCKET}.log",
    )
    try:
        activator = local_model.Activator(home, model=installed.SOCKET, settings=settings, connections=_TRANSLATIONS)
        await stack.enter_async_context(activator)
    except (OSError, errors.NexusError) as error:
        _LOG.warning("no translator: %s", error)


def _raise_descriptors() -> None:
    """As many open files as we may have: a session costs five. What we start is given limits of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _settle_memory() -> None:
    """No collection looks again at what is there by now. A collection of the oldest objects, up to a tenth of a second in one
    breath with many sessions alive, comes a tenth as often: once in thousands of starts.
    """
    gc.collect()
    gc.freeze()
    young, middle, old = gc.get_threshold()
    gc.set_threshold(young, middle, old * 10)


async def _either(*waits: object) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def main(build_worker_copy: Callable[[Path], Path] | None = None) -> int:
    """`build_worker_copy` replaces the host's own worker (another runtime, or a test's)."""
    logging.basicConfig(
        level=os.environ.get("NEXUS_LOG_LEVEL", "INFO").upper(),
        format="%(asctime)s %(levelname)-7s supervisor: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    home = find_home(os.environ.get("NEXUS_HOME"))
    os.umask(0o077)
    _raise_descriptors()
    try:
        with launcher.Lock(home.root / "supervisor.lock"):
            home.run.mkdir(parents=True, exist_ok=True, mode=0o700)
            return asyncio.run(serve(home, build_worker_copy or build_worker_copy_apart))
    except errors.NexusError as error:
        _LOG.error("%s [%s] %s", error.message, error.code, error.next_step or "")
        return 7 if isinstance(error, errors.Conflict) else 1


if __name__ == "__main__":
    sys.exit(main())
