"""Spans of what an agent's tools and steps did, below the run's span, for frameworks that make none themselves.

Named by the GenAI conventions: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-agent-spans/#execute-tool-span.
`traces.Traces` turns them on and ends what a run left open; adapters tell of tools through `adapters.tell`.
"""

import threading
from typing import Any

from nexus.worker import runs

_open: dict[tuple[str, str], Any] = {}
_lock = threading.Lock()
_tracer: Any = None
_left_to_framework = False
_MOST_OPEN = 1000


def install(tracer: Any) -> None:
    global _tracer
    _tracer = tracer


def leave_to_framework() -> None:
    """The agent's framework makes such spans: two of each would be too many."""
    global _left_to_framework
    _left_to_framework = True


def wanted() -> bool:
    return _tracer is not None and not _left_to_framework


def begin(run: runs.Run, id: str | None, name: str | None) -> None:
    """A tool was called: its span begins below the span that is current."""
    if not wanted() or id is None or len(_open) >= _MOST_OPEN:
        return
    span = _tracer.start_span(f"execute_tool {name}")
    attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name or "", "gen_ai.tool.call.id": id}
    span.set_attributes(attributes | {"nexus.run.id": run.run_id})
    with _lock:
        _open[run.run_id, id] = span


def end(run: runs.Run, id: str | None) -> None:
    with _lock:
        span = _open.pop((run.run_id, id or ""), None)
    if span is not None:
        span.end()


def mark(run: runs.Run, name: str) -> None:
    """A step of the agent's: a moment of the run, not a length of time."""
    if wanted():
        span = _tracer.start_span(f"step {name}")
        span.set_attribute("nexus.run.id", run.run_id)
        span.end()


def end_all(run_id: str) -> None:
    """Tools without a result: the run has ended."""
    with _lock:
        left = [_open.pop(key) for key in [key for key in _open if key[0] == run_id]]
    for span in left:
        span.end()
