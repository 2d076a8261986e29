"""The worker's life: settings, log, relay, the author's code, then serving until SIGTERM. The only place that reads the
environment. Exit codes: 0 after a stop, 70 when the agent could not be started (the status file says why)."""

import asyncio
import dataclasses
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from nexus.core import errors
from nexus.wire import problem
from nexus.worker import adapters, app, entry, execution, hooks, logs, relay, relay_wake, runs, serving, settings, status, steps
from nexus.worker import door as doors
from nexus.worker.adapters import versions

EXIT_FAILED = 70
_LOG = logging.getLogger("nexus.worker")


def main() -> None:
    """Never returns."""
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True, chain=False)
    try:
        config = settings.parse_settings(os.environ)
    except ValueError as error:
        print(f"nexus worker: {error}", file=sys.stderr)  # noqa: T201 - the log is not there yet
        sys.exit(EXIT_FAILED)
    capture = logs.install(config.log_level)
    code = Worker(config, capture).live()
    capture.flush_open()
    leave(code)


def leave(code: int) -> None:
    """Exit as Python does, and without ceremony when the author's threads will not end."""
    last_resort = threading.Timer(2.0, os._exit, (code,))
    last_resort.daemon = True
    last_resort.start()
    sys.exit(code)


@dataclasses.dataclass(frozen=True, slots=True)
class Bound:
    """What a worker is given that was made before anybody knew for whom."""

    config: settings.Settings
    listener: socket.socket


Late = Callable[[uvicorn.Server, execution.Executor], Awaitable[Bound]]


class Worker:
    """One process, one agent. `relay_port` 0: any that is free; `relay_key`: what model clients show that were made before;
    `on_relay`: the relay listens and is started by the first who wants it. `late`: waits for whom it serves."""

    def __init__(
        self,
        config: settings.Settings,
        capture: logs.Capture,
        *,
        relay_port: int = 0,
        relay_key: str = "",
        on_relay: Callable[[relay.Relay], None] | None = None,
        on_ready: Callable[[], None] | None = None,
        late: Late | None = None,
    ) -> None:
        self._config, self._capture = config, capture
        self._relay_port, self._relay_key = relay_port, relay_key
        self._on_relay, self._on_ready, self._late = on_relay, on_ready, late
        self._door = doors.Door(config.door, config.token or "") if config.door else None
        self._relay: relay.Relay | None = None
        self._traces: Any = None
        self._executor: execution.Executor | None = None
        self._recorder: steps.Recorder | None = None

    def live(self) -> int:
        """Everything, in order; the exit code."""
        status.write(self._config.status_file, "importing")

        def load() -> adapters.Adapter:
            os.chdir(self._config.source)
            entry.add_to_path(self._config.source)
            return entry.load(self._config.entrypoint, self._config.source)

        return self.live_with(load, lambda: serving.bind(self._config))

    def live_with(self, load: Callable[[], adapters.Adapter], listen: Callable[[], socket.socket]) -> int:
        """The same with an agent that is imported already, say, and a socket from elsewhere."""
        try:
            self._open_doors()
            adapter = load()
            factory = serving.loop_factory(self._config)
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(self._serve(adapter, listen))
        except errors.NexusError as error:
            return self._failed(error)
        except OSError as error:
            return self._failed(
                errors.AgentFailed("the worker could not start", code="worker.start_failed", phase="start", cause=str(error))
            )
        finally:
            if self._traces is not None:
                self._traces.stop()
            if self._relay is not None:
                self._relay.stop()
        return 0

    def _failed(self, error: errors.NexusError) -> int:
        status.write(self._config.status_file, "failed", error.message, problem=problem.render(error))
        _LOG.critical("%s: %s", error.message, error.cause or error.code)
        for line in error.log_tail:
            _LOG.error("%s", line)
        return EXIT_FAILED

    def _open_doors(self) -> None:
        """Relay, hooks and traces: before the author's code, which may build its clients while it is imported."""
        config = self._config
        if self._door is None or config.door is None or config.token is None:
            return
        self._recorder = steps.Recorder(self._door)
        own = [os.environ.get(name, "") for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY")]
        self._relay = relay.Relay(
            config.door,
            config.token,
            keys=[self._relay_key, *own],
            active_runs=self._active_runs,
            whose=self._whose,
            recorder=self._recorder,
            port=self._relay_port,
        )
        if self._on_relay is None:
            self._relay.start()
        else:
            self._relay.listen()
            self._on_relay(self._relay)
        relay.export(relay.environment(self._relay.port, self._relay_key or config.token, os.environ))
        hooks.install()
        if config.traces:
            try:
                from nexus.worker import traces

                self._traces = traces.Traces(config, self._door)
            except ImportError as error:
                _LOG.warning("traces are off: the agent's opentelemetry does not fit the host's SDK (%s)", error)

    async def _bind(self, late: Late, asgi: app.App, server: uvicorn.Server, executor: execution.Executor) -> socket.socket:
        """Everything stands; now it is said for whom."""
        server.config.load()
        bound = await late(server, executor)
        config = self._config = bound.config
        for part in (asgi, executor):
            part.rebind(config)
        for holder in (self._door, self._relay):
            if holder is not None:
                holder.rebind(config.token or "")
        if config.session_id is not None:
            executor.expect(config.session_id)
        return bound.listener

    def _active_runs(self) -> list[str]:
        return [] if self._executor is None else list(self._executor.active)

    def _whose(self, run_id: str) -> tuple[str, str]:
        run = None if self._executor is None else self._executor.active.get(run_id)
        return ("", "") if run is None else (run.session_id, run.user_id)

    def _attribution(self, run: runs.Run, host: str, port: int) -> dict[str, str]:
        return {} if self._relay is None else self._relay.attribution(run.run_id, host, port)

    async def _serve(self, adapter: adapters.Adapter, listen: Callable[[], socket.socket]) -> None:
        config = self._config
        executor = self._executor = execution.Executor(
            config,
            adapter,
            door=self._door,
            counter=self._relay,
            tracer=self._traces,
            capture=self._capture,
            attribution=self._attribution,
            recorder=self._recorder,
        )
        asgi = app.App(config, executor)
        server = serving.build(asgi, config)
        listener = listen() if self._late is None else await self._bind(self._late, asgi, server, executor)
        config = self._config
        listener.listen(2048)
        signals: asyncio.Queue[int] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, signals.put_nowait, number)
        if self._relay is not None and self._on_relay is not None:
            relay_wake.on_arrival(self._relay, loop)
        if self._on_ready is not None:
            self._on_ready()
        status.write(config.status_file, "ready", f"listening with the {adapter.name} adapter", note=versions.noted())
        if config.session_id is None:
            _LOG.info("ready: %s %s (%s)", config.agent, config.version, adapter.name)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve(sockets=[listener]), name="server")
            await signals.get()
            asgi.phase = "stopping"
            server.stop_accepting()
            drained = tasks.create_task(executor.drain(config.grace_s), name="drain")
            hurried = tasks.create_task(_hurry(signals, executor), name="second signal")
            await drained
            await asgi.close()
            hurried.cancel()
            server.should_exit = True


async def _hurry(signals: asyncio.Queue[int], executor: execution.Executor) -> None:
    """A second signal: no more patience."""
    await signals.get()
    executor.stop_all()
