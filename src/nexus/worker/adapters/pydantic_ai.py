"""`pydantic_ai.Agent`: one `agent.run` for each run; the session's messages are kept in the platform's session state.

The caller's `context` becomes the agent's `deps` when the agent says what they are. Source: https://ai.pydantic.dev/agents/.
"""

import importlib
import json
from collections.abc import AsyncIterable, Mapping
from typing import Any

from nexus.core import errors
from nexus.worker import faults, runs
from nexus.worker.adapters import prompts, tell, versions

_AGENT = "pydantic_ai.agent.abstract.AbstractAgent"
_KEY = "pydantic-ai"


def matches(target: object, names: tuple[str, ...]) -> bool:
    return not isinstance(target, type) and any(name in (_AGENT, "pydantic_ai.agent.Agent") for name in names)


def adapt(target: Any) -> "PydanticAiAdapter":
    return PydanticAiAdapter(target)


class PydanticAiAdapter:
    name = "pydantic-ai"
    uses_state = True

    def __init__(self, agent: Any) -> None:
        versions.check("pydantic-ai-slim", tried="2.68")
        self._agent = agent
        self._messages = importlib.import_module("pydantic_ai.messages").ModelMessagesTypeAdapter
        self._deps_type = getattr(agent, "deps_type", type(None))

    async def run(self, run: runs.Run) -> Any:
        prompt = prompts.text_of(run.call.input)
        earlier = run.state.get(_KEY)
        history = self._messages.validate_python(earlier) if isinstance(earlier, list) and earlier else None

        async def events(_: Any, found: AsyncIterable[Any]) -> None:
            async for event in found:
                _event(run, event)
                await run.room()

        result = await self._agent.run(
            prompt, message_history=history, deps=self._deps(run), event_stream_handler=events if tell.listens(run) else None
        )
        run.state[_KEY] = json.loads(result.all_messages_json())
        usage = result.usage() if callable(result.usage) else result.usage
        tell.used(run, usage.input_tokens, usage.output_tokens)
        return result.output

    def _deps(self, run: runs.Run) -> Any:
        wanted = self._deps_type
        if wanted is None or wanted is type(None):
            return None
        if not isinstance(wanted, type) or wanted in (dict, object) or issubclass(wanted, Mapping):
            return dict(run.context)
        try:
            return wanted(**run.context)
        except Exception as error:
            raise errors.Invalid(
                "the context does not fit the agent's deps",
                code="context.unfit",
                phase="run",
                cause=faults.describe(error),
                next_step=f'send "context" with the fields of {wanted.__name__}',
            ) from error


def _event(run: runs.Run, event: Any) -> None:
    kind = getattr(event, "event_kind", "")
    if kind == "part_start" and getattr(event.part, "part_kind", "") == "text":
        tell.delta(run, event.part.content)
    elif kind == "part_delta" and getattr(event.delta, "part_delta_kind", "") == "text":
        tell.delta(run, event.delta.content_delta)
    elif kind == "function_tool_call":
        tell.tool_call(run, id=event.part.tool_call_id, name=event.part.tool_name, arguments=event.part.args)
    elif kind == "function_tool_result":
        part = getattr(event, "part", None) or event.result
        tell.tool_result(run, id=part.tool_call_id, name=part.tool_name, output=part.content)
