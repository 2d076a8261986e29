"""The process of one local model: started when first wanted, started again after it died, stopped when told.

Used by `nexus.providers.local_model`, which decides when. Everything waits with a limit and nothing outlives the context.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from nexus.core import errors

_LOG = logging.getLogger(__name__)
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH")
_REFUSE_AGAIN_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one model is served. `context` is in tokens and shared by `slots` generations at once."""

    model: str
    weights: Path
    socket: Path
    log: Path
    context: int = 4096
    slots: int = 2
    threads: int = 0
    start_timeout_s: float = 60.0
    stop_timeout_s: float = 5.0

    def absent(self) -> errors.NexusError | None:
        """What is missing on this machine, if something is."""
        if self.weights.is_file():
            return None
        return errors.Unavailable(
            f"the weights of {self.model!r} are not on this machine",
            code="model.not_pulled",
            cause=f"{self.weights} is absent",
            next_step=f"nexus models pull {self.model}",
        )

    @property
    def command(self) -> list[str]:
        # llama.cpp's threads spin at barriers: with as many as cores, one that must wait for a core costs ten times the time.
        threads = self.threads or max(1, min(8, len(os.sched_getaffinity(0)) // 2))
        numbers = {"--threads": threads, "--context": self.context, "--slots": self.slots}
        options = [part for name, value in numbers.items() for part in (name, str(value))]
        places = ["--weights", str(self.weights), "--socket", str(self.socket), "--name", self.model]
        return [sys.executable, "-P", "-m", "nexus.providers.llama_server", *places, *options]


class Program(Protocol):
    """What is started: `Settings` of a local model, or the translator's."""

    @property
    def model(self) -> str: ...
    @property
    def socket(self) -> Path: ...
    @property
    def log(self) -> Path: ...
    @property
    def start_timeout_s(self) -> float: ...
    @property
    def stop_timeout_s(self) -> float: ...
    @property
    def command(self) -> list[str]: ...
    def absent(self) -> errors.NexusError | None: ...


class Engine:
    """An async context manager; leaving it kills the process. `ready` may be called by many at once."""

    def __init__(self, settings: Program) -> None:
        self.settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._refusal: errors.NexusError | None = None
        self._refused_at = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    @property
    def pid(self) -> int | None:
        """The process, when it runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    async def ready(self) -> Path:
        """The socket of a server that answers, started if need be.

        Raises `Unavailable`: `model.not_pulled`, `model.engine_missing`, `model.load_failed`, `model.start_timeout`.
        """
        async with self._starting:
            if self.pid is not None:
                return self.settings.socket
            if self._refusal is not None and time.monotonic() - self._refused_at < _REFUSE_AGAIN_S:
                raise self._refusal
            try:
                await self._start()
            except errors.NexusError as refusal:
                self._refusal, self._refused_at = refusal, time.monotonic()
                await self._end()
                raise
            except BaseException:
                await self._end()
                raise
            self._refusal = None
            return self.settings.socket

    async def settle(self, *, within_s: float) -> None:
        """Returns once the process has ended, else after `within_s`: a killed one takes connections until it is gone."""
        if (process := self._process) is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await process.wait()

    async def stop(self) -> None:
        """No process afterwards. Generations in hand are cut."""
        async with self._starting:
            await self._end()

    async def _start(self) -> None:
        model = self.settings.model
        if (absent := self.settings.absent()) is not None:
            self._refused_at = 0.0
            raise absent
        self.settings.socket.unlink(missing_ok=True)
        self.settings.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        started = time.monotonic()
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        with self.settings.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.settings.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd="/",
                env=environment,
                start_new_session=True,
            )
        await self._wait_until_ready(self._process)
        _LOG.info("model %s loaded in %.2f s (pid %d)", model, time.monotonic() - started, self._process.pid)

    async def _wait_until_ready(self, process: asyncio.subprocess.Process) -> None:
        model, limit = self.settings.model, self.settings.start_timeout_s
        assert process.stdout is not None
        try:
            async with asyncio.timeout(limit):
                line = await process.stdout.readline()
        except TimeoutError:
            raise errors.Unavailable(
                f"model {model!r} did not load within {limit:g} s", code="model.start_timeout", log_tail=self._log_tail()
            ) from None
        report = json.loads(line) if line else {"cause": "its process ended while loading"}
        if report.get("ready"):
            return
        if report.get("missing"):
            raise errors.Unavailable(
                f"model {model!r} needs llama.cpp, which is not installed",
                code="model.engine_missing",
                cause=report.get("cause"),
                next_step="pip install 'nexus-agent-hosting[offline]'",
            )
        raise errors.Unavailable(
            f"model {model!r} could not be loaded",
            code="model.load_failed",
            cause=report.get("cause"),
            next_step=f"nexus models pull {model} --force",
            log_tail=self._log_tail(),
        )

    def _log_tail(self, lines: int = 8) -> list[str]:
        try:
            return self.settings.log.read_text("utf-8", "replace")[-4096:].splitlines()[-lines:]
        except OSError:
            return []

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None and process.stdin is not None:
            process.stdin.close()
            try:
                async with asyncio.timeout(self.settings.stop_timeout_s):
                    await process.wait()
            except TimeoutError:
                _LOG.warning("model %s did not stop; killing pid %d", self.settings.model, process.pid)
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        self.settings.socket.unlink(missing_ok=True)
