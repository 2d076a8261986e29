"""`agents.Agent` of the OpenAI Agents SDK: one `Runner.run` for each run, its session kept in the platform's session state.

Source: https://openai.github.io/openai-agents-python/streaming/ and /sessions/.
"""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from nexus.worker import outputs, runs, tool_spans
from nexus.worker.adapters import openai_spans, prompts, tell, versions

_AGENTS = ("agents.agent.Agent", "agents.agent.AgentBase")
_KEY = "openai-agents"


def matches(target: object, names: tuple[str, ...]) -> bool:
    """Not every module called `agents` is the SDK."""
    return not isinstance(target, type) and any(name in _AGENTS for name in names) and hasattr(sys.modules["agents"], "Runner")


def adapt(target: Any) -> "OpenAiAgentsAdapter":
    return OpenAiAgentsAdapter(target)


class StateSession:
    """The SDK's `Session` over `run.state`: its items are JSON already, so they are kept as they are."""

    session_settings = None

    def __init__(self, run: runs.Run) -> None:
        self.session_id = run.session_id
        self._state = run.state

    async def get_items(self, limit: int | None = None) -> list[Any]:
        items = list(self._items())
        return items if limit is None else items[max(0, len(items) - limit) :]

    async def add_items(self, items: list[Any]) -> None:
        self._items().extend(outputs.plain(items))

    async def pop_item(self) -> Any:
        items = self._items()
        return items.pop() if items else None

    async def clear_session(self) -> None:
        self._state.pop(_KEY, None)

    def _items(self) -> list[Any]:
        items: list[Any] = self._state.setdefault(_KEY, [])
        return items


class OpenAiAgentsAdapter:
    name = "openai-agents"
    uses_state = True

    def __init__(self, agent: Any) -> None:
        versions.check("openai-agents", tried="0.24")
        tool_spans.leave_to_framework()
        self._agent = agent
        self._sdk = importlib.import_module("agents")
        _keep_traces_home(self._sdk)

    async def run(self, run: runs.Run) -> Any:
        messages = prompts.messages_of(run.call.input)
        given: Any = messages or prompts.text_of(run.call.input)
        config = self._sdk.RunConfig(group_id=run.session_id, session_input_callback=_append if messages else None)
        options = {"session": StateSession(run), "context": dict(run.context), "run_config": config}
        if run.streaming:
            result = await self._stream(run, given, options)
        else:
            result = await self._sdk.Runner.run(self._agent, given, **options)
        usage = result.context_wrapper.usage
        tell.used(run, usage.input_tokens, usage.output_tokens)
        return result.final_output

    async def _stream(self, run: runs.Run, given: Any, options: Mapping[str, Any]) -> Any:
        result = self._sdk.Runner.run_streamed(self._agent, given, **options)
        try:
            async for event in result.stream_events():
                _event(run, event)
                await run.room()
        finally:
            if not result.is_complete:
                result.cancel()
        return result


def _append(history: list[Any], new: list[Any]) -> list[Any]:
    """How a list of messages joins the session's history."""
    return [*history, *new]


def _event(run: runs.Run, event: Any) -> None:
    if event.type == "raw_response_event":
        if getattr(event.data, "type", "") == "response.output_text.delta":
            tell.delta(run, event.data.delta)
    elif event.type == "agent_updated_stream_event":
        tell.step(run, event.new_agent.name)
    elif event.type == "run_item_stream_event":
        _item(run, event.name, event.item)


def _item(run: runs.Run, name: str, item: Any) -> None:
    raw = item.raw_item
    if name == "tool_called":
        called = _read(raw, "name") or _read(raw, "type")
        arguments = _read(raw, "arguments") or _read(raw, "action") or _read(raw, "queries")
        tell.tool_call(run, id=_read(raw, "call_id") or _read(raw, "id"), name=called, arguments=arguments)
    elif name == "tool_output":
        tell.tool_result(run, id=_read(raw, "call_id"), name=_read(raw, "name"), output=item.output)
    elif name in ("handoff_requested", "mcp_approval_requested"):
        tell.step(run, name, {"name": _read(raw, "name")})


def _read(raw: Any, name: str) -> Any:
    return raw.get(name) if isinstance(raw, Mapping) else getattr(raw, name, None)


def _keep_traces_home(sdk: Any) -> None:
    """Traces go where the host sends them. The SDK's own exporter would post them to OpenAI with the instance's token."""
    given = os.environ.get("OPENAI_API_KEY", "")
    processors = getattr(getattr(sdk.tracing.get_trace_provider(), "_multi_processor", None), "_processors", ())
    kept = list(processors)
    if not given or given == os.environ.get("NEXUS_TOKEN"):
        kept = [entry for entry in kept if type(getattr(entry, "_exporter", None)).__name__ != "BackendSpanExporter"]
    if (spans := openai_spans.build(sdk)) is not None:
        kept.append(spans)
    sdk.set_trace_processors(kept)
