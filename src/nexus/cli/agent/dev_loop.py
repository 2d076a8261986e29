"""The loop behind `nexus ai agent dev`: build the environment, start the worker, watch the files, start again."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nexus.cli.agent import project
from nexus.core import errors
from nexus.drivers.process import environment_plans, environments, indexes
from nexus.wire import problem
from nexus.worker import bundle

LOOK_EVERY_S = 0.3
_LOOK_SOON_S = 0.05
_GRACE_S = 3.0
_MOST_FILES = 20_000
_LONGEST_LINE = 1024 * 1024
_SKIPPED = frozenset({"__pycache__", "node_modules", "venv", "dist", "build"})
_REQUIREMENTS = ("requirements.txt", "pyproject.toml", "uv.lock", project.CONFIG)
_NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_KEPT = ("NEXUS_MODEL",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something to show: `building`, `starting`, `ready`, `log`, `changed`, `failed`."""

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    error: errors.NexusError | None = None


def failed(error: errors.NexusError) -> Event:
    return Event(name="failed", data={"error": problem.render(error)}, error=error)


def is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file that may matter, with modification time and size."""
    return {path: stamp for path, stamp in _stamps(folder)}


def _stamps(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    seen = 0
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _SKIPPED]
        for name in files:
            if name.startswith(".") or name.endswith((".pyc", "~", ".swp")):
                continue
            seen += 1
            if seen > _MOST_FILES:
                return
            path = os.path.join(where, name)
            with contextlib.suppress(OSError):
                stat = os.stat(path)
                yield os.path.relpath(path, folder), (stat.st_mtime_ns, stat.st_size)


def changed(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


class Session:
    """One `dev` session. `run` ends when it is cancelled (Ctrl-C, SIGTERM); mistakes of the author never end it."""

    def __init__(
        self, *, folder: Path, port: int, models: Mapping[str, str], scratch: Path, tell: Callable[[Event], None]
    ) -> None:
        self._folder, self._port, self._models, self._scratch, self._tell = folder, port, models, scratch, tell
        self._own = folder / ".nexus"
        self._status_file = scratch / "status.json"

    async def run(self) -> None:
        main = asyncio.current_task()
        assert main is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main.cancel)
        self._own.mkdir(exist_ok=True)
        copy = await asyncio.to_thread(bundle.build_worker_copy, self._own / "worker")
        environ = indexes.plan_environ(os.environ, indexes.read_pip_files(indexes.pip_files(os.environ)))
        store = environments.Environments(self._own / "environments", environ=environ)
        store.sweep()
        while True:
            seen = snapshot(self._folder)
            try:
                seen = await self._once(copy, store, seen)
            except errors.NexusError as error:
                self._tell(failed(error))
                seen = await self._change(seen)

    async def _once(
        self, copy: Path, store: environments.Environments, seen: dict[str, tuple[int, int]]
    ) -> dict[str, tuple[int, int]]:
        """One life of the worker: until a file changes. Returns the files as they then are."""
        found = project.read(self._folder)
        plan = environment_plans.plan_environment(
            self._folder, package_digest="dev", host_python=environments.host_python(), python=found.config.hosting.python
        )
        environment = await store.ensure(
            plan, lambda step, detail: self._tell(Event(name="building", data={"detail": detail or step}))
        )
        self._status_file.unlink(missing_ok=True)
        self._tell(Event(name="starting", data={"name": found.config.name}))
        process = await asyncio.create_subprocess_exec(
            str(environment / "bin" / "python"),
            "-P",
            str(copy / "boot.py"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self._folder,
            env=self._environ(found),
            start_new_session=True,
            limit=_LONGEST_LINE,
        )
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read(process))
                try:
                    await self._watch_start(process, found, seen)
                    return await self._change(seen, process)
                finally:
                    await _stop(process)
                    await asyncio.wait((reading,), timeout=1.0)
                    reading.cancel()
        except ExceptionGroup as several:  # what `except*` raises is a group again before Python 3.11.4
            for error in several.exceptions:
                if isinstance(error, errors.NexusError):
                    raise error from None
            raise

    def _environ(self, found: project.Project) -> dict[str, str]:
        hosting = found.config.hosting
        env = {
            name: value
            for name, value in os.environ.items()
            if name not in _NOT_INHERITED and (name in _KEPT or not name.startswith("NEXUS_"))
        }
        env |= {**self._models, **hosting.env}
        env |= {
            "NEXUS_INSTANCE_ID": "ins_dev",
            "NEXUS_AGENT": found.config.name,
            "NEXUS_AGENT_VERSION": found.config.version or "dev",
            "NEXUS_ENVIRONMENT": "development",
            "NEXUS_SOURCE": str(self._folder),
            "NEXUS_ENTRYPOINT": found.config.entrypoint or "",
            "NEXUS_STATUS_FILE": str(self._status_file),
            "NEXUS_RUN_TIMEOUT_S": f"{hosting.timeout:g}",
            "NEXUS_GRACE_S": "1",
            "PORT": str(self._port),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if hosting.concurrency:
            env["NEXUS_CONCURRENCY"] = str(hosting.concurrency)
        return env

    async def _watch_start(
        self, process: asyncio.subprocess.Process, found: project.Project, seen: Mapping[str, tuple[int, int]]
    ) -> None:
        """Until the worker listens, fails, or a file changes. Raises what kept it from starting."""
        deadline = time.monotonic() + found.config.hosting.start_timeout
        while True:
            status = _read_json(self._status_file)
            if status.get("phase") == "ready":
                url = f"http://127.0.0.1:{self._port}/agents/{found.config.name}/run"
                self._tell(Event(name="ready", data={"name": found.config.name, "url": url, "pid": process.pid}))
                return
            if process.returncode is not None:
                told = status.get("problem")
                raise problem.parse(told) if isinstance(told, dict) else _exited(process)
            if time.monotonic() > deadline:
                raise errors.AgentFailed(
                    f"{found.config.name} did not start in {found.config.hosting.start_timeout:g} s",
                    code="start.timeout",
                    phase="start",
                    next_step="look for what takes so long while the module is imported",
                )
            if changed(seen, await asyncio.to_thread(snapshot, self._folder)):
                return
            await asyncio.sleep(_LOOK_SOON_S)

    async def _change(
        self, seen: dict[str, tuple[int, int]], process: asyncio.subprocess.Process | None = None
    ) -> dict[str, tuple[int, int]]:
        """Wait until a file changes. Raises when the worker ends by itself."""
        while True:
            now = await asyncio.to_thread(snapshot, self._folder)
            if paths := changed(seen, now):
                more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
                self._tell(Event(name="changed", data={"files": ", ".join(paths[:3]) + more}))
                return now
            if process is not None and process.returncode is not None:
                raise _exited(process)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                raw = await process.stdout.readline()
            except ValueError:
                continue
            if not raw:
                return
            self._tell(Event(name="log", data=parse_line(raw)))


def parse_line(raw: bytes) -> dict[str, Any]:
    """A log line of the worker; whatever else was written becomes one."""
    text = raw.decode("utf-8", "replace").rstrip("\r\n")
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        line = None
    if isinstance(line, dict) and "message" in line:
        return line
    return {"at": time.time(), "level": "info", "message": text}


def _exited(process: asyncio.subprocess.Process) -> errors.AgentFailed:
    code = process.returncode or 0
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return errors.AgentFailed(
        "the agent's process ended by itself",
        code="agent.exited",
        phase="run",
        cause=how,
        next_step="look at its last lines above",
    )


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End the worker and whatever it started: ask, wait a little, insist."""
    for number, patience_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        if process.returncode is not None and number is signal.SIGKILL:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await process.wait()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
