"""One small module for each kind of entry point. `choose` looks at type names and imports no framework.

To add a framework: write a module with `matches(target, names)` and `adapt(target)`, and list it in `_TABLE`. It may import the
framework in `adapt`, where it is in the process already. Frameworks come before functions: many of their objects can be called.
"""

from types import ModuleType

from nexus.core import errors
from nexus.worker.adapters import (
    agent,
    agent_framework,
    agent_framework_workflow,
    agno,
    asgi,
    claude_agent,
    crewai,
    foundry,
    functions,
    google_adk,
    langgraph,
    llama_workflows,
    openai_agents,
    pydantic_ai,
    smolagents,
    strands,
)
from nexus.worker.adapters.contract import Adapter, AppAdapter, type_names

_TABLE: tuple[ModuleType, ...] = (
    langgraph,
    openai_agents,
    google_adk,
    claude_agent,
    crewai,
    pydantic_ai,
    strands,
    agno,
    agent_framework,
    agent_framework_workflow,
    llama_workflows,
    smolagents,
    foundry,
    asgi,
    agent,
    functions,
)
ACCEPTED = (
    "an Agent subclass or object, a function or generator (sync or async), or an object of LangGraph (a compiled graph), "
    "the OpenAI Agents SDK (Agent), Google ADK (an agent or App), CrewAI (Crew or Flow), "
    "the Claude Agent SDK (ClaudeAgentOptions), Pydantic AI, Strands, smolagents (an agent), Agno (Agent or Team), "
    "Agent Framework (Agent or Workflow), LlamaIndex (a workflow), or any ASGI app, AgentCore's and Foundry's among them"
)

__all__ = ["ACCEPTED", "Adapter", "AppAdapter", "choose"]


def choose(target: object) -> Adapter:
    """The adapter for an entry object. Raises `AgentFailed` (code `entrypoint.not_an_agent`) naming what is accepted."""
    names = type_names(target)
    for module in _TABLE:
        if module.matches(target, names):
            adapter: Adapter = module.adapt(target)
            return adapter
    hint = " (an uncompiled graph: call .compile() on it)" if any(name.endswith(".StateGraph") for name in names) else ""
    raise errors.AgentFailed(
        f"the entry point is a {type(target).__name__}, which cannot be run{hint}",
        code="entrypoint.not_an_agent",
        phase="import",
        cause=f"its type is {names[0] if names else type(target)!r}",
        next_step=f"point entrypoint at {ACCEPTED}",
    )
