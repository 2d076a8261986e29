"""Microsoft Agent Framework's `Workflow`: each run has a workflow of its own over the author's executors, which take turns.

What the executors say in `on_checkpoint_save`, and the workflow's shared state, is the session: kept as JSON in the platform's
session state, given back by `on_checkpoint_restore`. An executor that keeps things elsewhere shares them between sessions.
Source: https://learn.microsoft.com/agent-framework/workflows/.
"""

import asyncio
import copy
import importlib
import logging
from collections.abc import Mapping
from typing import Any

from nexus.core import errors
from nexus.worker import outputs, runs, tool_spans
from nexus.worker.adapters import agent_framework, prompts, tell, versions

_LOG = logging.getLogger("nexus.worker")
_WORKFLOW = "agent_framework._workflows._workflow.Workflow"
_KEY = "agent-framework"
_OBJECT = "$object"
_TYPES = ("Message", "Content")


def matches(target: object, names: tuple[str, ...]) -> bool:
    return not isinstance(target, type) and _WORKFLOW in names


def adapt(target: Any) -> "WorkflowAdapter":
    return WorkflowAdapter(target)


class WorkflowAdapter:
    name = "agent-framework-workflow"
    uses_state = True

    def __init__(self, workflow: Any) -> None:
        versions.check("agent-framework-core", tried="1.23")
        tool_spans.leave_to_framework()
        self._sdk = importlib.import_module("agent_framework")
        self._given = workflow
        self._turn = asyncio.Lock()
        self._first: dict[str, Any] | None = None
        self._takes_text = str in workflow.get_start_executor().input_types

    async def run(self, run: runs.Run) -> Any:
        message = self._message(run.call.input)
        async with self._turn:
            workflow = self._own()
            await self._restore(workflow, run)
            teller = _Teller(run)
            async for event in workflow.run(message, stream=True):
                teller.take(event)
                await run.room()
            await self._keep(workflow, run)
        return teller.output()

    def _message(self, given: Any) -> Any:
        if isinstance(given, Mapping) and prompts.messages_of(given) is None:
            return dict(given)
        text = prompts.text_of(given)
        return text if self._takes_text else [self._sdk.Message(role="user", contents=[text])]

    def _own(self) -> Any:
        """A workflow that begins anew: messages of a run that failed are not in its way. What it hides is heard for its tools."""
        given = self._given
        listed = {}
        if (outputs_from := given._output_designation.outputs) is not None:
            listed = {
                "output_from": sorted(outputs_from),
                "intermediate_output_from": sorted(set(given.executors) - outputs_from),
            }
        return type(given)(
            given.edge_groups,
            given.executors,
            given.get_start_executor(),
            self._sdk.InProcRunnerContext(given._runner_context._checkpoint_storage),
            given.name,
            description=given.description,
            max_iterations=given.max_iterations,
            **listed,
        )

    async def _restore(self, workflow: Any, run: runs.Run) -> None:
        if self._first is None:
            self._first = {name: copy.deepcopy(await one.on_checkpoint_save()) for name, one in workflow.executors.items()}
        kept = run.state.get(_KEY)
        found: dict[str, Any] = self._decoded(outputs.plain(kept)) if isinstance(kept, dict) else {}
        workflow._runner._state.import_state(found.get("shared") or {})
        for name, executor in workflow.executors.items():
            state = (found.get("executors") or {}).get(name)
            await executor.on_checkpoint_restore(copy.deepcopy(self._first[name]) if state is None else state)

    async def _keep(self, workflow: Any, run: runs.Run) -> None:
        executors = {name: await executor.on_checkpoint_save() for name, executor in workflow.executors.items()}
        shared = {name: value for name, value in workflow._runner._state.export_state().items() if not name.startswith("_")}
        try:
            run.state[_KEY] = outputs.plain(self._encoded({"shared": shared, "executors": executors}))
        except errors.AgentFailed as error:
            _LOG.warning("session %s: its workflow's state is not kept: %s", run.session_id, error.cause)

    def _encoded(self, value: Any) -> Any:
        """The framework's own messages as JSON, wherever they are."""
        if type(value).__name__ in _TYPES and hasattr(value, "to_dict"):
            return {_OBJECT: type(value).__name__, "value": outputs.plain(value.to_dict())}
        if isinstance(value, Mapping):
            return {name: self._encoded(entry) for name, entry in value.items()}
        return [self._encoded(entry) for entry in value] if isinstance(value, list | tuple) else value

    def _decoded(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._decoded(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        if value.get(_OBJECT) in _TYPES:
            return getattr(self._sdk, value[_OBJECT]).from_dict(value["value"])
        return {name: self._decoded(entry) for name, entry in value.items()}


class _Teller:
    """Executors are steps; what agents among them say as output streams, and is the answer when nothing else is."""

    def __init__(self, run: runs.Run) -> None:
        self._run = run
        self._updates = agent_framework.Teller(run)
        self._texts: list[str] = []
        self._whole: list[Any] = []

    def output(self) -> Any:
        if self._whole:
            return self._whole[-1] if len(self._whole) == 1 else self._whole
        return "".join(self._texts) or None

    def take(self, event: Any) -> None:
        is_output = event.type == "output"
        if event.type in ("executor_invoked", "executor_completed"):
            tell.step(self._run, event.executor_id, {"state": event.type.removeprefix("executor_")})
        elif type(event.data).__name__ == "AgentResponseUpdate":
            self._updates.take(event.data, answers=is_output)
            for content in event.data.contents:
                if content.type == "text" and is_output:
                    self._texts.append(content.text or "")
                elif content.type == "usage":
                    used = content.usage_details or {}
                    tell.used(self._run, used.get("input_token_count"), used.get("output_token_count"))
        elif is_output:
            data = event.data
            self._whole.append(data.text if hasattr(data, "messages") and hasattr(data, "text") else data)
