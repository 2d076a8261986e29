"""The trace context of a model call: the author's current span, else the run's. Called while the call's headers are made."""

import sys


def find_traceparent(fallback: str) -> str:
    """A W3C `traceparent`. Imports nothing: where OpenTelemetry was not loaded there is no current span."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is not None:
        try:
            context = trace.get_current_span().get_span_context()
            if context.is_valid:
                return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
        except Exception:  # noqa: BLE001, S110 - the author's version of the library must not break the call
            pass
    return fallback
