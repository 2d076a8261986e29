"""Runs one program of a build in a box of its own: it sees its input, its tools and the network, and writes where it is told.

What installs wheels alone runs no code of strangers and keeps our own user, so that downloads can be shared. What builds from
source runs code of strangers: another user on this machine, and nothing it writes is used by any other build.
"""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from nexus.drivers.process import launcher, limits, sandbox

_DISK_BYTES = 32 * 1024**3
_PROCESSES = 4096
_LONGEST = 64 * 1024
_SPLIT = (",", " ")

OnLine = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`folder` is where it runs; `read` and `write` are what it sees of the host beside its interpreter and the system."""

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    folder: Path
    python: Path
    read: Sequence[Path] = ()
    write: Sequence[Path] = ()
    own_user: bool = True
    network: bool = True


async def run(job: Job, started: launcher.Launcher, *, scratch: Path, on_line: OnLine) -> int:
    """Its exit code; a signal is a negative number. Cancelled, nothing of it is left. Raises `errors.NexusError` or OSError."""
    with tempfile.TemporaryDirectory(dir=scratch, prefix="box-") as name:
        at = Path(name)
        for folder in ("stage", "home", "tmp"):
            (at / folder).mkdir()
        lines = _Lines(at / "output.fifo", on_line)
        try:
            output = os.open(at / "output.fifo", os.O_RDWR | os.O_CLOEXEC)
            try:
                running = await _launch(_plan(job, at, output), started)
            finally:
                os.close(output)
            try:
                exit_ = await running.wait()
            finally:
                await asyncio.shield(running.close())
        finally:
            lines.close()
    return exit_.code if exit_.code is not None else -(exit_.signal or signal.SIGKILL)


def _plan(job: Job, at: Path, output: int) -> launcher.Plan:
    needed, links = sandbox.interpreter(job.python, private=at)
    home, temporary = at / "home", at / "tmp"
    return launcher.Plan(
        instance_id=job.name,
        command=job.command,
        environ={**job.environ, "HOME": str(home), "TMPDIR": str(temporary)},
        folder=job.folder,
        output=output,
        memory_bytes=None,
        cpu_millis=None,
        wish=sandbox.Wish(
            stage=at / "stage",
            folder=job.folder,
            home=home,
            output=at / "output.fifo",
            read=[path for path in (job.folder, *job.read, *needed) if path.exists()],
            write=[*job.write, home, temporary],
            links=links,
            network="host" if job.network else "isolated",
            own_user=job.own_user,
        ),
        allowed=limits.Limits(processes=_PROCESSES, disk_bytes=_DISK_BYTES),
    )


async def _launch(plan: launcher.Plan, started: launcher.Launcher) -> launcher.Running:
    """In a thread; who cancels us meanwhile leaves nothing running."""
    launching = asyncio.ensure_future(asyncio.to_thread(started.launch, plan))
    try:
        return await asyncio.shield(launching)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):
            await (await launching).close()
        raise


class _Lines:
    """A FIFO whose lines are handed on as they come; long ones are cut."""

    def __init__(self, path: Path, on_line: OnLine) -> None:
        os.mkfifo(path, 0o600)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._on_line = on_line
        self._rest = b""
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        while self._read():
            pass
        if self._rest:
            self._take(self._rest)
        os.close(self._fd)

    def _read(self) -> bool:
        try:
            piece = os.read(self._fd, _LONGEST)
        except OSError:
            return False
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._take(line)
        self._rest = self._rest[:_LONGEST]
        return bool(piece)

    def _take(self, line: bytes) -> None:
        self._on_line(line[:_LONGEST].decode("utf-8", "replace"))


def find_named(environ: Mapping[str, str]) -> list[Path]:
    """Files and folders of the host that uv's settings name: indexes on disk, certificates, its configuration, credentials."""
    home = Path(environ.get("HOME") or "/nonexistent")
    found = [Path(environ[name]) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "NETRC", "UV_CONFIG_FILE") if environ.get(name)]
    for name in ("UV_FIND_LINKS", "UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL"):
        for entry in _split(environ.get(name, "")):
            place = entry.partition("=")[2] if "=" in entry.partition("://")[0] else entry  # an index may have a name
            path = Path(unquote(urlsplit(place).path) if place.startswith("file://") else place)
            if path.is_absolute():
                found.append(path if name == "UV_FIND_LINKS" else _whole_index(path, home))
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    found += [config / "uv" / "uv.toml", Path("/etc/uv/uv.toml"), home / ".netrc"]
    return [path for path in dict.fromkeys(found) if path.is_absolute() and path.exists()]


def _whole_index(path: Path, home: Path) -> Path:
    """An index in folders keeps its files beside its pages (`simple/`, `files/`); never so much that the home would show."""
    above = path.parent
    return path if above == Path("/") or home.is_relative_to(above) else above


def _split(text: str) -> list[str]:
    for mark in _SPLIT:
        text = text.replace(mark, "\n")
    return text.split()
