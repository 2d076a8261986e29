"""What one session's worker prints: read from a FIFO of its own, kept in the instance's log under the session's name."""

import os
from pathlib import Path

from nexus.drivers.process import fifo_reader, log_writer


class Output:
    """Reads from the moment it is made until `close`. `session_id` is set once the worker has a session."""

    def __init__(self, fifo: Path, log: log_writer.LogWriter) -> None:
        self.session_id = ""
        self._fifo = fifo
        self._log = log
        fifo.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not fifo.exists():
            os.mkfifo(fifo, 0o600)
            fifo.chmod(0o622)  # programs open /dev/stdout again; its folder is ours alone, so only who holds it can
        self._fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._reader = fifo_reader.FifoReader(self._fd, store=self._store, report=self._report)
        self._reader.start()

    def open_for_child(self) -> int:
        """To write only: nobody may read here but us. The caller closes it."""
        return os.open(self._fifo, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def detach(self) -> None:
        """Another supervisor reads on."""
        if self._fd >= 0:
            self._reader.stop()
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        if self._fd < 0:
            return
        self._reader.read_rest()
        self.detach()
        self._fifo.unlink(missing_ok=True)

    def _store(self, lines: list[bytes]) -> None:
        self._log.store(lines, session_id=self.session_id)

    def _report(self, count: int) -> None:
        self._log.report_dropped(count, session_id=self.session_id)
