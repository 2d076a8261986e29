"""Answers in the form of OpenAI's Responses API, whole or as its stream of events, told in our words.

Source: https://platform.openai.com/docs/api-reference/responses-streaming. Foundry's hosted agents answer so.
"""

from collections.abc import Mapping
from typing import Any

from nexus.core import errors
from nexus.worker import runs
from nexus.worker.adapters import tell

_ENDS = ("response.completed", "response.failed", "response.incomplete")


def is_event(value: object) -> bool:
    return isinstance(value, Mapping) and (str(value.get("type", "")).startswith("response.") or value.get("type") == "error")


def is_response(value: object) -> bool:
    return isinstance(value, Mapping) and value.get("object") == "response" and isinstance(value.get("output"), list)


class Reader:
    """One response: `take` its events or `finish` with the whole; `response` is the finished one."""

    def __init__(self, run: runs.Run) -> None:
        self._run = run
        self._texts: list[str] = []
        self.response: Mapping[str, Any] | None = None

    def take(self, event: Mapping[str, Any]) -> None:
        kind = event["type"]
        if kind == "response.output_text.delta":
            if tell.delta(self._run, event.get("delta")):
                self._texts.append(event["delta"])
        elif kind == "response.output_item.done" and isinstance(event.get("item"), Mapping):
            self._item(event["item"])
        elif kind in _ENDS and isinstance(event.get("response"), Mapping):
            self.response = event["response"]
        elif kind == "error":
            raise _failed(event.get("error") if isinstance(event.get("error"), Mapping) else event)

    def finish(self, response: Mapping[str, Any] | None = None) -> Any:
        """The output: the text, or the items where there is none. Raises `AgentFailed` for a response that failed."""
        self.response = response or self.response
        if self.response is None:
            return "".join(self._texts) or None
        if self.response.get("status") in ("failed", "cancelled") or self.response.get("error"):
            raise _failed(self.response.get("error") or self.response)
        usage = self.response.get("usage") or {}
        tell.used(self._run, usage.get("input_tokens"), usage.get("output_tokens"))
        items = self.response.get("output") or []
        parts = (part for item in items if item.get("type") == "message" for part in item.get("content") or ())
        text = "".join(part.get("text") or "" for part in parts if part.get("type") == "output_text")
        return text or "".join(self._texts) or items

    def _item(self, item: Mapping[str, Any]) -> None:
        kind = str(item.get("type"))
        if kind == "function_call":
            tell.tool_call(self._run, id=item.get("call_id"), name=item.get("name"), arguments=item.get("arguments"))
        elif kind == "function_call_output":
            tell.tool_result(self._run, id=item.get("call_id"), name=item.get("name"), output=item.get("output"))
        elif kind != "message":
            tell.step(self._run, kind, item)


def _failed(said: object) -> errors.AgentFailed:
    named = said if isinstance(said, Mapping) else {}
    cause = ": ".join(str(named[name]) for name in ("code", "message") if named.get(name))
    return errors.AgentFailed(
        "the agent failed",
        code="agent.failed",
        phase="run",
        cause=cause or f"its response is {named.get('status', 'failed')}",
        next_step="look at the agent's log",
    )
