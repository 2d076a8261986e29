"""What is kept on disk about an instance so that a new supervisor finds it again. No token and no secret value, ever."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nexus.core import instances
from nexus.core.phases import InstancePhase
from nexus.drivers.process import launcher
from nexus.wire import node

_FORMAT = 1
Fate = Literal["adopt", "finish_stop", "keep_failed", "await_spec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """`spec` lacks token and secrets; `secret_names` says which variables they were. `handle` None: no process. A stop under way
    may last until `stop_by` (seconds since the epoch)."""

    status: instances.InstanceStatus
    spec: instances.InstanceSpec
    secret_names: tuple[str, ...] = ()
    handle: launcher.Handle | None = None
    was_ready: bool = False
    stop_by: float | None = None


def without_secrets(spec: instances.InstanceSpec) -> instances.InstanceSpec:
    return dataclasses.replace(spec, token="", secrets={})


def encode(record: Record) -> bytes:
    spec = without_secrets(record.spec)
    return json.dumps(
        {
            "format": _FORMAT,
            "status": node.status_to_json(record.status),
            "spec": node.spec_to_json(spec),
            "secret_names": list(record.secret_names),
            "handle": dataclasses.asdict(record.handle) if record.handle else None,
            "was_ready": record.was_ready,
            "stop_by": record.stop_by,
        }
    ).encode()


def decode(data: bytes) -> Record:
    """Raises ValueError when it is not a record of this format."""
    try:
        value = json.loads(data)
        if value["format"] != _FORMAT:
            raise ValueError(f"format {value['format']!r} is unknown")
        return Record(
            status=node.status_from_json(value["status"]),
            spec=node.spec_from_json(value["spec"]),
            secret_names=tuple(value["secret_names"]),
            handle=launcher.Handle(**value["handle"]) if value["handle"] else None,
            was_ready=bool(value["was_ready"]),
            stop_by=value.get("stop_by"),
        )
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a record of an instance: {error!r}") from error


def write(path: Path, record: Record) -> None:
    """Replaced in one step, readable by its owner only."""
    beside = path.with_name(f".{path.name}.new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(encode(record))
    os.replace(beside, path)


def decide_fate(record: Record, *, alive: bool) -> Fate:
    """What a new supervisor does with an instance it finds."""
    if record.status.phase in (InstancePhase.STOPPING, InstancePhase.STOPPED):
        return "finish_stop"
    if alive:
        return "adopt"
    if record.status.phase is InstancePhase.FAILED:
        return "keep_failed"
    return "await_spec"
