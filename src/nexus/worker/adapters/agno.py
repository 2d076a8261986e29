"""Agno's `Agent` and `Team`: one `arun` for each run. One without a database of its own gets the session's turns as messages.

Source: https://docs.agno.com/agents/running-agents and /teams/running-teams.
"""

from typing import Any

from nexus.core import errors
from nexus.worker import runs
from nexus.worker.adapters import prompts, tell, versions

_ENTRIES = ("agno.agent.agent.Agent", "agno.team.team.Team")
_KEY = "agno"
_MOST = 200


def matches(target: object, names: tuple[str, ...]) -> bool:
    return not isinstance(target, type) and any(name in _ENTRIES for name in names)


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
                kind = getattr(event, "event", "").removeprefix("Team")
                if getattr(event, "parent_run_id", None):
                    _member(run, kind, event)
                elif kind in ("RunCompleted", "RunError", "RunCancelled"):
                    last = event
                else:
                    _event(run, kind, event)
                await run.room()
        finally:
            await events.aclose()
        if last is None or not last.event.endswith("RunCompleted"):
            raise errors.AgentFailed(
                "the agent failed",
                code="agent.failed",
                phase="run",
                cause=str(getattr(last, "content", None) or "it ended without a result"),
                next_step="look at the agent's log",
            )
        for metrics in (getattr(entry, "metrics", None) for entry in (last, *(getattr(last, "member_responses", None) or ()))):
            if metrics is not None:
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


def _member(run: runs.Run, kind: str, event: Any) -> None:
    """A member of a team: its tools are told, its words are not the team's answer."""
    name = getattr(event, "agent_name", None) or getattr(event, "team_name", None) or "member"
    if kind == "RunStarted":
        tell.step(run, name, {"state": "started"})
    elif kind == "RunCompleted":
        tell.step(run, name, {"state": "finished", "output": tell.shown(event.content)})
    elif kind != "RunContent":
        _event(run, kind, event)
