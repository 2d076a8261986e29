"""Takes agents' spans at the door and passes them on to the operator's collector, if there is one.

Bounded everywhere: what the collector cannot take in time is dropped and counted, and never holds up an agent.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import unquote

from nexus.core import deployments
from nexus.kit import backoff, egress, guard
from nexus.telemetry import collector, genai, otlp
from nexus.wire import runs

_LOG = logging.getLogger(__name__)
_CALLS = 200
_PAUSES = backoff.Backoff(first_s=0.5, longest_s=10.0, least_s=0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """`endpoint` is the full URL spans are posted to; None: there is no collector. `headers` may hold its credential."""

    endpoint: str | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    timeout_s: float = 10.0
    queue: int = 256
    tries: int = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSettings:
    """The same for metrics, sent every `every_s` seconds."""

    endpoint: str | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    every_s: float = 60.0
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class _Batch:
    content_type: str
    body: bytes = field(repr=False)


def parse_settings(*, endpoint: str | None, traces_endpoint: str | None, headers: str | None) -> TraceSettings:
    """From OTEL_EXPORTER_OTLP_ENDPOINT, …_TRACES_ENDPOINT and …_HEADERS. Raises ValueError when the endpoint is no URL."""
    url = traces_endpoint or (f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None)
    if url is not None:
        try:
            egress.parse_url(url)
        except egress.Refused as error:
            raise ValueError(f"the OTLP endpoint cannot be used: {error}") from None
    pairs = (entry.partition("=") for entry in (headers or "").split(",") if "=" in entry)
    return TraceSettings(endpoint=url, headers=tuple((name.strip(), unquote(value.strip())) for name, _, value in pairs))


def parse_metric_settings(
    *, endpoint: str | None, metrics_endpoint: str | None, headers: str | None, interval_ms: str | None
) -> MetricSettings:
    """From OTEL_EXPORTER_OTLP_ENDPOINT, …_METRICS_ENDPOINT, …_HEADERS and OTEL_METRIC_EXPORT_INTERVAL. Raises ValueError."""
    base = f"{endpoint.rstrip('/')}/v1/metrics" if endpoint else None
    found = parse_settings(endpoint=None, traces_endpoint=metrics_endpoint or base, headers=headers)
    try:
        every_s = float(interval_ms) / 1000 if interval_ms else 60.0
    except ValueError:
        every_s = 0.0
    if not 0.1 <= every_s <= 86400:
        raise ValueError("OTEL_METRIC_EXPORT_INTERVAL is a number of milliseconds, from 100")
    return MetricSettings(endpoint=found.endpoint, headers=found.headers, every_s=every_s)


class TraceForwarder:
    """An async context manager. `forwarded` and `dropped` count requests, not spans."""

    def __init__(self, *, settings: TraceSettings) -> None:
        self._settings = settings
        self._queue: asyncio.Queue[_Batch] = asyncio.Queue(settings.queue)
        self._life = AsyncExitStack()
        self.forwarded = 0
        self.dropped = 0

    @property
    def enabled(self) -> bool:
        return self._settings.endpoint is not None

    async def __aenter__(self) -> Self:
        if self.enabled:
            loops = await self._life.enter_async_context(guard.Loops())
            loops.start("traces", self._forward)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._life.aclose()

    def take(self, owner: deployments.InstanceOwner, body: bytes, *, content_type: str, content_encoding: str = "") -> None:
        """Queue an instance's spans under its own name. Raises `Invalid` (code `traces.invalid`) when they are not OTLP."""
        plain = otlp.decode_body(body, content_encoding.strip().lower())
        if not self.enabled:
            return
        marked = otlp.mark(plain, content_type, owner=owner_attributes(owner), fallback={"service.name": owner.agent})
        try:
            self._queue.put_nowait(_Batch(content_type, marked))
        except asyncio.QueueFull:
            self._drop("the queue is full")

    def take_model_calls(self, records: Sequence[runs.ModelRecord]) -> None:
        """Queue a span for each of these calls, which the models door saw."""
        if not self.enabled:
            return
        for start in range(0, len(records), _CALLS):
            try:
                self._queue.put_nowait(_Batch(otlp.JSON, genai.render_spans(records[start : start + _CALLS])))
            except asyncio.QueueFull:
                self._drop("the queue is full")

    async def _forward(self) -> None:
        while True:
            batch = await self._queue.get()
            for attempt in range(self._settings.tries):
                if attempt:
                    await asyncio.sleep(_PAUSES.pause_s(attempt - 1))
                status, why = await self._send(batch)
                if 200 <= status < 300:
                    self.forwarded += 1
                    break
                if status and status not in collector.RETRIED:
                    self._drop(why)
                    break
            else:
                self._drop(why)

    async def _send(self, batch: _Batch) -> tuple[int, str]:
        return await collector.post(
            self._settings.endpoint or "",
            headers=self._settings.headers,
            content_type=batch.content_type,
            body=batch.body,
            timeout_s=self._settings.timeout_s,
        )

    def _drop(self, why: str) -> None:
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:  # at 1, 2, 4, 8 …: enough to notice, not enough to flood
            _LOG.warning("%d trace requests were dropped so far: %s", self.dropped, why)


def owner_attributes(owner: deployments.InstanceOwner) -> dict[str, str]:
    """What an agent cannot say differently about itself."""
    return {
        "nexus.tenant": owner.tenant,
        "nexus.agent": owner.agent,
        "nexus.environment": owner.environment,
        "nexus.deployment.id": owner.deployment_id,
        "service.version": owner.version,
        "service.instance.id": owner.instance_id,
    }
