"""Makes texts easier to read and measures it: an Agno agent with a tool, unchanged."""

import os
import re

from agno.agent import Agent
from agno.models.openai import OpenAIChat


def readability(text: str) -> str:
    """How readable an English text is: Flesch's reading ease, from 0 (hard) to 100 (easy)."""
    words = re.findall(r"[A-Za-z]+", text) or ["a"]
    sentences = max(1, len(re.findall(r"[.!?]+", text)))
    syllables = sum(max(1, len(re.findall(r"[aeiouy]+", word.lower()))) for word in words)
    return f"{206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / len(words):.0f}"


agent = Agent(
    name="editor",
    model=OpenAIChat(id=os.environ.get("NEXUS_MODEL", "default")),
    instructions="You make texts easier to read. Measure them with the tool before and after.",
    tools=[readability],
    telemetry=False,
)
