"""`strands.Agent`: its messages are the session's, kept in the platform's session state.

A Strands agent holds one conversation and takes one call at a time, so the runs of an instance take turns.
Source: https://strandsagents.com/latest/documentation/docs/user-guide/concepts/streaming/async-iterators/.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from nexus.worker import outputs, runs, tool_spans
from nexus.worker.adapters import prompts, tell, versions

_AGENT = "strands.agent.agent.Agent"
_KEY = "strands"


def matches(target: object, names: tuple[str, ...]) -> bool:
    return not isinstance(target, type) and _AGENT in names


def adapt(target: Any) -> "StrandsAdapter":
    return StrandsAdapter(target)


class StrandsAdapter:
    name = "strands"
    uses_state = True

    def __init__(self, agent: Any) -> None:
        versions.check("strands-agents", tried="1.62")
        tool_spans.leave_to_framework()
        self._agent = agent
        self._turn = asyncio.Lock()
        self._first = outputs.plain(agent.messages)

    async def run(self, run: runs.Run) -> Any:
        prompt = prompts.text_of(run.call.input)
        async with self._turn:
            agent = self._agent
            agent.messages[:] = outputs.plain(run.state.get(_KEY) or self._first)
            before = _usage(agent.event_loop_metrics)
            result: Any = None
            names: dict[str, str] = {}
            events = agent.stream_async(prompt, invocation_state={"context": dict(run.context)})
            try:
                async for event in events:
                    result = event.get("result", result)
                    _event(run, event, names)
                    await run.room()
            finally:
                await events.aclose()
            run.state[_KEY] = outputs.plain(agent.messages)
            after = _usage(agent.event_loop_metrics)
        tell.used(run, after[0] - before[0], after[1] - before[1])
        structured = getattr(result, "structured_output", None)
        return str(result).strip() if structured is None else structured


def _usage(metrics: Any) -> tuple[int, int]:
    used = metrics.accumulated_usage
    return used["inputTokens"], used["outputTokens"]


def _event(run: runs.Run, event: Mapping[str, Any], names: dict[str, str]) -> None:
    if "data" in event:
        tell.delta(run, event["data"])
    message = event.get("message")
    if not isinstance(message, Mapping):
        return
    for block in message.get("content") or ():
        if used := block.get("toolUse"):
            names[used["toolUseId"]] = used["name"]
            tell.tool_call(run, id=used["toolUseId"], name=used["name"], arguments=used["input"])
        elif answered := block.get("toolResult"):
            id = answered["toolUseId"]
            tell.tool_result(run, id=id, name=names.get(id), output=answered["content"])
