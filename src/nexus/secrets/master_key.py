"""Where the master key lives: handed in as text or a file by the operator, or a file of the home (0600) made on first use.

A rotation writes `<file>.new` first and renames it last; `load` keeps both in the ring until then, so a crash loses nothing.
"""

import base64
import os
from dataclasses import dataclass
from pathlib import Path

from nexus.core import errors
from nexus.kit import private_file
from nexus.secrets import envelope


@dataclass(slots=True)
class KeyRing:
    """The key that seals, and those that may still open. `file` is None when the operator holds the key."""

    current: envelope.MasterKey
    keys: dict[str, envelope.MasterKey]
    file: Path | None

    def adopt(self, key: envelope.MasterKey) -> None:
        self.current = key
        self.keys[key.id] = key


def load(*, text: str | None, file: str | None, home_file: Path) -> KeyRing:
    """The ring from `NEXUS_MASTER_KEY` (text), `NEXUS_MASTER_KEY_FILE` (file) or the home's own file, created when absent."""
    if text:
        return _ring(envelope.parse_master_key(text, where="NEXUS_MASTER_KEY"), None)
    if file:
        return _ring(_read(Path(file)), None)
    if not home_file.exists():
        create(home_file, envelope.MasterKey(os.urandom(envelope.KEY_BYTES)))
    os.chmod(home_file, 0o600)
    ring = _ring(_read(home_file), home_file)
    coming = pending_file(home_file)
    if coming.exists():
        ring.adopt(_read(coming))
    return ring


def pending_file(home_file: Path) -> Path:
    return home_file.with_name(home_file.name + ".new")


def create(path: Path, key: envelope.MasterKey) -> None:
    """Write a key for its owner only; if another process was first, its key stands."""
    private_file.create_once(path, base64.b64encode(key.value) + b"\n")


def finish_rotation(home_file: Path) -> None:
    """The pending key becomes the key, atomically."""
    os.replace(pending_file(home_file), home_file)


def _ring(key: envelope.MasterKey, file: Path | None) -> KeyRing:
    return KeyRing(current=key, keys={key.id: key}, file=file)


def _read(path: Path) -> envelope.MasterKey:
    try:
        text = path.read_text("ascii", "replace")
    except OSError as error:
        raise errors.Unavailable(
            f"the master key file {path} cannot be read",
            code="master_key.unreadable",
            cause=error.strerror,
            next_step="check NEXUS_MASTER_KEY_FILE and the owner of the file",
        ) from error
    return envelope.parse_master_key(text, where=str(path))
