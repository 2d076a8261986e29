"""How a run goes on with a thread of its graph: a new attempt of a task where the last one stopped, an interrupted graph with the
answers of people. `interrupt(…)` in a task is a question (`ask`); elsewhere it is the run's output, and the session's next run
resumes with `{"resume": answer}` as its input.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from nexus.ports import run as ports
from nexus.worker import outputs, runs

INTERRUPT = "__interrupt__"


class Finished(Exception):
    """An earlier attempt came to the end of the graph; `state` is what it found."""

    def __init__(self, state: Any) -> None:
        super().__init__("the graph has ended already")
        self.state = state


async def begin(graph: Any, config: Mapping[str, Any], run: runs.Run, given: Any) -> Any:
    """What to put into the graph: the input, nothing (to go on), or a command that resumes. Raises `Finished`, or `Asked`."""
    resuming = isinstance(given, Mapping) and set(given) == {"resume"}
    again = run.recording is not None and run.recording.attempt > 1
    if not (resuming or again):
        return given
    found = await graph.aget_state(config)
    waiting = interrupts_of(found)
    if again and (found.metadata or {}).get("run_id") == run.run_id:
        if waiting:
            return await answered(run, waiting)
        if not found.tasks:  # `next` leaves out nodes whose writes are there and not applied yet
            raise Finished(found.values)
        return None
    return command(given["resume"]) if resuming and waiting else given


def interrupts_of(state: Any) -> list[Any]:
    found = getattr(state, "interrupts", None)
    if found is None:
        found = [each for task in state.tasks for each in task.interrupts]
    return list(found)


async def answered(run: runs.Run, interrupts: Sequence[Any]) -> Any:
    """The command that resumes with the answers of people. Raises `Asked` once every question is open."""
    recording, answers = run.recording, {}
    asked: BaseException | None = None
    if recording is None:
        raise TypeError("only a task can wait for people")
    for each in interrupts:
        try:
            answers[each.id] = await recording.ask(_question(each))
        except ports.Asked as waits:
            asked = waits
    if asked is not None:
        raise asked
    return command(answers)


def command(resume: Any) -> Any:
    return importlib.import_module("langgraph.types").Command(resume=resume)


def shown(interrupts: Sequence[Any]) -> dict[str, Any]:
    """What a run that is no task tells of its interrupts."""
    return {"interrupts": [{"id": each.id, "value": _plain(each.value)} for each in interrupts]}


def _question(interrupt: Any) -> ports.Question:
    value = _plain(interrupt.value)
    schema = getattr(interrupt, "response_schema", None)
    return ports.Question(
        text=_words(value), schema=schema if isinstance(schema, Mapping) else None, name=f"interrupt {interrupt.id}"
    )


def _words(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        for name in ("question", "message", "prompt"):
            if isinstance(value.get(name), str) and len(value) == 1:
                return str(value[name])
    return outputs.encode(value)


def _plain(value: Any) -> Any:
    try:
        return outputs.plain(value)
    except Exception:  # noqa: BLE001 - an author's value may be anything
        return str(value)
