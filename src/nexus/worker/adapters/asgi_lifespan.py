"""An ASGI app's own start-up and shut-down, once in the process.

Source: https://asgi.readthedocs.io/en/latest/specs/lifespan.html.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from nexus.core import errors
from nexus.kit import guard

_START_S = 60.0
_STOP_S = 5.0


class Lifespan:
    """`start` before the first request, `stop` after the last; an app that knows no lifespan is served all the same."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._task: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._started, self._asked = asyncio.Event(), asyncio.Event()
        self._refusal: str | None = None
        self.state: dict[str, Any] = {}

    @property
    def started(self) -> bool:
        return self._started.is_set() and self._refusal is None

    async def start(self) -> None:
        """Raises `AgentFailed` when the app says that it failed."""
        if self._task is None:
            self._task = guard.spawn(self._live(), name="lifespan", owner=self._tasks)
        async with asyncio.timeout(_START_S):
            await self._started.wait()
        if self._refusal is not None:
            raise errors.AgentFailed(
                "the app did not start",
                code="agent.failed",
                phase="run",
                cause=self._refusal,
                next_step="look at the agent's log",
            )

    async def stop(self) -> None:
        """Ask the app to end, and wait a moment for it."""
        self._asked.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_STOP_S)

    async def _live(self) -> None:
        messages = iter([{"type": "lifespan.startup"}])

        async def receive() -> dict[str, Any]:
            for message in messages:
                return message
            await self._asked.wait()
            return {"type": "lifespan.shutdown"}

        async def send(message: Mapping[str, Any]) -> None:
            if message["type"] == "lifespan.startup.failed":
                self._refusal = str(message.get("message") or "its start-up failed")
            self._started.set()

        try:
            await self._app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": self.state}, receive, send)
        except Exception:  # noqa: BLE001 - an app that knows no lifespan may raise anything; the protocol says to go on
            self._started.set()
        finally:
            self._started.set()
