"""From an instance's FIFO to its log file: read when readable, at most so many bytes a second, in files that rotate.

The FIFO is open for reading and writing on both sides, so neither side's death breaks the other. Called by `instance`.
"""

import collections
import contextlib
import errno
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from nexus.drivers.process import fifo_reader, log_lines
from nexus.wire import node

_LOG = logging.getLogger(__name__)
_PIPE = 1024 * 1024
_F_SETPIPE_SZ = 1031
FILE_BYTES = 8 * 1024 * 1024
AGENT_BYTES = 64 * 1024 * 1024
AGENT_FILES = 200
TAIL = 200

Publish = Callable[[str, str, dict[str, object]], None]


class LogWriter:
    """One instance's log. `start` watches the FIFO; `finish` takes what is left in it and closes the file."""

    def __init__(
        self,
        folder: Path,
        origin: log_lines.Origin,
        *,
        publish: Publish,
        file_bytes: int = FILE_BYTES,
        budget: log_lines.Budget | None = None,
        redaction: log_lines.Redaction | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._file = LogFile(folder / f"{origin.instance_id}.jsonl", file_bytes)
        self._folder = folder
        self._origin = origin
        self._publish = publish
        self._budget = budget or log_lines.Budget()
        self._now = now
        self.redaction = redaction or log_lines.Redaction()
        self._tail: collections.deque[str] = collections.deque(maxlen=TAIL)
        self._reader: fifo_reader.FifoReader | None = None
        self._fd = -1

    def start(self, fifo: Path) -> None:
        """Makes the FIFO when it is not there and begins to read it."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        prune(self._folder, keep=self._file.path)
        self._fd = open_fifo(fifo)
        self._reader = fifo_reader.FifoReader(self._fd, store=self._take, report=self.report_dropped, budget=self._budget)
        self._reader.start()

    def open_for_child(self) -> int:
        """The FIFO as a child inherits it: a description of its own, since ours does not block. The caller closes it.

        Opened through ours, not by its name: the agent may have put something else there.
        """
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)

    def tail(self, lines: int) -> list[str]:
        """The newest messages, oldest first."""
        return list(self._tail)[-lines:] if lines > 0 else []

    def take_everything(self) -> None:
        """What the process wrote before it ended."""
        if self._reader is not None:
            self._reader.read_rest()

    def store(self, lines: list[bytes], *, session_id: str) -> None:
        """Lines of one session's worker, read elsewhere: they are that session's, whatever they say of themselves."""
        now = self._now()
        parsed = [log_lines.parse_line(self.redaction.apply(raw), self._origin, now=now) for raw in lines]
        for line in parsed:
            if session_id:
                line["session_id"] = session_id
            else:
                line.pop("session_id", None)
        self._emit(parsed)

    def note(self, message: str, *, level: str = "warning", run_id: str = "", session_id: str = "") -> None:
        """A line of the host's own."""
        line = log_lines.notice(message, self._origin, now=self._now(), level=level, run_id=run_id, session_id=session_id)
        self._emit([line])

    def close(self) -> None:
        if self._reader is not None:
            self._reader.read_rest()
            self._reader.stop()
            self._reader = None
            os.close(self._fd)
            self._fd = -1
        self._file.close()

    def _take(self, lines: list[bytes]) -> None:
        now = self._now()
        self._emit([log_lines.parse_line(self.redaction.apply(raw), self._origin, now=now) for raw in lines])

    def report_dropped(self, count: int, *, session_id: str = "") -> None:
        kib = int(self._budget.per_second) // 1024
        self.note(f"{count} lines dropped: the agent prints faster than {kib} KiB a second", session_id=session_id)

    def _emit(self, lines: list[node.LogLine]) -> None:
        stored = [{**line, "environment": self._origin.environment} for line in lines]
        self._tail.extend(line["message"] for line in lines)
        if stored:
            self._file.write("".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in stored))
        for line in stored:
            self._publish(self._origin.tenant, self._origin.agent, line)


class LogFile:
    """A file that becomes `<name>.1.jsonl` when full. A disk that is full costs lines, which are counted, never the writer."""

    def __init__(self, path: Path, most: int) -> None:
        self.path = path
        self._most = most
        self._fd = -1
        self._size = 0
        self._lost = 0

    def write(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        try:
            self._open()
            if self._lost:
                _LOG.warning("%s: %d writes were lost while the disk was full", self.path.name, self._lost)
                self._lost = 0
            written = os.write(self._fd, data)
            self._size += written
            if written < len(data):
                raise OSError(errno.ENOSPC, "short write")
        except OSError as error:
            if not self._lost:
                _LOG.warning("cannot write %s: %s", self.path, error.strerror)
            self._lost += 1

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        if self._fd >= 0 and self._size >= self._most:
            self.close()
            os.replace(self.path, rotated(self.path))
        if self._fd < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self.path, flags, 0o600)
            self._size = os.fstat(self._fd).st_size


def rotated(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".jsonl") + ".1.jsonl")


def open_fifo(path: Path) -> int:
    """The FIFO, made when absent, open for both reading and writing and never blocking us. Refuses anything else there."""
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        if not stat.S_ISFIFO(path.lstat().st_mode):
            path.unlink()
            os.mkfifo(path, 0o600)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, _F_SETPIPE_SZ, _PIPE)
    return fd


def prune(folder: Path, *, keep: Path, most_bytes: int = AGENT_BYTES, most_files: int = AGENT_FILES) -> None:
    """Old instances' files go, oldest first, until the agent's logs fit."""
    found = []
    for file in folder.glob("*.jsonl"):
        try:
            known = file.lstat()
        except OSError:
            continue
        found.append((known.st_mtime, known.st_size, file))
    total = count = 0
    for _, size, file in sorted(found, reverse=True):
        total, count = total + size, count + 1
        if (total > most_bytes or count > most_files) and file not in (keep, rotated(keep)):
            file.unlink(missing_ok=True)
