"""`step` and `ask`: what a task does once over all its attempts, and what it asks people. Also methods of `Agent`.

Awaited in code with an event loop; in plain functions, which run in a thread of their own, they just return their result.
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from nexus.core import errors
from nexus.kit import quantity
from nexus.ports import run as runs

_KINDS: Mapping[Any, Mapping[str, Any]] = {
    bool: {"type": "boolean"}, int: {"type": "integer"}, float: {"type": "number"}, str: {"type": "string"},
    list: {"type": "array"}, dict: {"type": "object"},
}  # fmt: skip


class _Nothing:
    def __repr__(self) -> str:
        return "NO_DEFAULT"


NO_DEFAULT: Final = _Nothing()


def step(name: str, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
    """`await step("charge", charge, order)`: in a task, done once over all its attempts, its JSON result recorded.

    Steps of the same name are told apart by their order. `work` may be plain or async. Where an attempt was lost inside
    a step nobody knows how it ended, and `hosting.tasks.unknown` decides: `repeat` it, `fail`, or `ask` a person. In a plain
    function there is nothing to await: `receipt = step("charge", charge, order)`.
    """
    run = runs.CURRENT.get()
    recording = None if run is None else run.recording
    if _has_loop():
        return _step(recording, name, work, arguments, named)
    if recording is None:
        return _done(work(*arguments, **named))
    return recording.step_blocking(name, lambda: _done(work(*arguments, **named)))


async def _step(
    recording: runs.Recording | None,
    name: str,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    named: Mapping[str, Any],
) -> Any:
    async def done() -> Any:
        value = work(*arguments, **named)
        return await value if inspect.isawaitable(value) else value

    return await done() if recording is None else await recording.step(name, done)


def ask(
    question: str,
    *,
    choices: Sequence[Any] | None = None,
    schema: Any = None,
    timeout: float | str | None = None,
    default: Any = NO_DEFAULT,
    name: str | None = None,
) -> Any:
    """`await ask("Refund 120 EUR?", choices=["yes", "no"])`: a person's answer, however long it takes. In tasks only.

    The run ends here and its process is free; once somebody has answered, the task is run again from its beginning, gets its
    recorded model calls and steps back at once, and this returns the answer. `choices` are the answers allowed; `schema` is a
    JSON Schema, `bool`, `int`, `float`, `str`, `list`, `dict` or a pydantic model, of which an object is returned. After
    `timeout` (seconds, or text such as `"3d"`, `"2h"`) the answer is `default`; without one `Exhausted` (`ask.timeout`) is
    raised. Give a question whose words change from attempt to attempt (they hold the time, say) a `name`.
    """
    run = runs.CURRENT.get()
    recording = None if run is None else run.recording
    if recording is None:
        raise errors.Conflict(
            "only a task can ask a person: nobody waits this long for an answer on the line",
            code="ask.not_a_task",
            phase="run",
            cause=f"asked: {str(question)[:200]}",
            next_step="submit it: nexus ai agent submit NAME INPUT, or POST /agents/NAME/tasks",
        )
    model = schema if isinstance(schema, type) and callable(getattr(schema, "model_json_schema", None)) else None
    wanted = runs.Question(
        text=str(question),
        choices=None if choices is None else list(choices),
        schema=_schema(schema),
        timeout_s=_seconds(timeout),
        default=() if default is NO_DEFAULT else (default,),
        name=name,
    )
    if _has_loop():
        return _ask(recording, wanted, model)
    return _read(recording.ask_blocking(wanted), model)


async def _ask(recording: runs.Recording, question: runs.Question, model: Any) -> Any:
    return _read(await recording.ask(question), model)


def _read(answer: Any, model: Any) -> Any:
    return answer if model is None or isinstance(answer, model) else model.model_validate(answer)


def _schema(schema: Any) -> Mapping[str, Any] | None:
    if schema is None or isinstance(schema, Mapping):
        return schema
    if isinstance(schema, type) and schema in _KINDS:
        return _KINDS[schema]
    if callable(describe := getattr(schema, "model_json_schema", None)):
        found: Mapping[str, Any] = describe()
        return found
    raise TypeError("schema is a JSON Schema (a dict), one of bool, int, float, str, list and dict, or a pydantic model")


def _seconds(timeout: float | str | None) -> float | None:
    seconds = quantity.parse_duration(timeout) if isinstance(timeout, str) else timeout
    if seconds is not None and not 0 < seconds < 10 * 366 * 86400:
        raise ValueError("timeout is a number of seconds above 0, at most ten years")
    return seconds


def _has_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _done(value: Any) -> Any:
    """What plain code gets of `work` that turned out to be async."""
    return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value


async def _awaited(value: Any) -> Any:
    return await value
