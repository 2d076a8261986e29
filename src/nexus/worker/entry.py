"""From `NEXUS_ENTRYPOINT` to the author's object: `module:attribute`, `module`, or nothing (then it is looked for)."""

import importlib
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from nexus.core import errors
from nexus.worker import adapters, ahead, faults, light
from nexus.worker.adapters import agent, quiet, unserved

FILES = ("agent", "main", "app")
ATTRIBUTES = ("agent", "graph", "app", "run", "main", "process", "handler")


def add_to_path(source: Path) -> None:
    """Make the author's folder importable, as a script's own folder is; `src/` too where the project has one."""
    folders = [str(source)]
    if (source / "src").is_dir() and not (source / "src" / "__init__.py").exists():
        folders.append(str(source / "src"))
    sys.path[:] = [*folders, *(entry for entry in sys.path if entry not in folders)]


def load(entrypoint: str, source: Path) -> adapters.Adapter:
    """Import the entry point and choose its adapter.

    Raises `AgentFailed` with phase `import`: codes `entrypoint.not_found`, `entrypoint.syntax_error`,
    `entrypoint.import_failed`, `entrypoint.not_an_agent`, `entrypoint.bad_signature`.
    """
    if not source.is_dir():
        raise _failed("entrypoint.not_found", f"the source folder {source} does not exist", None)
    quiet.quieten(os.environ)
    light.put_off()
    module_name, _, attribute = entrypoint.partition(":")
    with unserved.unserved():
        module = _import(module_name or _find_file(source), source)
    target = _attribute(module, attribute) if attribute else _find_attribute(module)
    try:
        adapter = adapters.choose(target)
        ahead.fetch()
        return adapter
    except errors.NexusError:
        raise
    except BaseException as error:
        raise _import_problem(error, source, f"creating {_name(target)} failed") from error


def _find_file(source: Path) -> str:
    for name in FILES:
        if (source / f"{name}.py").is_file() or (source / name / "__init__.py").is_file():
            return name
    raise _failed(
        "entrypoint.not_found",
        "no entry point is set, and there is no agent.py, main.py or app.py",
        "add `entrypoint: module:attribute` to config.yaml",
    )


def _import(name: str, source: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            there = sorted(path.stem for path in source.glob("*.py"))[:8]
            raise errors.AgentFailed(
                f"the entry point names the module {name!r}, which does not exist",
                code="entrypoint.not_found",
                phase="import",
                cause=f"there is no {name.replace('.', '/')}.py" + (f"; there is {', '.join(there)}" if there else ""),
                next_step="correct entrypoint in config.yaml (module:attribute)",
            ) from error
        raise _import_problem(error, source, f"importing {name} failed") from error
    except BaseException as error:
        raise _import_problem(error, source, f"importing {name} failed") from error


def _import_problem(error: BaseException, source: Path, what: str) -> errors.AgentFailed:
    tail = faults.short_traceback(error, source)
    where = faults.author_line(error.__traceback__, source)
    cause, code, step = faults.describe(error), "entrypoint.import_failed", "mend the error above and deploy again"
    if isinstance(error, SyntaxError):
        code, where = "entrypoint.syntax_error", _syntax_place(error, source)
        cause = f"{type(error).__name__}: {error.msg}"
        tail = "".join(traceback.format_exception_only(error)).rstrip("\n").split("\n")
    elif isinstance(error, SystemExit):
        cause, step = f"sys.exit({error.code!r})", "do not call sys.exit while importing; guard it with __name__ == '__main__'"
    elif isinstance(error, ModuleNotFoundError) and error.name:
        step = f"add the package that brings {error.name.partition('.')[0]!r} to requirements.txt and deploy again"
    elif isinstance(error, KeyError) and where:
        step = "if it is a missing environment variable: nexus ai agent secret set, or hosting.env in config.yaml"
    return errors.AgentFailed(
        what,
        code=code,
        phase="import",
        cause=cause + (f" ({where})" if where else ""),
        next_step=step,
        log_tail=tail,
        extra={"location": where} if where else {},
    )


def _syntax_place(error: SyntaxError, source: Path) -> str | None:
    if error.filename is None:
        return None
    path = Path(error.filename)
    shown = path.relative_to(source) if path.is_relative_to(source) else path
    return f"{shown}:{error.lineno}"


def _attribute(module: ModuleType, dotted: str) -> Any:
    target: Any = module
    for name in dotted.split("."):
        try:
            target = getattr(target, name)
        except AttributeError:
            there = [entry for entry in vars(module) if not entry.startswith("_")][:12]
            raise errors.AgentFailed(
                f"the module {module.__name__!r} has no attribute {dotted!r}",
                code="entrypoint.not_found",
                phase="import",
                cause=f"it has {', '.join(there) or 'nothing'}",
                next_step="correct entrypoint in config.yaml (module:attribute)",
            ) from None
    return target


def _find_attribute(module: ModuleType) -> Any:
    for name in ATTRIBUTES:
        if (target := getattr(module, name, None)) is not None and not isinstance(target, ModuleType):
            return target
    classes = [entry for entry in vars(module).values() if agent.is_agent_class(entry) and entry.__module__ == module.__name__]
    if len(classes) == 1:
        return classes[0]
    if classes:
        found = ", ".join(entry.__name__ for entry in classes)
        raise _failed(
            "entrypoint.ambiguous",
            f"{module.__name__} has several agents: {found}",
            f"say which one: entrypoint: {module.__name__}:{classes[0].__name__}",
        )
    raise _failed(
        "entrypoint.not_found",
        f"nothing in {module.__name__} looks like an agent",
        f"name it {', '.join(ATTRIBUTES)}, or add `entrypoint: {module.__name__}:attribute` to config.yaml",
    )


def _failed(code: str, message: str, next_step: str | None) -> errors.AgentFailed:
    return errors.AgentFailed(message, code=code, phase="import", next_step=next_step)


def _name(target: object) -> str:
    return getattr(target, "__name__", type(target).__name__)
