"""The translator's own environment: built once with uv from locked hashes, under the home, because its library needs versions of
the vendors' SDKs that contradict those of others.

`nexus models translator` builds it; the node supervisor starts it on first use (`nexus.providers.translator`).
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from nexus.core import errors
from nexus.kit import home as homes

SOCKET = "translator"
_LOCK = Path(__file__).with_name("translator.lock")
_TIMEOUT_S = 900.0


def python_of(home: homes.Home) -> Path:
    """The interpreter of the environment that this version of the host wants, built or not."""
    wanted = _LOCK.read_bytes() + f"{sys.version_info[:2]} {sys.executable}".encode()
    return home.root / "translator" / hashlib.sha256(wanted).hexdigest()[:16] / "bin" / "python"


def is_installed(home: homes.Home) -> bool:
    return (python_of(home).parents[1] / ".done").exists()


def install(home: homes.Home) -> bool:
    """Build it; False when it is there already. Raises `Unavailable` (`translator.not_installed`) with uv's last words."""
    if is_installed(home):
        return False
    place = python_of(home).parents[1]
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    shutil.rmtree(place, ignore_errors=True)
    uv = [sys.executable, "-m", "uv"]
    _run([*uv, "venv", "--quiet", "--no-project", "--python", sys.executable, str(place)])
    flags = ["--quiet", "--no-build", "--require-hashes", "--link-mode=copy"]
    _run([*uv, "pip", "install", *flags, "--python", str(python_of(home)), "-r", str(_LOCK)])
    for other in place.parent.iterdir():
        if other != place:
            shutil.rmtree(other, ignore_errors=True)
    (place / ".done").touch()
    return True


def remove(home: homes.Home) -> bool:
    """Whether there was anything to remove."""
    place = home.root / "translator"
    found = place.exists()
    shutil.rmtree(place, ignore_errors=True)
    return found


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _not_installed(type(error).__name__, ()) from error
    if done.returncode:
        raise _not_installed(f"exit code {done.returncode}", done.stderr.strip().splitlines()[-6:])


def _not_installed(cause: str, tail: "list[str] | tuple[()]") -> errors.Unavailable:
    return errors.Unavailable(
        "the translator's environment could not be built",
        code="translator.not_installed",
        cause=cause,
        log_tail=list(tail),
        next_step="it needs a package index (UV_INDEX_URL and the like are read); try again: nexus models translator",
    )
