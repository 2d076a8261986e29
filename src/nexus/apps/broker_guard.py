"""Keeps the process that listens to brokers running while there is a queue trigger: started, watched, started again, stopped.

It is control's child and not the keeper's because control alone knows the triggers; whoever kills control ends both, and the next
control starts the next one. Nothing is lost by that: a message is acknowledged only when it is a task.
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
from pathlib import Path

from nexus.core import errors
from nexus.kit import backoff
from nexus.ports import trigger_store

_LOG = logging.getLogger("nexus.control")
_LOOK_S = 2.0
_GRACE_S = 8.0
_PAUSES = backoff.Backoff(first_s=0.2, longest_s=15.0, least_s=0.1)
_PASSED_ON = (
    "PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "NEXUS_LOG_LEVEL", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip


class BrokerGuard:
    """`run` in a guarded loop. `log` is the file its output goes to; `wake` makes it look at once."""

    def __init__(
        self, *, store: trigger_store.TriggerStore, database_url: str, trigger_key: bytes, egress_allow: str, log: Path
    ) -> None:
        self._store = store
        told = {"database_url": database_url, "trigger_key": trigger_key.hex(), "egress_allow": egress_allow}
        self._told = json.dumps(told).encode() + b"\n"
        self._log = log
        self._woken = asyncio.Event()
        self._child: asyncio.subprocess.Process | None = None

    def wake(self) -> None:
        self._woken.set()

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    async def run(self) -> None:
        failures = 0
        try:
            while True:
                wanted = await self._wanted()
                if self._child is not None and self._child.returncode is not None:
                    _LOG.warning("the process that listens to brokers ended with %s; see %s", self._child.returncode, self._log)
                    self._child, failures = None, failures + 1
                    await asyncio.sleep(_PAUSES.pause_s(failures))
                if wanted and self._child is None:
                    await self._start()
                elif wanted is False and self._child is not None:
                    await self._stop()
                    failures = 0
                await self._rest()
        finally:
            await self._stop()

    async def _wanted(self) -> bool | None:
        """None: nobody can say now."""
        try:
            return bool(await self._store.queues())
        except errors.Unavailable:
            return None

    async def _rest(self) -> None:
        ended = asyncio.create_task(self._child.wait()) if self._child is not None else None
        woken = asyncio.create_task(self._woken.wait())
        waiting = {woken} | ({ended} if ended is not None else set())
        await asyncio.wait(waiting, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        self._woken.clear()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def _start(self) -> None:
        output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "nexus.apps.brokers",
                stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output,
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            )  # fmt: skip
        finally:
            os.close(output)
        if self._child.stdin is not None:
            with contextlib.suppress(OSError):
                self._child.stdin.write(self._told)
                await self._child.stdin.drain()

    async def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None or child.returncode is not None:
            return
        if child.stdin is not None:
            child.stdin.close()
        try:
            async with asyncio.timeout(_GRACE_S):
                await child.wait()
        except TimeoutError:
            child.kill()
            await child.wait()
