"""Microsoft Agent Framework's `Agent`: its `AgentSession` is kept in the platform's session state.

Source: https://learn.microsoft.com/agent-framework/.
"""

import importlib
from typing import Any

from nexus.worker import outputs, runs, tool_spans
from nexus.worker.adapters import prompts, tell, versions

_AGENT = "agent_framework._agents.BaseAgent"
_KEY = "agent-framework"


def matches(target: object, names: tuple[str, ...]) -> bool:
    return not isinstance(target, type) and _AGENT in names


def adapt(target: Any) -> "AgentFrameworkAdapter":
    return AgentFrameworkAdapter(target)


class AgentFrameworkAdapter:
    name = "agent-framework"
    uses_state = True

    def __init__(self, agent: Any) -> None:
        versions.check("agent-framework-core", tried="1.23")
        tool_spans.leave_to_framework()
        self._agent = agent
        self._session = importlib.import_module("agent_framework").AgentSession

    async def run(self, run: runs.Run) -> Any:
        prompt = prompts.text_of(run.call.input)
        kept = run.state.get(_KEY)
        if isinstance(kept, dict):
            session = self._session.from_dict(outputs.plain(kept))
        else:
            session = self._agent.create_session(session_id=run.session_id)
        if tell.listens(run):
            told = Teller(run)
            stream = self._agent.run(prompt, session=session, stream=True)
            async for update in stream:
                told.take(update)
                await run.room()
            response = await stream.get_final_response()
        else:
            response = await self._agent.run(prompt, session=session)
        run.state[_KEY] = outputs.plain(session.to_dict())
        usage = response.usage_details or {}
        tell.used(run, usage.get("input_token_count"), usage.get("output_token_count"))
        return response.text if response.value is None else response.value


class Teller:
    """A call's arguments come in pieces under one id; it is told when its result, or other content, follows."""

    def __init__(self, run: runs.Run) -> None:
        self._run = run
        self._calls: dict[str, list[Any]] = {}
        self._names: dict[str, str] = {}
        self._last = ""

    def take(self, update: Any, *, answers: bool = True) -> None:
        """`answers` False: the text is not the answer's, and only tools are told."""
        for content in update.contents:
            if content.type == "function_call":
                self._last = content.call_id or self._last
                pieces = self._calls.setdefault(self._last, [content.name, ""])
                pieces[0] = pieces[0] or content.name
                pieces[1] = pieces[1] + content.arguments if isinstance(content.arguments, str) else content.arguments
                continue
            self._flush()
            if content.type == "text" and answers:
                tell.delta(self._run, content.text)
            elif content.type == "function_result":
                name = self._names.get(content.call_id)
                tell.tool_result(self._run, id=content.call_id, name=name, output=content.result)

    def _flush(self) -> None:
        for id, (name, arguments) in self._calls.items():
            self._names[id] = name
            tell.tool_call(self._run, id=id, name=name, arguments=arguments)
        self._calls.clear()
