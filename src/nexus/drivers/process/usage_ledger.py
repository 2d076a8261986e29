"""What the sessions of a node used, told to control in rows until it has stored them. Pure; `usage_book` fills it.

A row is told again whenever it has grown, and for the last time when its session has ended. Rows of sessions that ended are kept
until they are acknowledged, the oldest given up beyond a bound.
"""

import dataclasses
import logging
from typing import Any

from nexus.core import usage
from nexus.wire import node as wire

_LOG = logging.getLogger(__name__)
_MOST_ENDED = 100_000
_MOST_TOLD = 5_000
Key = tuple[str, str, usage.Part, float]


@dataclasses.dataclass(slots=True)
class _Entry:
    row: usage.UsageRow
    stamp: int
    ended: bool = False


class Ledger:
    """`epoch` names this run of the supervisor: what another one acknowledged says nothing about our rows."""

    def __init__(self, epoch: str) -> None:
        self._epoch = epoch
        self._stamp = 0
        self._entries: dict[Key, _Entry] = {}
        self._ended = 0

    def put(self, row: usage.UsageRow, *, ended: bool = False) -> None:
        key = (row.instance_id, row.session_id, row.part, row.began_at)
        known = self._entries.get(key)
        if known is not None and (known.ended or (known.row == row and not ended)):
            return
        self._stamp += 1
        self._entries.pop(key, None)  # those that changed last stand last
        self._entries[key] = _Entry(row, self._stamp, ended)
        self._ended += ended
        if self._ended > _MOST_ENDED:
            self._give_up_oldest()

    def tell(self, after: str) -> dict[str, Any]:
        """`{"token", "rows"}`: what has changed since the token `after`, which acknowledges everything until then."""
        epoch, _, number = after.partition(":")
        stored = int(number) if epoch == self._epoch and number.isdigit() else 0
        for key in [key for key, entry in self._entries.items() if entry.ended and entry.stamp <= stored]:
            del self._entries[key]
            self._ended -= 1
        fresh = [entry for entry in self._entries.values() if entry.stamp > stored][:_MOST_TOLD]
        last = fresh[-1].stamp if fresh else stored
        return {"token": f"{self._epoch}:{last}", "rows": [wire.usage_to_json(entry.row) for entry in fresh]}

    def _give_up_oldest(self) -> None:
        key = next(key for key, entry in self._entries.items() if entry.ended)
        _LOG.warning("nobody has taken what session %s used; it is given up", key[1])
        del self._entries[key]
        self._ended -= 1
