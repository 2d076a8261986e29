"""`nexus.ai.agents.Agent` subclasses and objects, and any class of the author's with a `process` method."""

import inspect
import types
from collections.abc import Iterator
from typing import Any

from nexus.core import errors
from nexus.worker.adapters import functions

_AGENT = "nexus.ai.agents.agent.Agent"


def matches(target: object, names: tuple[str, ...]) -> bool:
    return _AGENT in names or (callable(getattr(target, "process", None)) and not inspect.ismodule(target))


def is_agent_class(target: object) -> bool:
    """Whether this is an author's own subclass of `Agent`."""
    return isinstance(target, type) and any(f"{entry.__module__}.{entry.__qualname__}" == _AGENT for entry in target.__mro__[1:])


def adapt(target: Any) -> functions.FunctionAdapter:
    """Builds the object when a class is given; whatever its `__init__` raises is the author's error."""
    if isinstance(target, type):
        _check_constructor(target)
    agent = target() if isinstance(target, type) else target
    process = getattr(agent, "process", None)
    if not callable(process) or f"{type(agent).__module__}.{type(agent).__qualname__}" == _AGENT:
        raise errors.AgentFailed(
            f"{type(agent).__name__} has no process method",
            code="entrypoint.not_an_agent",
            phase="import",
            next_step="write `async def process(self, input)` in your subclass of Agent",
        )
    return functions.FunctionAdapter(process, name="agent", uses_state=_mentions_state(type(agent)))


def _check_constructor(cls: type) -> None:
    try:
        parameters = inspect.signature(cls).parameters.values()
    except (TypeError, ValueError):
        return
    required = [
        entry.name
        for entry in parameters
        if entry.default is entry.empty and entry.kind not in (entry.VAR_POSITIONAL, entry.VAR_KEYWORD)
    ]
    if required:
        raise errors.AgentFailed(
            f"{cls.__name__} cannot be created without arguments",
            code="entrypoint.bad_signature",
            phase="import",
            cause=f"its __init__ requires {', '.join(required)}",
            next_step=f"give them defaults, or point entrypoint at an object: agent = {cls.__name__}(...)",
        )


def _mentions_state(cls: type) -> bool:
    """Whether code of the class names `state`, so that reading it ahead is worth a call."""
    for entry in cls.__mro__:
        if f"{entry.__module__}.{entry.__qualname__}" == _AGENT:
            break
        for value in vars(entry).values():
            function = getattr(value, "__func__", value)
            if isinstance(function, types.FunctionType) and any("state" in code.co_names for code in _codes(function.__code__)):
                return True
    return False


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
