"""smolagents' agents (`MultiStepAgent`): each run has an agent of its own, whose memory is the session's.

The session keeps the memory's steps (tasks, plans, actions with their tool calls and observations); Python variables of a
`CodeAgent` live for one run. Source: https://huggingface.co/docs/smolagents/reference/agents.
"""

import contextlib
import copy
import gc
import importlib
import json
from collections.abc import Generator, Mapping
from typing import Any

from nexus.worker import runs, threads
from nexus.worker.adapters import prompts, tell, versions

_AGENT = "smolagents.agents.MultiStepAgent"
_KEY = "smolagents"
_MOST = 200
_FINAL = "final_answer"
_KEPT = ("step_number", "model_output", "code_action", "observations")


def matches(target: object, names: tuple[str, ...]) -> bool:
    return not isinstance(target, type) and _AGENT in names


def adapt(target: Any) -> "SmolagentsAdapter":
    return SmolagentsAdapter(target)


class SmolagentsAdapter:
    """smolagents is synchronous: a run has a thread, which ends at the next piece when the run is stopped."""

    name = "smolagents"
    uses_state = True

    def __init__(self, agent: Any) -> None:
        versions.check("smolagents", tried="1.26")
        self._agent = agent
        self._memory = importlib.import_module("smolagents.memory")
        self._monitoring = importlib.import_module("smolagents.monitoring")

    async def run(self, run: runs.Run) -> Any:
        prompt = prompts.text_of(run.call.input)
        agent = self._own(self._agent)
        agent.memory.steps = [step for kept in run.state.get(_KEY) or () if (step := self._restored(kept)) is not None]
        if run.streaming and hasattr(agent.model, "generate_stream"):
            agent.stream_outputs = True
        teller = _Teller(run)
        await threads.call(run, _drain, run, agent.run(prompt, stream=True, reset=False), teller)
        run.state[_KEY] = [kept for step in agent.memory.steps if (kept := _kept(step)) is not None][-_MOST:]
        tell.used(run, agent.monitor.total_input_token_count, agent.monitor.total_output_token_count)
        return teller.output

    def _own(self, agent: Any) -> Any:
        """A copy that shares model and tools, and neither memory nor state nor the counts."""
        own = copy.copy(agent)
        own.memory = self._memory.AgentMemory(agent.system_prompt)
        own.state = dict(agent.state)
        own.monitor = self._monitoring.Monitor(agent.model, agent.logger)
        own.step_callbacks = self._memory.CallbackRegistry()
        for kind, callbacks in agent.step_callbacks._callbacks.items():
            for callback in callbacks:
                is_count = getattr(callback, "__func__", None) is self._monitoring.Monitor.update_metrics
                own.step_callbacks.register(kind, own.monitor.update_metrics if is_count else callback)
        own.managed_agents = {name: self._own(managed) for name, managed in agent.managed_agents.items()}
        if type(getattr(agent, "python_executor", None)).__name__ == "LocalPythonExecutor":
            own.python_executor = agent.create_python_executor()
        return own

    def _restored(self, kept: Mapping[str, Any]) -> Any:
        if "task" in kept:
            return self._memory.TaskStep(task=kept["task"])
        now = self._monitoring.Timing(start_time=0.0, end_time=0.0)
        if "plan" in kept:
            return self._memory.PlanningStep(model_input_messages=[], model_output_message=None, plan=kept["plan"], timing=now)
        if "step_number" not in kept:
            return None
        calls = [self._memory.ToolCall(**call) for call in kept.get("tool_calls") or ()]
        fields = {name: kept.get(name) for name in _KEPT}
        return self._memory.ActionStep(timing=now, tool_calls=calls or None, error=kept.get("error"), **fields)


