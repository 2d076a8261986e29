"""`$NEXUS_HOME/models.yaml`: read with every mistake named, and read again when it changed."""

import os
from pathlib import Path
from typing import Any

import pydantic
import ruamel.yaml
from ruamel.yaml import error as yaml_error

from nexus.core import errors
from nexus.wire import models as wire

NAME = "models.yaml"
_MOST_BYTES = 1024 * 1024


def read(path: Path) -> wire.ModelsFile:
    """What the file says; a file that is not there says nothing. Raises `Invalid` (`models.invalid`)."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise _invalid(path, f"it is larger than {_MOST_BYTES} bytes", [])
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return wire.ModelsFile()
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(path, f"{type(error).__name__}: {error}", []) from error
    return parse(text, path)


def parse(text: str, path: Path) -> wire.ModelsFile:
    try:
        value: Any = ruamel.yaml.YAML(typ="safe", pure=True).load(text)
    except (yaml_error.YAMLError, RecursionError, ValueError) as error:
        raise _invalid(path, " ".join(str(error).split())[:300], []) from None
    try:
        return wire.ModelsFile.model_validate({} if value is None else value)
    except pydantic.ValidationError as error:
        raise _invalid(path, None, explain(error)) from None


def explain(error: pydantic.ValidationError) -> list[str]:
    """One line for each mistake: where, and what."""
    return [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}".lstrip(": ") for one in error.errors()[:20]]


def stamp(path: Path) -> tuple[int, int] | None:
    """Something that changes with the file; None when it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _invalid(path: Path, cause: str | None, mistakes: list[str]) -> errors.Invalid:
    return errors.Invalid(
        f"{path} cannot be used",
        code="models.invalid",
        cause=cause or "; ".join(mistakes),
        next_step="correct it; until then what it said before holds (see docs/howto/models.md)",
        extra={"errors": mistakes} if mistakes else {},
    )
