"""`agno.agent.Agent`: one `arun` for each run. An agent without a database of its own gets the session's turns as messages.

Source: https://docs.agno.com/agents/running-agents.
"""

from typing import Any

from nexus.worker import runs
from nexus.worker.adapters import prompts, tell, versions

_AGENT = "agno.agent.agent.Agent"
_KEY = "agno"
_MOST = 200


def matches(target: object, names: tuple[str, ...]) -> bool:
    return not isinstance(target, type) and _AGENT in names


def adapt(target: Any) -> "AgnoAdapter":
    return AgnoAdapter(target)


class AgnoAdapter:
    name = "agno"
    uses_state = True

    def __init__(self, agent: Any) -> None:
        versions.check("agno", tried="3.1")
        self._agent = agent
        self._keeps = getattr(agent, "db", None) is None

    async def run(self, run: runs.Run) -> Any:
        said = {"role": "user", "content": prompts.text_of(run.call.input)}
        turns: list[Any] = run.state.setdefault(_KEY, []) if self._keeps else []
        who = {"user_id": str(run.context.get("user_id") or "user"), "session_id": run.session_id}
        events = self._agent.arun([*turns, said], stream=True, stream_events=True, dependencies=dict(run.context) or None, **who)
        last: Any = None
        try:
            async for event in events:
                kind = getattr(event, "event", "")
                if kind in ("RunCompleted", "RunError"):
                    last = event
                _event(run, kind, event)
                await run.room()
        finally:
            await events.aclose()
        if last is None or last.event == "RunError":
            raise RuntimeError(str(getattr(last, "content", None) or "the agent ended without a result"))
        if (metrics := getattr(last, "metrics", None)) is not None:
            tell.used(run, metrics.input_tokens, metrics.output_tokens)
        text = last.content if isinstance(last.content, str) else str(tell.shown(last.content))
        turns.extend((said, {"role": "assistant", "content": text}))
        del turns[:-_MOST]
        return last.content


def _event(run: runs.Run, kind: str, event: Any) -> None:
    if kind == "RunContent":
        tell.delta(run, event.content)
    elif kind == "ToolCallStarted":
        tell.tool_call(run, id=event.tool.tool_call_id, name=event.tool.tool_name, arguments=event.tool.tool_args)
    elif kind in ("ToolCallCompleted", "ToolCallError"):
        tell.tool_result(run, id=event.tool.tool_call_id, name=event.tool.tool_name, output=event.tool.result)
