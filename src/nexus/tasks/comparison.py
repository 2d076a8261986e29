"""Where a replay first differs from its original: in what it asked of models, people and steps, else in its end. Pure."""

import difflib
import json
import zlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from nexus.core.phases import RunPhase
from nexus.ports import step_store, task_store
from nexus.wire import views

_MOST_BYTES = 16 * 1024 * 1024
_MOST_LINES, _LONGEST_LINE = 400, 500


def compare(
    original: task_store.Task,
    replay: task_store.Task,
    recorded: Sequence[step_store.Recorded],
    asked: Sequence[step_store.Recorded],
) -> views.DifferenceView | None:
    """The first difference, or None. A call of the replay belongs to the recorded one of the same key, whatever their order."""
    answered = [call for call in recorded if call.status == "done"]
    found: set[str] = set()
    for number, call in enumerate(asked, 1):
        if call.status == "done":
            found.add(call.key)
            continue
        expected = next((other for other in answered if other.key not in found), None)
        return _difference(number, expected, call)
    if replay.phase is RunPhase.COMPLETED and (left := [call for call in answered if call.key not in found]):
        return _difference(len(found) + 1, left[0], None)
    before, now = _end(original), _end(replay)
    if before == now:
        return None
    return views.DifferenceView(index=len(asked) + 1, kind="end", recorded=before, asked=now, diff=_diff(before, now))


def _difference(number: int, recorded: step_store.Recorded | None, asked: step_store.Recorded | None) -> views.DifferenceView:
    before = None if recorded is None else _describe(recorded)
    now = None if asked is None else _describe(asked)
    kind = asked.kind if asked is not None else recorded.kind if recorded is not None else "end"
    return views.DifferenceView(index=number, kind=kind, recorded=before, asked=now, diff=_diff(before, now))


def _describe(call: step_store.Recorded) -> dict[str, Any]:
    _, _, rest = call.key.partition("/")
    name, _, number = rest.rpartition("/")
    if call.kind == "step":
        return {"kind": "step", "name": unquote(name), "number": int(number)}
    if call.kind == "ask":
        return {"kind": "ask", "question": None if call.request is None else call.request.decode("utf-8", "replace")}
    path, request = _request(call.request)
    return {"kind": "model", "path": path, "request": request}


def _request(deflated: bytes | None) -> tuple[str | None, Any]:
    """Path and body of a model call; a request that was not kept is None."""
    if deflated is None:
        return None, None
    try:
        plain = zlib.decompressobj().decompress(deflated, _MOST_BYTES)
    except zlib.error:
        return None, None
    path, _, body = plain.partition(b"\n")
    text = body.decode("utf-8", "replace")
    try:
        return path.decode("latin-1"), json.loads(text)
    except (ValueError, RecursionError):
        return path.decode("latin-1"), text


def _end(task: task_store.Task) -> dict[str, Any]:
    """How a task ended, without what differs from run to run: times, ids, token counts."""
    if task.phase is RunPhase.COMPLETED:
        return {"status": "completed", "output": json.loads(task.output or "null")}
    problem = json.loads(task.error) if task.error else {}
    return {"status": str(task.phase), **{name: problem[name] for name in ("code", "cause", "detail") if name in problem}}


def _diff(before: Any, now: Any) -> list[str]:
    lines = difflib.unified_diff(_lines(before), _lines(now), "recorded", "asked now", lineterm="", n=3)
    shown = [
        line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 1] + "…"
        for _, line in zip(range(_MOST_LINES), lines, strict=False)
    ]
    return shown


def _lines(value: Any) -> list[str]:
    return [] if value is None else json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).splitlines()
