"""Handing an environment to the user that a build runs as, and taking it back: what strangers' code made of it is judged.

Nothing of the build runs any more when it is taken back. Its interpreter must be the one that was there before, or an agent's box
would show whatever a link was led to.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from nexus.core import errors

_MOST_CONFIG = 64 * 1024


@dataclass(frozen=True, slots=True)
class Seal:
    """What a build may not change of a virtual environment."""

    python: str
    config: bytes


def seal(environment: Path) -> Seal:
    """Before strangers' code may touch it. Raises OSError."""
    return Seal(python=os.readlink(environment / "bin" / "python"), config=(environment / "pyvenv.cfg").read_bytes())


def hand_over(folder: Path, owner: int) -> None:
    for path in _below(folder):
        os.chown(path, owner, owner, follow_symlinks=False)


def take_back(folder: Path) -> None:
    """Ours again, without special bits, and without what is neither file, folder nor link."""
    for path in _below(folder):
        mode = os.lstat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            os.unlink(path)
            continue
        os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)
        if not stat.S_ISLNK(mode):
            os.chmod(path, stat.S_IMODE(mode) & 0o755 | stat.S_IRUSR | (stat.S_IXUSR if stat.S_ISDIR(mode) else 0))


def check(environment: Path, before: Seal) -> None:
    """Raises `AgentFailed` (`build.tampered`) unless interpreter and configuration are as they were."""
    for folder in (environment, environment / "bin", environment / "lib"):
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise _tampered(f"{folder.name} is no folder any more")
    try:
        config = environment / "pyvenv.cfg"
        if not stat.S_ISREG(config.lstat().st_mode) or config.stat().st_size > _MOST_CONFIG:
            raise _tampered("pyvenv.cfg was changed")
        after = seal(environment)
    except OSError as error:
        raise _tampered(f"{error.filename}: {error.strerror}") from error
    if after != before:
        raise _tampered("the interpreter's link was changed" if after.python != before.python else "pyvenv.cfg was changed")


def _tampered(what: str) -> errors.AgentFailed:
    return errors.AgentFailed(
        "a requirement's set-up code changed what an environment rests on",
        code="build.tampered",
        phase="build",
        cause=what,
        next_step="find out which requirement is built from source, and do not trust it",
    )


def _below(folder: Path) -> list[str]:
    """Everything in it and itself, the deepest first; links are not followed."""
    found = [str(folder)]
    for directory, folders, files in os.walk(folder):
        found += [os.path.join(directory, name) for name in (*folders, *files)]
    return found[::-1]
