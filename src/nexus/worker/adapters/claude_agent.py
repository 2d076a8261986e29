"""`ClaudeAgentOptions` of the Claude Agent SDK: one `query` for each run, its transcript kept in the platform's session state.

The SDK starts the Claude Code program, which talks to ANTHROPIC_BASE_URL by itself and is told to name the run in its headers.
Source: https://docs.claude.com/en/api/agent-sdk/python.
"""

import contextlib
import dataclasses
import importlib
import os
import urllib.parse
import uuid
from collections.abc import Mapping
from typing import Any

from nexus.core import errors
from nexus.worker import runs
from nexus.worker.adapters import prompts, tell, versions

_OPTIONS = "claude_agent_sdk.types.ClaudeAgentOptions"
_KEY = "claude-agent"
_OWN_SESSION = ("session_store", "session_id", "resume", "continue_conversation")


def matches(target: object, names: tuple[str, ...]) -> bool:
    return not isinstance(target, type) and _OPTIONS in names


def adapt(target: Any) -> "ClaudeAgentAdapter":
    return ClaudeAgentAdapter(target)


class TranscriptStore:
    """The SDK's `SessionStore` over `run.state`: lines of the transcripts, by session and subpath."""

    def __init__(self, kept: dict[str, Any]) -> None:
        self._lines = kept.setdefault("transcripts", {})

    async def append(self, key: Mapping[str, str], entries: list[Any]) -> None:
        lines = self._lines.setdefault(_place(key), [])
        known = {line["uuid"] for line in lines if "uuid" in line}
        lines.extend(entry for entry in entries if entry.get("uuid") not in known)

    async def load(self, key: Mapping[str, str]) -> list[Any] | None:
        found: list[Any] | None = self._lines.get(_place(key))
        return found

    async def list_subkeys(self, key: Mapping[str, str]) -> list[str]:
        prefix = key["session_id"] + "/"
        return [name.removeprefix(prefix) for name in self._lines if name.startswith(prefix)]


class ClaudeAgentAdapter:
    name = "claude-agent"
    uses_state = True

    def __init__(self, options: Any) -> None:
        versions.check("claude-agent-sdk", tried="0.2")
        self._options = options
        self._sdk = importlib.import_module("claude_agent_sdk")
        self._keeps_session = not any(getattr(options, name, None) for name in _OWN_SESSION)

    async def run(self, run: runs.Run) -> Any:
        prompt = prompts.text_of(run.call.input)
        changes: dict[str, Any] = {"env": {**_run_headers(run), **self._options.env}, "include_partial_messages": run.streaming}
        kept: dict[str, Any] = {}
        if self._keeps_session:
            kept = run.state.setdefault(_KEY, {})
            earlier = kept.get("session_id")
            changes |= {"session_store": TranscriptStore(kept)}
            changes |= {"resume": earlier} if earlier else {"session_id": str(uuid.uuid4())}
        result: Any = None
        messages = self._sdk.query(prompt=prompt, options=dataclasses.replace(self._options, **changes))
        names: dict[str, str] = {}
        async with contextlib.aclosing(messages):
            async for message in messages:
                if type(message).__name__ == "ResultMessage":
                    result = message
                else:
                    _tell(run, message, names)
                await run.room()
        return self._finish(run, result, kept)

    def _finish(self, run: runs.Run, result: Any, kept: dict[str, Any]) -> Any:
        if result is None or result.is_error:
            said = "; ".join(result.errors or ()) or result.result or result.subtype if result is not None else "no result came"
            raise errors.AgentFailed(
                "the agent failed", code="agent.failed", phase="run", cause=str(said)[:2000], next_step="look at the agent's log"
            )
        kept["session_id"] = result.session_id
        usage = result.usage or {}
        cached = (usage.get(f"cache_{kind}_input_tokens") or 0 for kind in ("creation", "read"))
        tell.used(run, (usage.get("input_tokens") or 0) + sum(cached), usage.get("output_tokens"))
        return result.result if result.structured_output is None else result.structured_output


def _place(key: Mapping[str, str]) -> str:
    return f"{key['session_id']}/{key['subpath']}" if key.get("subpath") else key["session_id"]


def _run_headers(run: runs.Run) -> dict[str, str]:
    url = urllib.parse.urlsplit(os.environ.get("ANTHROPIC_BASE_URL", ""))
    headers = run.outgoing_headers(url.hostname or "", url.port or 80)
    return {"ANTHROPIC_CUSTOM_HEADERS": "\n".join(f"{name}: {value}" for name, value in headers.items())} if headers else {}


def _tell(run: runs.Run, message: Any, names: dict[str, str]) -> None:
    kind = type(message).__name__
    if kind == "StreamEvent" and message.parent_tool_use_id is None:
        delta = message.event.get("delta") or {}
        if message.event.get("type") == "content_block_delta" and delta.get("type") == "text_delta":
            tell.delta(run, delta.get("text"))
    elif kind == "TaskStartedMessage":
        tell.step(run, message.description, {"task_id": message.task_id})
    elif kind in ("AssistantMessage", "UserMessage") and isinstance(message.content, list):
        for block in message.content:
            if type(block).__name__ in ("ToolUseBlock", "ServerToolUseBlock"):
                names[block.id] = block.name
                tell.tool_call(run, id=block.id, name=block.name, arguments=block.input)
            elif type(block).__name__ in ("ToolResultBlock", "ServerToolResultBlock"):
                tell.tool_result(run, id=block.tool_use_id, name=names.get(block.tool_use_id), output=block.content)
