"""Which environment a version needs, read from the files beside its code, and what uv's output means."""

import hashlib
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nexus.core import errors

Kind = Literal["empty", "locked", "requirements", "project"]
_INCLUDED = re.compile(r"^\s*(?:-r|-c|--requirement|--constraint)[ =]\s*(\S+)")
_LOCAL = re.compile(r"^\s*(?:-e\b|--editable\b|\.{1,2}/|file:|[\w.\[\],-]+\s*@\s*(?:file:|\.))", re.MULTILINE)
_LOCAL_IN_LOCK = re.compile(r"source = \{ (?:editable|directory|path|virtual) = \"(?!\.\")")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CREDENTIALS = re.compile(r"://[^/\s@]+@")
_NO_BUILD = re.compile(r"(?i)--no-build|no usable wheels|build\w* (?:source distributions|from source)[^\n]*is disabled")
_FORMAT = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentPlan:
    """`digest` names the environment in the cache; equal digests may share it. `python` is a version or None for the host's."""

    kind: Kind
    digest: str
    source: Path
    python: str | None = None


def plan_environment(source: Path, *, package_digest: str, host_python: str, python: str | None) -> EnvironmentPlan:
    """From `uv.lock` with `pyproject.toml`, else `requirements.txt`, else `pyproject.toml`, else nothing to install."""
    kind, files = _files(source)
    whole = hashlib.sha256(f"{_FORMAT}\0{kind}\0{python or host_python}\0".encode())
    local = False
    for path in files:
        content = path.read_bytes()
        whole.update(f"{path.relative_to(source)}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        pattern = _LOCAL_IN_LOCK if path.name == "uv.lock" else _LOCAL
        local = local or (path.name != "pyproject.toml" and pattern.search(content.decode("utf-8", "replace")) is not None)
    if local:  # it holds code of the package itself, so it belongs to this package alone
        whole.update(package_digest.encode())
    return EnvironmentPlan(kind=kind, digest=whole.hexdigest(), source=source, python=python)


def _files(source: Path) -> tuple[Kind, list[Path]]:
    lock, project, requirements = source / "uv.lock", source / "pyproject.toml", source / "requirements.txt"
    if lock.is_file() and project.is_file():
        return "locked", [project, lock]
    if requirements.is_file():
        files = list(_with_included(requirements, source, seen=set()))
        if any(_requires_something(file) for file in files):
            return "requirements", files
        return "empty", []
    if project.is_file() and _declares_dependencies(project):
        return "project", [project]
    return "empty", []


def _with_included(file: Path, root: Path, *, seen: set[Path]) -> Iterator[Path]:
    if file in seen or not file.is_file():
        return
    seen.add(file)
    yield file
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if match := _INCLUDED.match(line):
            included = Path(file.parent / match[1]).resolve()
            if included.is_relative_to(root.resolve()):
                yield from _with_included(root / included.relative_to(root.resolve()), root, seen=seen)


def _requires_something(file: Path) -> bool:
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
    return any(line for line in lines)


def _declares_dependencies(project: Path) -> bool:
    try:
        content: dict[str, Any] = tomllib.loads(project.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise errors.AgentFailed(
            "pyproject.toml cannot be read",
            code="build.failed",
            phase="build",
            cause=str(error),
            next_step="mend pyproject.toml and deploy again",
        ) from error
    table = content.get("project", {})
    return bool(table.get("dependencies")) or "dependencies" in table.get("dynamic", [])


def plan_install(plan: EnvironmentPlan, uv: str, at: Path) -> tuple[list[str], dict[str, str]]:
    """uv's arguments, to be run in the source, and the variables beside; no arguments when there is nothing to install."""
    if plan.kind == "locked":
        sync = [uv, "sync", "--frozen", "--no-install-project", "--no-dev", "--no-editable"]
        return sync, {"UV_PROJECT_ENVIRONMENT": str(at)}
    file = {"requirements": "requirements.txt", "project": "pyproject.toml"}.get(plan.kind)
    return ([uv, "pip", "install", "--python", str(at / "bin" / "python"), "-r", file] if file else []), {}


def wants_source(lines: Sequence[str]) -> bool:
    """Whether uv, told to build nothing, failed because something has to be built from source."""
    return _NO_BUILD.search("\n".join(lines)) is not None


def parse_progress(line: str) -> tuple[str, str] | None:
    """`(step, detail)` of a line that uv prints while it works; None for other lines."""
    text = tidy(line)
    word = text.partition(" ")[0]
    steps = {
        "Resolved": "resolving", "Downloading": "downloading", "Downloaded": "downloading", "Building": "building",
        "Built": "building", "Prepared": "downloading", "Installed": "installing", "Updated": "resolving",
    }  # fmt: skip
    return (steps[word], text[:200]) if word in steps else None


def tidy(line: str) -> str:
    """Without colours and without credentials in addresses."""
    return _CREDENTIALS.sub("://***@", _ANSI.sub("", line)).strip()


def explain_failure(lines: Sequence[str], *, code: int | None) -> errors.NexusError:
    """What uv's last lines mean: `build.unresolvable`, `build.offline`, `build.python_missing`, `disk.full` or `build.failed`."""
    text = "\n".join(lines)
    found, next_step = _classify(text)
    kind = {"disk.full": errors.Exhausted, "build.offline": errors.Unavailable}.get(found, errors.AgentFailed)
    return kind(
        "the environment of the agent could not be built",
        code=found,
        phase="build",
        cause=key_message(lines) or f"uv ended with code {code}",
        next_step=next_step,
        log_tail=list(lines)[-20:],
    )


def _classify(text: str) -> tuple[str, str]:
    low = text.lower()
    offline = (
        "dns error", "network is unreachable", "connection refused", "client error (connect)", "failed to lookup address",
        "network connectivity is disabled", "network was disabled", "operation timed out", "connection reset",
    )  # fmt: skip
    if "no space left on device" in low or "disk quota exceeded" in low:
        return "disk.full", "free some space, then deploy again"
    if any(sign in low for sign in offline):
        return "build.offline", "check the network or the package index (UV_DEFAULT_INDEX), then deploy again"
    if "no interpreter found" in low:
        return "build.python_missing", "install that Python on the host, or change hosting.python"
    if "no solution found" in low or "not found in the package registry" in low or "unsatisfiable" in low:
        return "build.unresolvable", "change the requirements so that they resolve: uv pip compile requirements.txt"
    return "build.failed", "see the lines above, mend the requirements and deploy again"


def key_message(lines: Sequence[str], *, longest: int = 600) -> str:
    """The lines from the last `error:` on, as one."""
    starts = [at for at, line in enumerate(lines) if line.startswith(("error:", "  × ", "× "))]
    chosen = lines[starts[-1] :] if starts else lines[-3:]
    text = " ".join(line.strip().removeprefix("error:").strip() for line in chosen)
    return text if len(text) <= longest else text[: longest - 1] + "…"
