"""What a framework did, told to the run's stream in our words (`nexus.wire.runs`). Adapters call this and nothing else.

Whatever has no JSON form is named by its type instead of failing the run; only the output itself must be JSON.
"""

import json
from collections.abc import Mapping
from typing import Any

from nexus.core import errors
from nexus.wire import runs as wire
from nexus.worker import outputs, runs, tool_spans


def delta(run: runs.Run, text: object) -> bool:
    """A piece of the answer's text; True when there was any."""
    if not isinstance(text, str) or not text:
        return False
    run.emit(wire.MESSAGE_DELTA, {"text": text})
    return True


def listens(run: runs.Run) -> bool:
    """Whether anybody is told what happens inside a run: its client, or the traces."""
    return run.streaming or tool_spans.wanted()


def tool_call(run: runs.Run, *, name: object, arguments: object, id: object = None) -> None:
    """`arguments` may be an object or the JSON text that models write."""
    tool_spans.begin(run, _text(id), _text(name))
    if run.streaming:
        run.emit(wire.TOOL_CALL, {"id": _text(id), "name": _text(name), "arguments": _arguments(arguments)})


def tool_result(run: runs.Run, *, name: object, output: object, id: object = None) -> None:
    tool_spans.end(run, _text(id))
    if run.streaming:
        run.emit(wire.TOOL_RESULT, {"id": _text(id), "name": _text(name), "output": shown(output)})


def step(run: runs.Run, name: object, data: object = None) -> None:
    """A part of the work began or ended: an agent, a node, a task."""
    tool_spans.mark(run, str(name))
    if run.streaming:
        run.emit(wire.STEP, {"name": str(name), "data": shown(data)})


def custom(run: runs.Run, name: str, data: object) -> None:
    if run.streaming:
        run.emit(wire.CUSTOM, {"name": name, "data": shown(data)})


def used(run: runs.Run, input_tokens: object, output_tokens: object) -> None:
    """Tokens as the framework counted them: what holds where no door of the platform counts."""
    run.add_usage(input_tokens=_number(input_tokens), output_tokens=_number(output_tokens))


def shown(value: object) -> Any:
    """The value as JSON."""
    try:
        return outputs.plain(value)
    except errors.AgentFailed:
        if isinstance(value, Mapping):
            return {str(name): shown(entry) for name, entry in value.items()}
        return f"<{type(value).__name__}>"


def _arguments(value: object) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value) if value.strip() else {}
        except ValueError:
            return value
    return shown(value)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _number(value: object) -> int:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else 0
