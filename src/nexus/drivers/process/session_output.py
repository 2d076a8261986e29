"""What one session's worker prints: read from a FIFO of its own, kept in the instance's log under the session's name."""

import asyncio
import logging
import os
import time
from pathlib import Path

from nexus.drivers.process import log_lines, log_writer

_LOG = logging.getLogger(__name__)
_CHUNK = 64 * 1024


class Output:
    """Reads from the moment it is made until `close`. `session_id` is set once the worker has a session."""

    def __init__(self, fifo: Path, log: log_writer.LogWriter) -> None:
        self.session_id = ""
        self._fifo = fifo
        self._log = log
        self._splitter = log_lines.Splitter()
        self._budget = log_lines.Budget()
        self._dropped = 0
        fifo.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not fifo.exists():
            os.mkfifo(fifo, 0o600)
            fifo.chmod(0o622)  # programs open /dev/stdout again; its folder is ours alone, so only who holds it can
        self._fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        asyncio.get_running_loop().add_reader(self._fd, self._on_readable)

    def open_for_child(self) -> int:
        """To write only: nobody may read here but us. The caller closes it."""
        return os.open(self._fifo, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def detach(self) -> None:
        """Another supervisor reads on."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        if self._fd < 0:
            return
        while self._read():
            pass
        self._store(self._splitter.drain())
        self.detach()
        self._fifo.unlink(missing_ok=True)

    def _on_readable(self) -> None:
        try:
            self._read()
        except Exception:  # noqa: BLE001 - a log must never end the supervisor; the reader stays
            _LOG.exception("reading the output of a session failed")

    def _read(self) -> bool:
        try:
            chunk = os.read(self._fd, _CHUNK)
        except OSError:  # nothing there
            return False
        if self._budget.take(len(chunk), time.monotonic()):
            self._report()
            self._store(self._splitter.feed(chunk))
        else:
            self._dropped += self._splitter.lose(chunk)
        return bool(chunk)

    def _store(self, lines: list[bytes]) -> None:
        if lines:
            self._log.store(lines, session_id=self.session_id)

    def _report(self) -> None:
        if self._dropped:
            count, self._dropped = self._dropped, 0
            self._log.note(f"{count} lines dropped: the session prints too fast", session_id=self.session_id)
