"""The virtual environments of agents: built once by uv for each set of requirements, shared by all who need it.

A build happens beside its final place and is renamed when whole, so a half-built environment is never used and a killed
build leaves only rubbish that the next start sweeps away.
"""

import asyncio
import collections
import contextlib
import logging
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nexus.core import errors
from nexus.drivers.process import environment_installs, environment_plans, launcher
from nexus.drivers.process.environment_plans import EnvironmentPlan
from nexus.kit import guard

_LOG = logging.getLogger(__name__)
_BUILDING = ".building"
_AT_ONCE = 2

OnStep = Callable[[str, str], None]


def host_python() -> str:
    """What decides whether two hosts may share an environment: version, build and machine."""
    return f"{platform.python_implementation()}-{platform.python_version()}-{sys.platform}-{platform.machine()}"


def find_uv() -> str | None:
    """The uv of our own wheel, else the one on the PATH."""
    try:
        import uv

        return str(uv.find_uv_bin())
    except (ImportError, FileNotFoundError):
        return shutil.which("uv")


class Environments:
    """A folder of environments. `ensure` is the only verb; builds of the same digest share one."""

    def __init__(
        self,
        folder: Path,
        *,
        environ: Mapping[str, str],
        uv: str | None = None,
        python: str = sys.executable,
        timeout_s: float = 900.0,
        started: launcher.Launcher | None = None,
    ) -> None:
        """With `started` everything that handles requirements runs in boxes (`build_box`); without, as this process's user."""
        self._folder = folder
        self._environ = dict(environ)
        self._uv = uv or find_uv()
        self._python = python
        self._timeout_s = timeout_s
        self._started = started
        self._builds: dict[str, _Build] = {}
        self._tasks: set[asyncio.Task[Path | errors.NexusError]] = set()
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def sweep(self) -> None:
        """Remove what killed builds left. Only while no build runs: one supervisor owns the folder."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        for path in (*self._folder.glob(f"*{_BUILDING}"), *self._folder.glob("box-*")):
            shutil.rmtree(path, ignore_errors=True)

    async def ensure(self, plan: EnvironmentPlan, on_step: OnStep) -> Path:
        """The finished environment. Waits for a build already under way; the last waiter to leave cancels the build.

        Raises `errors.NexusError` with phase `build`.
        """
        final = self._folder / plan.digest
        if (final / "pyvenv.cfg").is_file() and (final / "bin" / "python").exists():
            return final
        build = self._builds.get(plan.digest)
        if build is None or build.task.cancelling() or build.task.done():
            build = self._builds[plan.digest] = _Build()
            build.task = guard.spawn(self._attempt(plan, final, build), name=f"build {plan.digest[:12]}", owner=self._tasks)
        build.waiting.append(on_step)
        on_step(*build.step)
        try:
            built = await asyncio.shield(build.task)
        finally:
            build.waiting.remove(on_step)
            if not build.waiting and not build.task.done():
                build.task.cancel()
        if isinstance(built, errors.NexusError):
            raise built
        return built

    async def _attempt(self, plan: EnvironmentPlan, final: Path, build: "_Build") -> Path | errors.NexusError:
        """A failed build is a result like any other: every waiter raises it."""
        try:
            return await self._build(plan, final, build)
        except errors.NexusError as error:
            return error

    async def _build(self, plan: EnvironmentPlan, final: Path, build: "_Build") -> Path:
        building = self._folder / f"{plan.digest}{_BUILDING}"
        try:
            async with self._slots, asyncio.timeout(self._timeout_s):
                await asyncio.to_thread(shutil.rmtree, building, ignore_errors=True)
                await asyncio.to_thread(shutil.rmtree, final, ignore_errors=True)
                await self._make(plan, building, build)
                os.rename(building, final)
                return final
        except TimeoutError as error:
            raise errors.AgentFailed(
                "the environment of the agent was not built in time",
                code="build.timeout",
                phase="build",
                cause=f"uv needed more than {self._timeout_s:g} s",
                next_step="deploy again: what was downloaded is kept",
                log_tail=list(build.lines)[-20:],
            ) from error
        except OSError as error:
            raise environment_plans.explain_failure([f"error: {error.strerror}: {error.filename or ''}"], code=None) from error
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, building, ignore_errors=True))
            if self._builds.get(plan.digest) is build:
                del self._builds[plan.digest]

    async def _make(self, plan: EnvironmentPlan, at: Path, build: "_Build") -> None:
        """The empty environment by our own uv, then what the requirements say."""
        if self._uv is None:
            raise errors.Unavailable(
                "uv is not installed",
                code="build.no_uv",
                phase="build",
                cause="neither the uv wheel nor a uv on the PATH was found",
                next_step="pip install 'nexus-agent-hosting[server]'",
            )
        offline = ["--offline"] if plan.kind == "empty" else []
        python = plan.python or self._python
        venv = [self._uv, "venv", "--no-project", "--no-config", "--relocatable", "--quiet", "--python", python, *offline]
        await self._run([*venv, str(at)], self._environ, self._folder, build)
        command, environ = environment_plans.plan_install(plan, self._uv, at)
        if not command:
            return
        if self._started is None:
            await self._run([*command, "--compile-bytecode"], {**self._environ, **environ}, plan.source, build)
            return
        boxed = environment_installs.Install(
            command=command,
            environ={**self._environ, **environ},
            at=at,
            source=plan.source,
            name=f"env-{plan.digest[:20]}",
        )
        installer = environment_installs.Installer(self._started, scratch=self._folder, lines=build.lines, on_line=build.take)
        await installer.install(boxed)

    async def _run(self, command: Sequence[str], environ: Mapping[str, str], folder: Path, build: "_Build") -> None:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=folder,
            env=dict(environ),
            start_new_session=True,
            limit=1024 * 1024,
        )
        try:
            assert process.stdout is not None
            async for raw in process.stdout:
                build.take(raw.decode("utf-8", "replace"))
            code = await process.wait()
        except ValueError as error:  # one line longer than the limit
            raise environment_plans.explain_failure([*build.lines, f"error: {error}"], code=None) from error
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await asyncio.shield(process.wait())
        if code != 0:
            raise environment_plans.explain_failure(list(build.lines), code=code)


class _Build:
    """One build under way: who waits for it, and the last thing it said."""

    task: asyncio.Task[Path | errors.NexusError]

    def __init__(self) -> None:
        self.waiting: list[OnStep] = []
        self.lines: collections.deque[str] = collections.deque(maxlen=60)
        self.step = ("resolving", "")
        self.started = time.monotonic()

    def take(self, line: str) -> None:
        text = environment_plans.tidy(line)
        if not text:
            return
        self.lines.append(text)
        progress = environment_plans.parse_progress(text)
        if progress is not None and progress != self.step:
            self.step = progress
            for on_step in self.waiting:
                on_step(*progress)
