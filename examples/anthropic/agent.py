"""Finds the cause of a failure in a log: the Anthropic SDK's own loop of messages and tools, as a plain async generator.

Send the log as {"context": {"log": "..."}}. The host sets ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY. What is yielded streams
to the caller; what is put in `self.state` belongs to the session.
"""

import os
import re

import anthropic

from nexus.ai.agents import Agent

TOOLS = [
    {
        "name": "search",
        "description": "Lines of the log that match a regular expression, with their numbers; at most 40.",
        "input_schema": {"type": "object", "properties": {"pattern": {"type": "string"}}, "required": ["pattern"]},
    },
    {
        "name": "around",
        "description": "Ten lines before and after a line of the log.",
        "input_schema": {"type": "object", "properties": {"line": {"type": "integer"}}, "required": ["line"]},
    },
]
SYSTEM = "You find the cause of failures in logs. Search before you answer, then name the line and the cause in two sentences."
client = anthropic.AsyncAnthropic()


class LogReader(Agent):
    async def process(self, input: str, context: dict):
        lines = context.get("log", "").splitlines()
        messages = [*self.state.get("messages", []), {"role": "user", "content": input}]
        for _ in range(8):
            async with client.messages.stream(
                model=os.environ.get("NEXUS_MODEL", "default"), max_tokens=500, system=SYSTEM, tools=TOOLS, messages=messages
            ) as stream:
                async for text in stream.text_stream:
                    yield text
                answer = await stream.get_final_message()
            messages.append({"role": "assistant", "content": [block.model_dump(include=FIELDS) for block in answer.content]})
            used = [block for block in answer.content if block.type == "tool_use"]
            if not used:
                break
            messages.append({"role": "user", "content": [self.result(block, lines) for block in used]})
        self.state["messages"] = messages

    def result(self, block: anthropic.types.ToolUseBlock, lines: list[str]) -> dict:
        self.events.emit("tool", {"name": block.name, "input": block.input})
        try:
            found = search(lines, **block.input) if block.name == "search" else around(lines, **block.input)
        except (re.error, TypeError) as error:
            return {"type": "tool_result", "tool_use_id": block.id, "content": str(error), "is_error": True}
        return {"type": "tool_result", "tool_use_id": block.id, "content": found or "nothing"}


FIELDS = {"type", "text", "id", "name", "input"}


def search(lines: list[str], pattern: str) -> str:
    matching = [f"{number}: {line}" for number, line in enumerate(lines, 1) if re.search(pattern, line)]
    return "\n".join(matching[:40])


def around(lines: list[str], line: int) -> str:
    first = max(1, line - 10)
    return "\n".join(f"{number}: {text}" for number, text in enumerate(lines[first - 1 : line + 10], first))


agent = LogReader()
