"""Records (as JSON, see `nexus.wire.runs`) on their way to control: batched, numbered, kept until acknowledged, bounded.

Adding one never waits. Pure bookkeeping; `feed` carries the batches. A batch sent twice is stored once: records carry ids.
"""

import asyncio
import collections

BATCH = 500
_MOST_PENDING = 50_000
_MOST_UNACKNOWLEDGED = 8
_MOST_BATCH_BYTES = 4 * 1024 * 1024


class Outbox:
    """When control is away for long, the oldest records are dropped and counted; a run is never held up for its record.

    `weight`: bytes of all that is not acknowledged. `goes_on`: the last batch was as large as one may be; the next need not wait.
    """

    def __init__(self, *, most: int = _MOST_PENDING) -> None:
        self._waiting: collections.deque[bytes] = collections.deque()
        self._sent: dict[int, list[bytes]] = {}
        self._most = most
        self._next = 1
        self._empty = True
        self.dropped = 0
        self.weight = 0
        self.goes_on = False
        self.full_batch = asyncio.Event()
        self.all_stored = asyncio.Event()
        self.all_stored.set()

    @property
    def pending(self) -> int:
        return len(self._waiting) + sum(len(batch) for batch in self._sent.values())

    def add(self, record: bytes) -> None:
        waiting = self._waiting
        waiting.append(record)
        self.weight += len(record)
        if len(waiting) >= BATCH:
            self.full_batch.set()
            if len(waiting) > self._most:
                self.weight -= len(waiting.popleft())
                self.dropped += 1
        if self._empty:
            self._empty = False
            self.all_stored.clear()

    def take_batch(self) -> tuple[int, list[bytes]] | None:
        """The next batch to send, or None when there is nothing or too much is unacknowledged."""
        self.full_batch.clear()
        if not self._waiting or len(self._sent) >= _MOST_UNACKNOWLEDGED:
            return None
        batch: list[bytes] = []
        size = 0
        while self._waiting and len(batch) < BATCH and size < _MOST_BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1])
        self.goes_on = len(batch) == BATCH or size >= _MOST_BATCH_BYTES
        number, self._next = self._next, self._next + 1
        self._sent[number] = batch
        return number, batch

    def unacknowledged(self) -> list[tuple[int, list[bytes]]]:
        """What was sent and never acknowledged, oldest first: all of it is sent again on a new connection."""
        return list(self._sent.items())

    def acknowledge(self, number: int) -> None:
        self.weight -= sum(map(len, self._sent.pop(number, ())))
        if self._waiting:
            if len(self._waiting) >= BATCH:
                self.full_batch.set()
        elif not self._sent:
            self._empty = True
            self.all_stored.set()
