"""CrewAI: a `Crew` (or a `@CrewBase` class) and a `Flow` (an object or a class), each run with a fresh copy.

A crew has no conversation of its own: a task that says `{history}` gets the session's earlier turns, and a flow gets its state
back. Both are kept in the platform's session state. Source: https://docs.crewai.com/concepts/crews and /concepts/flows.
"""

import asyncio
import contextlib
import gc
import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from nexus.core import errors
from nexus.worker import outputs, runs
from nexus.worker.adapters import prompts, tell, versions

_CREW = "crewai.crew.Crew"
_FLOWS = ("crewai.flow.flow.Flow", "crewai.flow.runtime.Flow")
_KEY = "crewai"
_TURNS = 20
_SETTLE_S = 0.5  # by then the thread has ended; the connection it left open closes when it is collected
_TEXT_KEYS = ("input", "topic", "question", "query", "prompt", "message", "request")


def matches(target: object, names: tuple[str, ...]) -> bool:
    if any(name in _FLOWS for name in names):
        return True
    return (_CREW in names and not isinstance(target, type)) or getattr(target, "is_crew_class", False) is True


def adapt(target: Any) -> "CrewAdapter | FlowAdapter":
    versions.check("crewai", tried="1.15")
    if any(entry.__name__ == "Flow" and entry.__module__.startswith("crewai.") for entry in _classes(target)):
        return FlowAdapter(target)
    if getattr(target, "is_crew_class", False) is True:
        target = (target() if isinstance(target, type) else target).crew()
    return CrewAdapter(target)


class _Stopped(BaseException):
    """Ends a thread of CrewAI's; not an Exception, which it would try again after."""


class CrewAdapter:
    name = "crewai"
    uses_state = True

    def __init__(self, crew: Any) -> None:
        self._crew = crew
        self._wanted = set(crew.fetch_inputs())

    async def run(self, run: runs.Run) -> Any:
        turns = run.state.setdefault(_KEY, [])
        inputs = {name: value for name, value in run.context.items() if name in self._wanted}
        inputs |= self._inputs(run.call.input)
        if "history" in self._wanted:
            inputs["history"] = "\n".join(f"{turn['input']}\n{turn['output']}" for turn in turns) or "(nothing yet)"
        crew = self._crew.copy()
        crew.stream = False
        if run.streaming:
            _let_models_stream(crew.agents)
        with _listening(run, last_task=crew.tasks[-1].id if crew.tasks else None):
            result = await crew.akickoff(inputs=inputs)
        tell.used(run, result.token_usage.prompt_tokens, result.token_usage.completion_tokens)
        output = result.raw
        if result.pydantic is not None or result.json_dict is not None:
            output = outputs.plain(result.pydantic if result.pydantic is not None else result.json_dict)
        if "history" in self._wanted:
            turns.append({"input": prompts.text_of(run.call.input), "output": result.raw})
            del turns[:-_TURNS]
        return output

    def _inputs(self, given: Any) -> dict[str, Any]:
        """What the tasks' placeholders get: an object fills them by name, a text the only one (or the one named for it)."""
        if isinstance(given, Mapping):
            return dict(given)
        free = sorted(self._wanted - {"history"})
        if not free:
            return {"input": given}
        name = free[0] if len(free) == 1 else next((key for key in _TEXT_KEYS if key in free), None)
        if name is None:
            raise errors.Invalid(
                "this crew needs an object as input",
                code="input.not_an_object",
                phase="run",
                cause=f"its tasks have the placeholders {', '.join(free)}",
                next_step='send {"input": {"' + free[0] + '": ...}}',
            )
        return {name: prompts.text_of(given)}


class FlowAdapter:
    name = "crewai-flow"
    uses_state = True

    def __init__(self, target: Any) -> None:
        self._class = target if isinstance(target, type) else type(target)
        self._example = None if isinstance(target, type) else target
        try:
            self._class()
        except TypeError as error:
            raise errors.AgentFailed(
                f"{self._class.__name__} cannot be created without arguments",
                code="entrypoint.bad_signature",
                phase="import",
                cause=str(error),
                next_step="give the flow's parameters defaults: every run gets a flow of its own",
            ) from error

    async def run(self, run: runs.Run) -> Any:
        given = run.call.input
        inputs = {**run.context, **(given if isinstance(given, Mapping) else {"input": given})}
        kept = run.state.get(_KEY)
        with _listening(run, last_task=None):
            flow = self._class()
            value = await flow.kickoff_async(inputs={**(kept if isinstance(kept, dict) else {}), **inputs})
        state = flow.state
        dumped = state.model_dump(mode="json") if hasattr(state, "model_dump") else outputs.plain(dict(state))
        dumped.pop("id", None)
        run.state[_KEY] = dumped
        if (usage := getattr(flow, "usage_metrics", None)) is not None:
            tell.used(run, getattr(usage, "prompt_tokens", 0), getattr(usage, "completion_tokens", 0))
        return getattr(value, "raw", value)


@contextlib.contextmanager
def _listening(run: runs.Run, *, last_task: Any) -> Iterator[None]:
    """Tell what CrewAI emits in this context: tasks and methods as steps, tools, and the pieces of the last task's answer.

    CrewAI calls models in threads, which no cancellation reaches: a stopped run ends there at the next event.
    """
    sinks = importlib.import_module("crewai.events.stream_context")
    calls: list[str] = []

    def told(source: Any, event: Any) -> None:
        if run.stopping:
            raise _Stopped
        if tell.listens(run):
            _event(run, event, last_task, calls)

    token = sinks.add_stream_sink(told)
    try:
        yield
    except asyncio.CancelledError:
        asyncio.get_running_loop().call_later(_SETTLE_S, gc.collect)
        raise
    finally:
        with contextlib.suppress(ValueError):
            sinks.reset_stream_sinks(token)


def _event(run: runs.Run, event: Any, last_task: Any, calls: list[str]) -> None:
    kind = getattr(event, "type", "")
    if kind == "llm_stream_chunk":
        if event.tool_call is None and (last_task is None or str(event.task_id) == str(last_task)):
            tell.delta(run, event.chunk)
    elif kind == "task_completed":
        name = getattr(event, "task_name", None) or getattr(event.output, "name", None) or event.output.description
        tell.step(run, name, {"agent": event.output.agent, "output": event.output.raw})
    elif kind in ("method_execution_started", "method_execution_finished"):
        tell.step(run, event.method_name, {"state": kind.rpartition("_")[2]})
    elif kind == "tool_usage_started":
        calls.append(event.tool_name)
        tell.tool_call(run, id=f"{event.tool_name}-{len(calls)}", name=event.tool_name, arguments=event.tool_args)
    elif kind in ("tool_usage_finished", "tool_usage_error"):
        output = event.output if kind == "tool_usage_finished" else f"error: {event.error}"
        tell.tool_result(run, id=f"{event.tool_name}-{len(calls)}", name=event.tool_name, output=output)


def _let_models_stream(agents: Any) -> None:
    for agent in agents:
        if getattr(agent, "llm", None) is not None and hasattr(agent.llm, "stream"):
            agent.llm.stream = True


def _classes(target: Any) -> tuple[type, ...]:
    return inspect.getmro(target if isinstance(target, type) else type(target))
