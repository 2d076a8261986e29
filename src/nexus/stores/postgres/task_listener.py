"""The connection that hears NOTIFY and, by holding an advisory lock, shows that its dispatcher lives.

Notifications only wake: after every (re)connection `receive("", "")` is called, and readers look for themselves.
"""

import asyncio
import logging
import zlib
from collections.abc import Callable, Sequence

import psycopg
from psycopg import sql

CHANNEL_QUEUE, CHANNEL_EVENTS, CHANNEL_CANCEL, CHANNEL_PAUSE, CHANNEL_WEBHOOKS = (
    "nexus_tasks",
    "nexus_task_events",
    "nexus_task_cancel",
    "nexus_task_pause",
    "nexus_webhooks",
)
LOCK_CLASS = 0x7461736B  # "task"
_IDLE_S = 20.0
_AGAIN_S = 0.25
_LOG = logging.getLogger(__name__)


def lock_key(owner: str) -> int:
    """The advisory lock that stands for an owner, as a signed 32-bit number."""
    return zlib.crc32(owner.encode()) - (1 << 31)


def read_delay(payload: str) -> float:
    """Seconds until a task is to begin, as `CHANNEL_QUEUE` tells of one that was put off; 0 for what is no such number."""
    try:
        seconds = float(payload)
    except ValueError:
        return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0


class Listener:
    """Run `run()` in a guarded loop. It connects again whenever the connection is lost."""

    def __init__(
        self, *, url: str, channels: Sequence[str], receive: Callable[[str, str], None], owner: str | None = None
    ) -> None:
        self._url = url
        self._channels = tuple(channels)
        self._receive = receive
        self._owner = owner

    async def run(self) -> None:
        while True:
            try:
                await self._listen()
            except (psycopg.OperationalError, psycopg.InterfaceError, OSError) as error:
                _LOG.warning("notifications are not heard: %s", (str(error).splitlines() or ["the connection ended"])[0])
                await asyncio.sleep(_AGAIN_S)

    async def _listen(self) -> None:
        connection = await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, connect_timeout=10, application_name="nexus-listener"
        )
        async with connection:
            if self._owner is not None:
                await connection.execute("SELECT pg_advisory_lock(%s, %s)", (LOCK_CLASS, lock_key(self._owner)))
            for channel in self._channels:
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
            self._receive("", "")
            while True:
                async for heard in connection.notifies(timeout=_IDLE_S):
                    self._receive(heard.channel, heard.payload)
                await connection.execute("SELECT 1")
