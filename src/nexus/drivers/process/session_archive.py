"""Work directories of sessions that are to be kept, as one file each: packed inside the session's box, an opaque thing to us.

They lie below the home by tenant, agent and environment, so they outlive the instance, and a redeploy.
"""

import asyncio
import contextlib
import errno
import hashlib
import os
import time
from pathlib import Path

from nexus.core import errors, instances
from nexus.drivers.process import session_commands
from nexus.kit.home import Home

_PACK_S = 60.0
_TOO_LARGE = 2
_PIECE = 64 * 1024


def forget(kept: Path, *, tenant: str, agent: str, environment: str, session_id: str | None) -> None:
    """Remove what is kept of a session, or (None) of all the agent's in this environment. `kept`: `kept_in` of the home."""
    folder = kept / tenant / agent / environment
    for path in folder.glob("*.tar") if session_id is None else (folder / _name(session_id),):
        _unlink(path)


def kept_in(home: Home) -> Path:
    return home.root / "sessions"


class Archives:
    """Those of one agent in one environment."""

    def __init__(self, home: Home, spec: instances.InstanceSpec) -> None:
        self._folder = kept_in(home) / spec.tenant / spec.agent / spec.environment

    def path(self, session_id: str) -> Path:
        return self._folder / _name(session_id)

    def open(self, session_id: str) -> int | None:
        """A descriptor to read it from; None when there is none."""
        try:
            return os.open(self.path(session_id), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None

    async def save(self, session_id: str, keeper: Path, beside: Path, *, most: int) -> None:
        """Have the keeper pack the work directory; what was kept before stays unless all of it is there.

        Raises `Exhausted` (`session.too_large`) or `Unavailable`.
        """
        target = self.path(session_id)
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        output = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            intake = _Intake(output, most)
            try:
                code = await session_commands.pack(keeper, intake.writing, most=most, timeout_s=_PACK_S, sent=intake.begin)
                intake.take_rest()
            finally:
                intake.close()
            if code == _TOO_LARGE or intake.too_much:
                raise errors.Exhausted(
                    "the session's work directory is too large to be kept",
                    code="session.too_large",
                    phase="save",
                    cause=f"more than {most} bytes",
                    next_step="raise hosting.session.work_size, or remove files that need not be kept",
                )
            if code != 0:
                raise errors.Unavailable(
                    "the work directory could not be packed", code="session.not_saved", cause=f"exit code {code}"
                )
            os.replace(beside, target)
        except (OSError, TimeoutError) as error:
            raise errors.Unavailable(
                "the work directory could not be kept", code="session.not_saved", cause=str(error) or "it took too long"
            ) from error
        finally:
            os.close(output)
            _unlink(beside)

    def prune(self, *, older_s: float) -> int:
        """Remove what nobody came back for; how many there were."""
        gone, before = 0, time.time() - older_s
        for path in self._folder.glob("*.tar"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < before:
                    path.unlink()
                    gone += 1
        return gone

    def forget(self, session_id: str) -> None:
        _unlink(self.path(session_id))


def _name(session_id: str) -> str:
    return f"{hashlib.sha256(session_id.encode()).hexdigest()[:40]}.tar"


class _Intake:
    """What comes by a pipe, written to a file: no box may write a file of this machine, and `most` holds whoever writes."""

    def __init__(self, output: int, most: int) -> None:
        self.too_much = False
        self._reading, self.writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reading, False)
        self._output, self._left = output, most
        self._failed: OSError | None = None
        asyncio.get_running_loop().add_reader(self._reading, self._take)

    def begin(self) -> None:
        """The box has its end: ours of the same is closed, so that its end can be seen."""
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def take_rest(self) -> None:
        """What was written before its writer said that it was done. Raises OSError."""
        while self._take():
            pass
        if self._failed is not None:
            raise self._failed

    def close(self) -> None:
        self.begin()
        self._stop()

    def _take(self) -> bool:
        if self._reading < 0:
            return False
        try:
            piece = os.read(self._reading, _PIECE)
            self._left -= len(piece)
            self.too_much = self._left < 0
            written = 0 if self.too_much else os.write(self._output, piece)
            if written < len(piece) and not self.too_much:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except BlockingIOError:
            return False
        except OSError as error:
            self._failed, piece = error, b""
        if not piece or self.too_much:
            self._stop()
        return self._reading >= 0

    def _stop(self) -> None:
        """Whoever goes on writing hears that nobody reads."""
        if self._reading >= 0:
            asyncio.get_running_loop().remove_reader(self._reading)
            os.close(self._reading)
            self._reading = -1


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
