"""Lines out of the FIFO that an agent prints into, at a rate that nobody beside it notices.

What an agent prints beyond its budget is dropped, and is read slowly, so that a flood fills its FIFO and waits there itself.
Lines are handed on a few at a time: a piece of the FIFO may hold thousands of them. Used by `log_writer` and `session_output`.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable

from nexus.drivers.process import log_lines

_LOG = logging.getLogger(__name__)
_PIECE = 64 * 1024
_PIECES = 32  # of a FIFO's largest size: what can lie in it at the end, twice
_PER_LINE = 128  # bytes of the budget that a line costs beside its own
_KEPT_PIECES = 4
_AT_ONCE = 64
_LAST = 2000
_PAUSE_S = 0.005


class FifoReader:
    """Reads while it is started. `store` is given lines, `report` how many were dropped before them."""

    def __init__(
        self,
        fd: int,
        *,
        store: Callable[[list[bytes]], None],
        report: Callable[[int], None],
        budget: log_lines.Budget | None = None,
    ) -> None:
        """`fd` stays the caller's, does not block, and must be open until `stop`."""
        self._fd = fd
        self._store, self._report = store, report
        self._budget = budget or log_lines.Budget()
        self._splitter = log_lines.Splitter()
        self._waiting: list[bytes] = []
        self._dropped = 0
        self._pause: asyncio.TimerHandle | None = None
        self._reads = False

    def start(self) -> None:
        self._reads = True
        self._resume()

    def stop(self) -> None:
        """No more reading; what was read is stored."""
        self._reads = False
        self._halt()
        lines, self._waiting = self._waiting, []
        if lines:
            self._store(lines)

    def read_rest(self) -> None:
        """What was written before its writer ended: a FIFO full at most, and of very many lines the last ones."""
        pieces: list[bytes] = []
        while len(pieces) < _PIECES and (piece := self._read()):
            pieces.append(piece)
        lines, self._waiting = self._waiting, []
        for piece in pieces[:-_KEPT_PIECES]:
            self._dropped += self._splitter.lose(piece)
        for piece in pieces[-_KEPT_PIECES:]:
            lines += self._splitter.feed(piece)
        lines += self._splitter.drain()
        self._dropped += max(0, len(lines) - _LAST)
        self._say_dropped()
        if lines:
            self._store(lines[-_LAST:])

    def _on_readable(self) -> None:
        try:
            if piece := self._read():
                self._take(piece)
        except Exception:  # noqa: BLE001 - a log must never end the supervisor; the reader stays
            _LOG.exception("reading an agent's output failed")

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, _PIECE)
        except BlockingIOError:
            return b""
        except OSError as error:
            _LOG.warning("cannot read an agent's output: %s", error.strerror)
            return b""

    def _take(self, piece: bytes) -> None:
        if not self._budget.take(len(piece) + piece.count(b"\n") * _PER_LINE, time.monotonic()):
            self._dropped += self._splitter.lose(piece)
            self._halt()
            self._pause = asyncio.get_running_loop().call_later(_PAUSE_S, self._resume)
            return
        self._say_dropped()
        lines = self._splitter.feed(piece)
        if len(lines) > _AT_ONCE:
            self._waiting = lines
            self._halt()
            self._store_some()
        elif lines:
            self._store(lines)

    def _store_some(self) -> None:
        """Of a piece with very many lines; everybody else has a turn in between."""
        some, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
        try:
            if some:
                self._store(some)
        except Exception:  # noqa: BLE001 - as above
            _LOG.exception("storing an agent's output failed")
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._store_some)
        elif self._reads:
            self._resume()

    def _say_dropped(self) -> None:
        if self._dropped:
            count, self._dropped = self._dropped, 0
            self._report(count)

    def _halt(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _resume(self) -> None:
        self._pause = None
        if self._reads and not self._waiting:
            asyncio.get_running_loop().add_reader(self._fd, self._on_readable)
