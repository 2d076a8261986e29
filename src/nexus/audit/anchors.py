"""Where each chain ended, remembered in a file outside the database: a database put back to an earlier state is found out.

The file holds a line of JSON and its seal. Without it nothing is anchored; one that was altered is not used, and logged.
"""

import hmac
import json
import logging
import os
from pathlib import Path

from nexus.audit import chain

_LOG = logging.getLogger(__name__)


class Anchors:
    """`note` and `find` never wait; `load` and `save` touch the disk, `save` only when something changed."""

    def __init__(self, path: Path, platform_key: bytes) -> None:
        self._path = path
        self._key = platform_key
        self._ends: dict[str, chain.Link] = {}
        self._changed = False

    def note(self, tenant: str, head: chain.Link) -> None:
        self._ends[tenant] = head
        self._changed = True

    def find(self, tenant: str) -> chain.Link | None:
        return self._ends.get(tenant)

    def load(self) -> None:
        try:
            text, _, seal = self._path.read_text("utf-8").strip().rpartition("\n")
            if not hmac.compare_digest(seal.encode(), self._seal(text)):
                raise ValueError("its seal is wrong")
            ends = {tenant: chain.Link(int(seq), bytes.fromhex(hash_)) for tenant, (seq, hash_) in json.loads(text).items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, AttributeError, TypeError) as error:
            _LOG.error("the noted ends of the audit trail in %s cannot be used: %s", self._path, error)
            return
        self._ends = ends | self._ends

    def save(self) -> None:
        """Replace the file (0600) by what is known now. Raises OSError."""
        if not self._changed:
            return
        self._changed = False
        ends = {tenant: [head.seq, head.hash.hex()] for tenant, head in sorted(dict(self._ends).items())}
        text = json.dumps(ends, separators=(",", ":"))
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.unlink(missing_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(f"{text}\n{self._seal(text).decode()}\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
        except OSError:
            self._changed = True
            raise

    def _seal(self, text: str) -> bytes:
        return hmac.digest(self._key, b"anchors/" + text.encode(), "sha256").hex().encode()
