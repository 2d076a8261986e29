"""Files for their owner only that appear whole or not at all, and are never written over."""

import os
import secrets
from pathlib import Path


def create_once(path: Path, content: bytes) -> bool:
    """Write `content` to a new file (0600), on disk before it has its name. False, and nothing done, when the file is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
        return True
    finally:
        os.unlink(draft)
