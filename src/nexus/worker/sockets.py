"""An agent's WebSockets (`GET /ws`), and what its app does beside its runs: background work, start-up and shut-down.

Only apps have these (`adapters.AppAdapter`). An open WebSocket counts as a run, but takes no turn of its session.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from nexus.core import errors
from nexus.worker import adapters, bodies, execution, settings

_LOG = logging.getLogger("nexus.worker")
_LOOK_S = 0.1
_CLOSE_REFUSED = 1008
_CLOSE_FAILED = 1011
_CALL = bodies.Call(input=None, context={})


class Sockets:
    def __init__(self, config: settings.Settings, executor: execution.Executor) -> None:
        self._config, self._executor = config, executor
        self._app = executor.adapter if isinstance(executor.adapter, adapters.AppAdapter) else None

    @property
    def wanted(self) -> bool:
        return self._app is not None and self._app.takes_sockets

    async def serve(self, scope: Mapping[str, Any], receive: Any, send: Any, *, run_id: str, session_id: str) -> None:
        """One WebSocket from its handshake to its close."""
        app = self._app
        if app is None or not app.takes_sockets or scope["path"] != "/ws":
            await send({"type": "websocket.close", "code": _CLOSE_REFUSED, "reason": "this agent has no WebSocket"})
            return
        is_open = True

        async def told(message: Mapping[str, Any]) -> None:
            nonlocal is_open
            is_open = is_open and message["type"] != "websocket.close"
            await send(message)

        headers = dict(scope["headers"])
        run = self._executor.accompany(
            lambda run: app.socket(run, scope, receive, told),
            call=_CALL,
            run_id=run_id,
            session_id=session_id,
            timeout_s=_seconds(headers, self._config.run_timeout_s),
            traceparent=headers.get(b"traceparent", b"").decode("latin-1"),
        )
        loop = asyncio.get_running_loop()
        timer = loop.call_at(loop.time() + run.timeout_s, run.stop, "timeout")
        try:
            outcome = await run.done
            if is_open and outcome.error is not None:
                await _close(send, outcome.error)
        finally:
            timer.cancel()
            run.stop("client")

    async def is_busy(self) -> bool:
        """Whether the agent works without a run."""
        return self._app is not None and await self._app.busy()

    async def close(self) -> None:
        """Wait for background work as long as a stop may take, then let the app shut down."""
        if self._app is None:
            return
        ends = time.monotonic() + self._config.grace_s
        while await self._app.busy() and time.monotonic() < ends:  # noqa: ASYNC110 - the app can only be asked
            await asyncio.sleep(_LOOK_S)
        await self._app.aclose()


def _seconds(headers: Mapping[bytes, bytes], longest: float) -> float:
    deadline = headers.get(b"nexus-deadline", b"")
    return max(0.0, int(deadline) / 1000 - time.time()) if deadline.isdigit() and len(deadline) < 16 else longest


async def _close(send: Any, error: errors.NexusError) -> None:
    code = _CLOSE_FAILED if isinstance(error, errors.AgentFailed) else _CLOSE_REFUSED
    try:
        await send({"type": "websocket.close", "code": code, "reason": error.code})
    except Exception as failure:  # noqa: BLE001 - the client has gone, or the app has closed by itself meanwhile
        _LOG.debug("a WebSocket was closed already: %s", failure)
