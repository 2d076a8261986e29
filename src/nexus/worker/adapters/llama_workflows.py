"""LlamaIndex workflows (`workflows.Workflow`), its agents among them: the run's `Context` is kept in the session's state.

Source: https://developers.llamaindex.ai/python/llamaagents/workflows/.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from nexus.worker import outputs, runs
from nexus.worker.adapters import prompts, tell, versions

_WORKFLOW = "workflows.workflow.Workflow"
_AGENTS = "llama_index.core.agent.workflow."
_KEY = "llama-index"


def matches(target: object, names: tuple[str, ...]) -> bool:
    return not isinstance(target, type) and _WORKFLOW in names


def adapt(target: Any) -> "WorkflowAdapter":
    return WorkflowAdapter(target)


class WorkflowAdapter:
    name = "llama-index"
    uses_state = True

    def __init__(self, workflow: Any) -> None:
        versions.check("llama-index-workflows", tried="2.26")
        self._workflow = workflow
        self._context = importlib.import_module("workflows").Context
        self._is_agent = any(f"{entry.__module__}.".startswith(_AGENTS) for entry in type(workflow).__mro__)

    async def run(self, run: runs.Run) -> Any:
        kept = run.state.get(_KEY)
        context = self._context.from_dict(self._workflow, outputs.plain(kept)) if isinstance(kept, dict) else None
        if context is None:
            context = self._context(self._workflow)
        handler = self._workflow.run(ctx=context, **self._inputs(run.call.input))
        try:
            async for event in handler.stream_events():
                _event(run, event)
                await run.room()
            result = await handler
        finally:
            if not handler.is_done():
                await handler.cancel_run()
        run.state[_KEY] = outputs.plain(context.to_dict())
        return str(result) if self._is_agent else result

    def _inputs(self, given: Any) -> dict[str, Any]:
        """What the start event gets: an object's fields, or a text as `user_msg` of agents and `input` of others."""
        if isinstance(given, Mapping):
            return dict(given)
        return {"user_msg" if self._is_agent else "input": prompts.text_of(given)}


def _event(run: runs.Run, event: Any) -> None:
    kind = type(event).__name__
    if isinstance(delta := getattr(event, "delta", None), str):
        tell.delta(run, delta)
    elif kind == "ToolCall":
        tell.tool_call(run, id=event.tool_id, name=event.tool_name, arguments=event.tool_kwargs)
    elif kind == "ToolCallResult":
        tell.tool_result(run, id=event.tool_id, name=event.tool_name, output=str(event.tool_output))
    elif kind == "AgentInput":
        tell.step(run, event.current_agent_name)
    elif kind not in ("StopEvent", "AgentOutput", "AgentStreamStructuredOutput") and hasattr(event, "model_dump"):
        tell.step(run, kind, event)
