"""OpenTelemetry in the box: one SERVER span for each run, the author's spans below it, exported through the door.

Only when the host exports traces (`NEXUS_TRACES=1`); otherwise nothing is imported. OTLP/HTTP with JSON bodies.
Source: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nexus.core import errors
from nexus.worker import door as doors
from nexus.worker import runs, settings, tool_spans

_LOG = logging.getLogger("nexus.worker")


class Traces:
    """Installs the process-wide tracer provider. Raises ImportError when no fitting SDK can be imported."""

    def __init__(self, config: settings.Settings, door: doors.Door) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk import resources
        from opentelemetry.sdk import trace as sdk
        from opentelemetry.sdk.trace import export
        from opentelemetry.trace.propagation import tracecontext

        resource = resources.Resource.create(
            {
                "service.name": config.agent,
                "service.version": config.version,
                "service.instance.id": config.instance_id,
                "deployment.environment.name": config.environment,
            }
        )
        self._provider = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(export.BatchSpanProcessor(_exporter(door, export), schedule_delay_millis=1000))
        trace.set_tracer_provider(self._provider)
        self._tracer = self._provider.get_tracer("nexus.worker")
        tool_spans.install(self._tracer)
        self._propagator = tracecontext.TraceContextTextMapPropagator()
        self._trace = trace
        self._name = f"run {config.agent}"
        self._attributes = {"nexus.agent": config.agent, "nexus.environment": config.environment}

    @contextlib.contextmanager
    def span(self, run: runs.Run) -> Iterator[None]:
        parent = self._propagator.extract({"traceparent": run.traceparent}) if run.traceparent else None
        attributes = {**self._attributes, "nexus.run.id": run.run_id, "session.id": run.session_id}
        with self._tracer.start_as_current_span(
            self._name, context=parent, kind=self._trace.SpanKind.SERVER, attributes=attributes
        ) as span:
            run.trace_id = f"{span.get_span_context().trace_id:032x}"
            try:
                yield
            finally:
                tool_spans.end_all(run.run_id)

    def stop(self, timeout_s: float = 3.0) -> None:
        """Send what is left."""
        with contextlib.suppress(Exception):
            self._provider.force_flush(int(timeout_s * 1000))
            self._provider.shutdown()


def _exporter(door: doors.Door, export: Any) -> Any:
    class DoorExporter(export.SpanExporter):  # type: ignore[misc]
        """Runs in the batch processor's thread."""

        def export(self, spans: Sequence[Any]) -> Any:
            body = json.dumps(render(spans)).encode()
            try:
                answer = door.call_blocking("POST", "/door/traces", body)
            except errors.NexusError as error:
                _LOG.warning("%d spans were not delivered: %s", len(spans), error.cause)
                return export.SpanExportResult.FAILURE
            if answer.status >= 300:
                _LOG.warning("%d spans were refused with status %d", len(spans), answer.status)
                return export.SpanExportResult.FAILURE
            return export.SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            return

        def force_flush(self, timeout_millis: int = 30000) -> bool:
            return True

    return DoorExporter()


def render(spans: Sequence[Any]) -> dict[str, Any]:
    """An `ExportTraceServiceRequest` in OTLP's JSON form. Spans of one process share their resource."""
    by_scope: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for span in spans:
        scope = span.instrumentation_scope
        by_scope.setdefault((scope.name, scope.version or ""), []).append(_span(span))
    scopes = [{"scope": {"name": name, "version": version}, "spans": found} for (name, version), found in by_scope.items()]
    attributes = _attributes(spans[0].resource.attributes) if spans else []
    return {"resourceSpans": [{"resource": {"attributes": attributes}, "scopeSpans": scopes}]}


def _span(span: Any) -> dict[str, Any]:
    context = span.get_span_context()
    rendered: dict[str, Any] = {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "name": span.name,
        "kind": span.kind.value + 1,
        "startTimeUnixNano": str(span.start_time or 0),
        "endTimeUnixNano": str(span.end_time or 0),
        "attributes": _attributes(span.attributes),
        "status": {"code": span.status.status_code.value, **({"message": d} if (d := span.status.description) else {})},
        "events": [
            {"timeUnixNano": str(event.timestamp), "name": event.name, "attributes": _attributes(event.attributes)}
            for event in span.events
        ],
        "links": [
            {"traceId": f"{link.context.trace_id:032x}", "spanId": f"{link.context.span_id:016x}",
             "attributes": _attributes(link.attributes)}
            for link in span.links
        ],
    }  # fmt: skip
    if span.parent is not None:
        rendered["parentSpanId"] = f"{span.parent.span_id:016x}"
    return rendered


def _attributes(values: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in (values or {}).items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list | tuple):
        return {"arrayValue": {"values": [_value(entry) for entry in value]}}
    return {"stringValue": str(value)}
