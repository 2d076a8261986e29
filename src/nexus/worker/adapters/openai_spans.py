"""The OpenAI Agents SDK's own spans as OpenTelemetry spans below the run's, named by the GenAI conventions.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-agent-spans/.
"""

import sys
import threading
from typing import Any

_OPERATIONS = {"agent": "invoke_agent", "function": "execute_tool", "generation": "chat", "response": "chat"}


def build(sdk: Any) -> Any:
    """A `TracingProcessor`, or None when this process does not trace."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    tracer = trace.get_tracer("nexus.worker.openai-agents")
    opened: dict[str, Any] = {}
    lock = threading.Lock()

    class Spans(sdk.TracingProcessor):  # type: ignore[misc]
        """Called where the work happens, so the run's span is the current one."""

        def on_trace_start(self, found: Any) -> None:
            return

        def on_trace_end(self, found: Any) -> None:
            return

        def on_span_start(self, found: Any) -> None:
            with lock:
                parent = opened.get(found.parent_id)
            context = trace.set_span_in_context(parent) if parent is not None else None
            started = tracer.start_span(_name(found.span_data), context=context)
            with lock:
                opened[found.span_id] = started

        def on_span_end(self, found: Any) -> None:
            with lock:
                ended = opened.pop(found.span_id, None)
            if ended is None:
                return
            ended.set_attributes(_attributes(found.span_data))
            if found.error:
                ended.set_status(trace.StatusCode.ERROR, str(found.error.get("message", ""))[:500])
            ended.end()

        def shutdown(self) -> None:
            return

        def force_flush(self) -> None:
            return

    return Spans()


def _name(data: Any) -> str:
    return " ".join(part for part in (_OPERATIONS.get(data.type, data.type), getattr(data, "name", None)) if part)


def _attributes(data: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"gen_ai.operation.name": _OPERATIONS.get(data.type, data.type)}
    if data.type in ("agent", "function"):
        found["gen_ai.agent.name" if data.type == "agent" else "gen_ai.tool.name"] = data.name
    response = getattr(data, "response", None)
    model = getattr(data, "model", None) or getattr(response, "model", None)
    usage = getattr(data, "usage", None) or getattr(response, "usage", None)
    if model:
        found["gen_ai.request.model"] = str(model)
    for name in ("input_tokens", "output_tokens"):
        count = usage.get(name) if isinstance(usage, dict) else getattr(usage, name, None)
        if isinstance(count, int):
            found[f"gen_ai.usage.{name}"] = count
    return found
