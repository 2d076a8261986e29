"""Installing requirements with nobody's code trusted: wheels in one box, what must be built from source in a closer one.

```
wheels alone ──ok──────────────────────────► compile ──► done      our user, the shared cache of downloads, no code of strangers
     └─ something has no wheel ─► from source ──► judged ─┘         another user, a cache of its own that is thrown away
```

Byte code is compiled without the environment's own start-up files (`-S`), so a wheel's `.pth` runs only in the agent's box.
"""

import asyncio
import collections
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nexus.drivers.process import box_launcher, build_box, built_tree, environment_plans, launcher

_FROM_SOURCE = "Building from source, in a box of its own"
_DROPPED = ("XDG_CACHE_HOME", "XDG_DATA_HOME")


@dataclass(frozen=True, slots=True, kw_only=True)
class Install:
    """`command` is uv's, run in `source` on the new environment `at`; `name` is this build's own."""

    command: Sequence[str]
    environ: Mapping[str, str]
    at: Path
    source: Path
    name: str


class Installer:
    """One installation. `lines` is what uv said last, `on_line` hears it; `scratch` is a folder of ours."""

    def __init__(
        self, started: launcher.Launcher, *, scratch: Path, lines: collections.deque[str], on_line: Callable[[str], None]
    ) -> None:
        self._started = started
        self._scratch = scratch
        self._lines = lines
        self._on_line = on_line

    async def install(self, wanted: Install) -> None:
        """Raises `errors.NexusError` with phase `build`, or OSError."""
        cache = find_cache(wanted.environ)
        cache.mkdir(parents=True, exist_ok=True)
        job = build_box.Job(
            name=wanted.name,
            command=[*wanted.command, "--no-build"],
            environ=plan_environ(wanted.environ, cache),
            folder=wanted.source,
            python=wanted.at / "bin" / "python",
            read=[Path(wanted.command[0]), *build_box.find_named(wanted.environ)],
            write=[wanted.at, cache],
        )
        code = await self._run(job)
        if code != 0:
            if not environment_plans.wants_source(list(self._lines)):
                raise environment_plans.explain_failure(list(self._lines), code=code)
            self._lines.clear()
            self._on_line(_FROM_SOURCE)
            await self._from_source(replace(job, command=wanted.command), wanted.at)
        await self._compile(job, wanted.at)

    async def _from_source(self, job: build_box.Job, at: Path) -> None:
        before = built_tree.seal(at)
        owner = box_launcher.plan_owner(job.name) if (await asyncio.to_thread(self._started.look)).boxed else None
        with tempfile.TemporaryDirectory(dir=self._scratch, prefix="box-cache-") as cache:
            if owner is not None:
                await asyncio.to_thread(built_tree.hand_over, at, owner)
            try:
                own = replace(job, environ=plan_environ(job.environ, Path(cache)), write=[at, Path(cache)], own_user=False)
                code = await self._run(own)
            finally:
                await asyncio.shield(asyncio.to_thread(built_tree.take_back, at))
                await asyncio.shield(asyncio.to_thread(built_tree.take_back, Path(cache)))
        if code != 0:
            raise environment_plans.explain_failure(list(self._lines), code=code)
        built_tree.check(at, before)

    async def _compile(self, job: build_box.Job, at: Path) -> None:
        """What does not compile is left as it is, as Python itself would."""
        command = [str(at / "bin" / "python"), "-I", "-S", "-m", "compileall", "-q", "-j", "0", str(at / "lib")]
        only = replace(job, command=command, write=[at], read=[], network=False)
        await build_box.run(only, self._started, scratch=self._scratch, on_line=lambda _: None)

    async def _run(self, job: build_box.Job) -> int:
        return await build_box.run(job, self._started, scratch=self._scratch, on_line=self._on_line)


def find_cache(environ: Mapping[str, str]) -> Path:
    """Where uv keeps what it downloads. Source: uv's documentation, "Cache directory"."""
    if named := environ.get("UV_CACHE_DIR"):
        return Path(named).absolute()
    base = environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME") or tempfile.gettempdir(), ".cache")
    return Path(base).absolute() / "uv"


def plan_environ(environ: Mapping[str, str], cache: Path) -> dict[str, str]:
    """For uv in a box, whose home is an empty folder: the cache, the user's configuration and credentials by their paths."""
    planned = {name: value for name, value in environ.items() if name not in _DROPPED}
    home = Path(environ.get("HOME") or "/nonexistent")
    planned.setdefault("XDG_CONFIG_HOME", str(home / ".config"))
    if "NETRC" not in planned and (home / ".netrc").exists():
        planned["NETRC"] = str(home / ".netrc")
    return {**planned, "UV_CACHE_DIR": str(cache), "UV_LINK_MODE": "copy"}
