"""One small module for each kind of entry point. `choose` looks at type names and imports no framework.

To add a framework: write a module with `matches(target, names)` and `adapt(target)`, and list it in `_FRAMEWORKS` beside the
package whose objects it knows; it is imported when that package is there. It may import the framework in `adapt`, where it is in
the process already. Frameworks come before functions: many of their objects can be called.
"""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

from nexus.core import errors
from nexus.worker.adapters.contract import Adapter, AppAdapter, ForeseeingAdapter, type_names

_FRAMEWORKS: tuple[tuple[str, str], ...] = (
    ("langgraph", "langgraph"),
    ("agents", "openai_agents"),
    ("google.adk", "google_adk"),
    ("claude_agent_sdk", "claude_agent"),
    ("crewai", "crewai"),
    ("pydantic_ai", "pydantic_ai"),
    ("strands", "strands"),
    ("agno", "agno"),
    ("agent_framework", "agent_framework"),
    ("agent_framework", "agent_framework_workflow"),
    ("workflows", "llama_workflows"),
    ("smolagents", "smolagents"),
    ("azure.ai.agentserver.core", "foundry"),
)
_ALWAYS = ("asgi", "agent", "functions")
ACCEPTED = (
    "an Agent subclass or object, a function or generator (sync or async), or an object of LangGraph (a compiled graph), "
    "the OpenAI Agents SDK (Agent), Google ADK (an agent or App), CrewAI (Crew or Flow), "
    "the Claude Agent SDK (ClaudeAgentOptions), Pydantic AI, Strands, smolagents (an agent), Agno (Agent or Team), "
    "Agent Framework (Agent or Workflow), LlamaIndex (a workflow), or any ASGI app, AgentCore's and Foundry's among them"
)

__all__ = ["ACCEPTED", "Adapter", "AppAdapter", "ForeseeingAdapter", "choose"]


def choose(target: object) -> Adapter:
    """The adapter for an entry object. Raises `AgentFailed` (code `entrypoint.not_an_agent`) naming what is accepted."""
    names = type_names(target)
    for module in _modules(names):
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


def _modules(names: tuple[str, ...]) -> Iterator[ModuleType]:
    """The adapters that may fit, in order: of frameworks that were imported, or whose names the object bears."""
    for package, module in _FRAMEWORKS:
        if package in sys.modules or any(name.startswith(package + ".") for name in names):
            yield importlib.import_module(f"{__name__}.{module}")
    for module in _ALWAYS:
        yield importlib.import_module(f"{__name__}.{module}")
