"""`from nexus.ai.agents import Agent`: subclass it, write `process`, and the host does the rest."""

from nexus.ai.agents.agent import Agent
from nexus.ai.agents.llm import Llm, Reply
from nexus.ai.agents.work import ask, step

__all__ = ["Agent", "Llm", "Reply", "ask", "step"]
