"""The status file: how far the start has come, replaced atomically so that the supervisor never reads half of it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(path: Path | None, phase: str, detail: str = "", *, problem: Mapping[str, Any] | None = None, note: str = "") -> None:
    """`phase` is `importing`, `ready` or `failed`; nothing happens without a path. `note` is shown beside a ready instance."""
    if path is None:
        return
    record: dict[str, Any] = {"phase": phase, "detail": detail} | ({"note": note} if note else {})
    if problem is not None:
        record["problem"] = dict(problem)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(record))
    os.replace(beside, path)
