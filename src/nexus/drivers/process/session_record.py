"""What is kept on disk of a session with a worker, so that a new supervisor finds it again. No token and no secret, ever."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from nexus.drivers.process import launcher, session_process

_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """`box` names the zygote's box that the worker stands in."""

    session_id: str
    handle: session_process.Handle
    box: str
    created_at: float
    how: str
    cpu_before_s: float = 0.0


def write(path: Path, record: Record) -> None:
    write_private(path, json.dumps({"format": _FORMAT, **dataclasses.asdict(record)}).encode())


def decode(data: bytes) -> Record:
    """Raises ValueError when it is not a record of this format."""
    try:
        value = json.loads(data)
        if value.pop("format") != _FORMAT:
            raise ValueError("another format")
        return Record(**{**value, "handle": session_process.Handle(**value["handle"])})
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a record of a session: {error!r}") from error


def write_private(path: Path, data: bytes) -> None:
    """A small file that only its owner may read, replaced in one step."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = path.with_name(f".{path.name}.new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.replace(beside, path)


def write_box(path: Path, handle: launcher.Handle) -> None:
    """The box of a zygote that has ended, while sessions live in it."""
    write_private(path, json.dumps({"box": dataclasses.asdict(handle)}).encode())


def decode_box(data: bytes) -> launcher.Handle:
    """Raises ValueError when it is not such a record."""
    try:
        return launcher.Handle(**json.loads(data)["box"])
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a record of a box: {error!r}") from error
