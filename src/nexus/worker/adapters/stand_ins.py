"""Agents of nobody's, of the same framework as the author's: what a first run builds, specialises and writes to, a run of one of
these has built before anybody asks. Nothing of the author's is called. Used by `session_warm`.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, TypedDict

from nexus.worker import runs
from nexus.worker.adapters import contract

_TRACING = ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING", "LANGCHAIN_TRACING_V2")
_NAME = "rehearsal"
INPUT = {"text": _NAME, "messages": [{"role": "user", "content": _NAME}]}


def find(adapter: contract.Adapter) -> contract.Adapter | None:
    """One that runs as this adapter's agent would, as far as its framework goes; None where there is none.

    Its input is `INPUT`. Whatever the framework raises is the caller's to expect.
    """
    make = _MAKERS.get(adapter.name)
    return None if make is None or _is_watched() else make(adapter)


def _is_watched() -> bool:
    """Whether somebody of the author's hears of every run: then one that nobody asked for would be told to them."""
    if any(os.environ.get(name, "").lower() in ("true", "1") for name in _TRACING):
        return True
    manager = getattr(sys.modules.get("langchain_core.callbacks.base"), "BaseCallbackManager", None)
    return manager is not None and hasattr(manager.__init__, "__wrapped__")


def _langgraph(adapter: Any) -> contract.Adapter | None:
    """A graph of one node like the author's: with messages or without, which waits or takes a thread."""
    graph = adapter.graph
    if getattr(graph, "builder", None) is None:
        return None
    graphs = importlib.import_module("langgraph.graph")
    waits = not any(_takes_thread(getattr(node, "runnable", None)) for node in graph.builder.nodes.values())
    talks = "messages" in getattr(graph, "channels", {})
    builder = graphs.StateGraph(graphs.MessagesState if talks else _State)
    change = {"messages": [("ai", _NAME)]} if talks else {"output": _NAME}
    builder.add_node(_NAME, _node(change, waits=waits))
    builder.add_edge(graphs.START, _NAME)
    builder.add_edge(_NAME, graphs.END)
    compiled = builder.compile()
    return _Forgetful("langgraph", lambda: type(adapter)(compiled))


class _Forgetful:
    """An adapter made anew for each run, which so finds nothing of the run before."""

    uses_state = False

    def __init__(self, name: str, make: Callable[[], contract.Adapter]) -> None:
        self.name = name
        self._make = make

    async def run(self, run: runs.Run) -> Any:
        return await self._make().run(run)


class _State(TypedDict, total=False):
    text: Any
    output: Any


def _takes_thread(node: Any) -> bool:
    """A plain function; LangGraph makes it one to be waited for by a partial of its own."""
    waiting = getattr(node, "afunc", None)
    return getattr(node, "func", None) is not None and (waiting is None or isinstance(waiting, functools.partial))


def _node(change: dict[str, Any], *, waits: bool) -> Callable[[Any], Any]:
    async def wait(state: Any) -> Any:
        return change

    def answer(state: Any) -> Any:
        return change

    return wait if waits else answer


_MAKERS: dict[str, Callable[[Any], contract.Adapter | None]] = {"langgraph": _langgraph}
