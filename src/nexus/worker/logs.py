"""Every print and every log record becomes one JSON line on the log pipe, with the run and session it belongs to.

Lines go straight to the file descriptor: nothing is queued, so a print storm costs time and no memory. When nobody
reads the pipe for a second, lines are dropped and counted instead of stopping the agent.
"""

import io
import json
import logging
import os
import select
import sys
import threading
import time
import traceback
from typing import Any, TextIO

from nexus.ports import run as runs

LONGEST = 16 * 1024
_PIECE = select.PIPE_BUF
_PATIENCE_S = 1.0
SESSION = ""  # the one session of a process that has only one: its lines outside of runs say so
_LEVELS = ((50, "critical"), (40, "error"), (30, "warning"), (20, "info"))


class LineSink:
    """Writes whole lines to one descriptor, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.RLock()
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._dropped = 0
        self._gone = False

    def write(self, level: str, message: str, *, length: int | None = None, **more: Any) -> None:
        """`length` is the line's whole length when `message` is only its beginning."""
        if self._gone:
            return
        text = _cut(message, len(message) if length is None else length)
        line = {"at": round(time.time(), 6), "level": level, "message": text, **_of_run(), **more}
        data = json.dumps(line).encode() + b"\n"
        with self._lock:
            if self._dropped and self._writable(0):
                lost, self._dropped = self._dropped, 0
                note = {"at": line["at"], "level": "warning", "logger": "nexus.worker", "message": f"{lost} log lines were lost"}
                self._put(json.dumps(note).encode() + b"\n")
            if not self._put(data):
                self._dropped += 1

    def _put(self, data: bytes) -> bool:
        """False when the pipe stays full. Pieces of PIPE_BUF never block once the pipe is writable (pipe(7))."""
        patience = 0.0 if self._dropped else _PATIENCE_S
        for start in range(0, len(data), _PIECE):
            if not self._writable(patience if start == 0 else _PATIENCE_S):
                return False
            try:
                os.write(self._descriptor, data[start : start + _PIECE])
            except OSError:
                self._gone = True
                return False
        return True

    def _writable(self, timeout_s: float) -> bool:
        return any(events & select.POLLOUT for _, events in self._poll.poll(timeout_s * 1000))


def _cut(text: str, length: int) -> str:
    if length <= LONGEST:
        return text
    return f"{text[:LONGEST]}… [cut: {length - LONGEST} more characters]"


def _of_run() -> dict[str, str]:
    run = runs.CURRENT.get()
    if run is None:
        return {"session_id": SESSION} if SESSION else {}
    names = {"run_id": run.run_id, "session_id": run.session_id}
    if trace_id := getattr(run, "trace_id", ""):
        names["trace_id"] = trace_id
    return names


class PrintStream(io.TextIOBase):
    """Stands in for `sys.stdout` or `sys.stderr`; a line is written when it is complete, or longer than it may be."""

    def __init__(self, sink: LineSink, level: str, stream: str, descriptor: int) -> None:
        super().__init__()
        self._sink, self._level, self._stream, self._number = sink, level, stream, descriptor
        self._open: dict[int, str] = {}

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def buffer(self) -> io.RawIOBase:
        return _Bytes(self)

    def reconfigure(self, **_: Any) -> None:
        """Accepted and without effect: the log is UTF-8 JSON lines."""

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        thread = threading.get_ident()
        start = 0
        while (end := text.find("\n", start)) >= 0:
            self._line(self._open.pop(thread, ""), text, start, end)
            start = end + 1
        if start < len(text):
            held = self._open.pop(thread, "")
            if len(held) + len(text) - start > LONGEST:
                self._line(held, text, start, len(text))
            else:
                self._open[thread] = held + text[start:]
        return len(text)

    def _line(self, held: str, text: str, start: int, end: int) -> None:
        whole = held + text[start : min(end, start + LONGEST + 1)]
        if whole.strip():
            self._sink.write(self._level, whole.rstrip("\r"), length=len(held) + end - start, stream=self._stream)

    def flush_open(self) -> None:
        """Write this thread's unfinished line: called when a run ends and when the process does."""
        if held := self._open.pop(threading.get_ident(), ""):
            self._line(held, "", 0, 0)


class _Bytes(io.RawIOBase):
    """`sys.stdout.buffer`: bytes are read as UTF-8."""

    def __init__(self, stream: PrintStream) -> None:
        super().__init__()
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        view = bytes(data)
        self._stream.write(view.decode("utf-8", "replace"))
        return len(view)


class JsonHandler(logging.Handler):
    """Log records as lines; an exception's traceback goes with them."""

    def __init__(self, sink: LineSink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception as error:  # noqa: BLE001 - a wrong format string must not end the agent
            message = f"{record.msg!r} (its arguments do not fit: {error})"
        if record.exc_info and record.exc_info[1] is not None:
            message += "\n" + "".join(traceback.format_exception(record.exc_info[1]))
        elif record.stack_info:
            message += "\n" + record.stack_info
        self._sink.write(level_of(record.levelno), message, logger=record.name)


def level_of(number: int) -> str:
    return next((name for least, name in _LEVELS if number >= least), "debug")


class Capture:
    """What `install` put in place."""

    def __init__(self, sink: LineSink, streams: tuple[PrintStream, PrintStream]) -> None:
        self.sink, self._streams = sink, streams

    def flush_open(self) -> None:
        for stream in self._streams:
            stream.flush_open()


def install(level: str, *, descriptor: int = 1) -> Capture:
    """Take over prints and logging of this process. `level` is a name of `logging`; an unknown one means INFO."""
    sink = LineSink(descriptor)
    streams = PrintStream(sink, "info", "stdout", 1), PrintStream(sink, "warning", "stderr", 2)
    stdout, stderr = streams
    sys.stdout, sys.stderr = _as_text(stdout), _as_text(stderr)
    root = logging.getLogger()
    root.handlers[:] = [JsonHandler(sink)]
    number = logging.getLevelNamesMapping().get(level)
    root.setLevel(number if number else logging.INFO)
    for noisy in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    return Capture(sink, streams)


def _as_text(stream: PrintStream) -> TextIO:
    return stream  # type: ignore[return-value]