def _kept(step: Any) -> dict[str, Any] | None:
    """What later runs are told of a step, as JSON."""
    if hasattr(step, "task"):
        return {"task": step.task}
    if hasattr(step, "plan"):
        return {"plan": step.plan}
    if not hasattr(step, "step_number"):
        return None
    calls = [{"id": call.id, "name": call.name, "arguments": tell.shown(call.arguments)} for call in step.tool_calls or ()]
    kept = {name: tell.shown(getattr(step, name)) for name in _KEPT}
    return kept | {"tool_calls": calls, "error": None if step.error is None else str(step.error)}


def _drain(run: runs.Run, steps: Generator[Any, Any, Any], teller: "_Teller") -> None:
    """To the end of the agent's generator. Closed in the middle of a step it yields once more, which is its way, not an error.

    The model's connection hangs on a cycle of the client's: it is closed when that is collected.
    """
    try:
        for item in steps:
            teller.take(item)
            if run.stopping:
                return
    finally:
        with contextlib.suppress(RuntimeError):
            steps.close()
        if run.stopping:
            gc.collect()


class _Teller:
    """The model's own words are thoughts; the answer is what `final_answer` gets, and streams when the model streams it."""

    def __init__(self, run: runs.Run) -> None:
        self._run = run
        self._arguments = ""
        self._told = 0
        self._final_at: int | None = None
        self._names: dict[str, str] = {}
        self.output: Any = None

    def take(self, item: Any) -> None:
        kind = type(item).__name__
        if kind == "ChatMessageStreamDelta":
            self._delta(item)
        elif kind in ("ToolCall", "ChatMessageToolCall"):
            self._call(item)
        elif kind == "ToolOutput" and self._names.get(item.id) not in (None, _FINAL):
            tell.tool_result(self._run, id=item.id, name=self._names[item.id], output=item.observation)
        elif kind == "PlanningStep":
            tell.step(self._run, "plan", {"plan": item.plan})
        elif kind == "ActionStep":
            self._action(item)
        elif kind == "FinalAnswerStep":
            self.output = item.output
            if isinstance(item.output, str):
                tell.delta(self._run, item.output[self._told :])

    def _call(self, item: Any) -> None:
        function = getattr(item, "function", item)
        self._names[item.id] = function.name
        if function.name != _FINAL:
            tell.tool_call(self._run, id=item.id, name=function.name, arguments=function.arguments)

    def _action(self, step: Any) -> None:
        error = None if step.error is None else str(step.error)
        for call in step.tool_calls or ():
            if call.name == "python_interpreter" and self._names.pop(call.id, None) is not None:
                tell.tool_result(self._run, id=call.id, name=call.name, output=step.observations)
        tell.step(self._run, f"step {step.step_number}", {"observations": step.observations, "error": error})
        self._arguments, self._told, self._final_at = "", self._told if step.is_final_answer else 0, None

    def _delta(self, item: Any) -> None:
        if isinstance(item.content, str) and item.content:
            tell.custom(self._run, "thought", {"text": item.content})
        for call in item.tool_calls or ():
            if call.function is None:
                continue
            if call.function.name == _FINAL:
                self._final_at = call.index
            if self._final_at is not None and call.index == self._final_at:
                self._arguments += call.function.arguments or ""
                answer = _begun_text(self._arguments)
                tell.delta(self._run, answer[self._told :])
                self._told = max(self._told, len(answer))


def _begun_text(arguments: str) -> str:
    """The text of `{"answer": "…` as far as it has come; empty for anything else."""
    head, mark, text = arguments.partition('"answer"')
    text = text.lstrip(" \n\t:")
    if not mark or head.strip() != "{" or not text.startswith('"'):
        return ""
    try:
        return str(json.JSONDecoder().raw_decode(text)[0])
    except ValueError:
        pass
    for cut in range(len(text), max(0, len(text) - 12), -1):
        try:
            begun = str(json.loads(text[:cut] + '"'))
        except ValueError:
            continue
        return begun[:-1] if begun and "\ud800" <= begun[-1] <= "\udbff" else begun
    return ""
