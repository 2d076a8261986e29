"""Sends the host's metrics to the operator's collector now and then, if there is one. What it does not take is sent next time."""

import asyncio
import logging
import time
from collections.abc import Callable

from nexus.telemetry import collector, otlp, otlp_metrics
from nexus.telemetry.metrics import Metrics
from nexus.telemetry.traces import MetricSettings

_LOG = logging.getLogger(__name__)


class MetricPusher:
    """`run` is endless; start it only when `enabled`."""

    def __init__(self, *, metrics: Metrics, settings: MetricSettings, now: Callable[[], float] = time.time) -> None:
        self._metrics = metrics
        self._settings = settings
        self._now = now
        self._started_at = now()
        self._failures = 0

    @property
    def enabled(self) -> bool:
        return self._settings.endpoint is not None

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._settings.every_s)
            await self.push()

    async def push(self) -> bool:
        """One request; whether the collector took it, or there was nothing to tell."""
        body = otlp_metrics.render(self._metrics.families(), started_at=self._started_at, now=self._now())
        if not body:
            return True
        status, why = await collector.post(
            self._settings.endpoint or "",
            headers=self._settings.headers,
            content_type=otlp.JSON,
            body=body,
            timeout_s=self._settings.timeout_s,
        )
        if 200 <= status < 300:
            self._failures = 0
            return True
        self._failures += 1
        if self._failures & (self._failures - 1) == 0:
            _LOG.warning("metrics did not reach the collector %d times in a row: %s", self._failures, why)
        return False
