"""Tells that a budget's threshold was passed: kept, logged, and sent to the budget's webhook until it is taken.

Gateways report each threshold of each window once; a report that comes twice has the same id. What is sent is signed like every
webhook of the tenant, and of the form of Standard Webhooks: `budget.warning` or, at 100 per cent and above, `budget.exhausted`.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from nexus.core import errors
from nexus.kit import clock as clocks
from nexus.models import budgets
from nexus.ports import model_store as ports

_LOG = logging.getLogger(__name__)
_SCHEDULE_S = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0, 43200.0, 86400.0, 86400.0)
_POLL_S = 2.0
_HOLD_S = 60.0
_AT_ONCE = 16

Post = Callable[..., Awaitable[tuple[int | None, str | None, float | None]]]
"""`WebhookSender.post`: `(tenant, url, message_id=, body=)` gives status, error and the pause that the receiver asks for."""

_TEXT = ("tenant", "budget", "scope", "subject", "agent", "unit", "period")
_NUMBERS = ("percent", "limit", "spent", "window_ends", "at")


class Notices:
    """`take` is called with what gateways report; `run` is an endless loop that sends."""

    def __init__(self, *, store: ports.ModelStore, post: Post, clock: clocks.Clock) -> None:
        self._store = store
        self._post = post
        self._clock = clock
        self._awake = asyncio.Event()
        self.url_of: Callable[[str, str], str | None] = lambda tenant, budget: None
        """Who is to be told of a tenant's budget; set by the service, which knows the budgets."""

    async def take(self, records: Sequence[Any]) -> None:
        """Raises `Unavailable` when they are not stored. What is no notice is left out."""
        found = [notice for record in records if (notice := self._read(record)) is not None]
        await self._store.add_notices(found)
        for notice in found:
            _LOG.warning(
                "budget %s of tenant %s: %d %% of its %s are used", notice.budget, notice.tenant, notice.value["percent"],
                notice.value["unit"],
            )  # fmt: skip
        if found:
            self._awake.set()

    def _read(self, record: Any) -> ports.Notice | None:
        if not isinstance(record, Mapping) or not all(isinstance(record.get(name), str) for name in _TEXT):
            return None
        if not all(isinstance(record.get(name), int | float) for name in _NUMBERS):
            return None
        value = {name: record[name] for name in (*_TEXT, *_NUMBERS)}
        named = "\0".join(str(value[name]) for name in ("tenant", "budget", "subject", "unit", "period", "percent"))
        window = budgets.window_of(value["period"], value["at"])[0]
        digest = hashlib.sha256(f"{named}\0{window}\0{value['limit']}".encode("utf-8", "replace")).hexdigest()
        tenant, budget = value["tenant"], value["budget"]
        return ports.Notice(
            id=f"msg_{digest[:32]}", tenant=tenant, budget=budget, value=value, url=self.url_of(tenant, budget), at=value["at"]
        )

    async def run(self) -> None:
        while True:
            self._awake.clear()
            try:
                sent = await self._round()
            except errors.Unavailable as error:
                _LOG.warning("budget notices cannot be sent: %s", error.cause or error.message)
                sent = 0
            if not sent:
                try:
                    async with asyncio.timeout(_POLL_S):
                        await self._awake.wait()
                except TimeoutError:
                    continue

    async def _round(self) -> int:
        due = await self._store.due_notices(now=self._clock.time(), hold_s=_HOLD_S, limit=_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for notice in due:
                group.create_task(self._send(notice))
        return len(due)

    async def _send(self, notice: ports.Notice) -> None:
        if notice.url is None:
            return
        _, error, pause = await self._post(notice.tenant, notice.url, message_id=notice.id, body=render(notice))
        again: float | None = None
        if error is not None and notice.attempts <= len(_SCHEDULE_S):
            again = self._clock.time() + max(_SCHEDULE_S[notice.attempts - 1], min(pause or 0.0, 86400.0))
        await self._store.settle_notice(notice.id, attempt=notice.attempts, error=error, next_at=again)


def render(notice: ports.Notice) -> bytes:
    """The same bytes for every attempt."""
    value = notice.value
    message = {
        "type": "budget.exhausted" if value["percent"] >= 100 else "budget.warning",
        "timestamp": _moment(value["at"]),
        "data": view(notice),
    }
    return json.dumps(message, separators=(",", ":")).encode()


def view(notice: ports.Notice) -> dict[str, Any]:
    """A notice as people are shown it; money in US dollars."""
    value = notice.value
    ends = None if value["period"] == "total" else _moment(value["window_ends"])
    shown = {name: value[name] for name in _TEXT if name != "tenant"}
    return shown | {
        "tenant": notice.tenant,
        "percent": value["percent"],
        "limit": budgets.shown(value["limit"], value["unit"]),
        "spent": budgets.shown(value["spent"], value["unit"]),
        "resets_at": ends,
        "at": _moment(value["at"]),
    }


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
