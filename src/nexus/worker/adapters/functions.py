"""Plain functions, coroutines and generators: `f()`, `f(input)` or `f(input, context)`."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from nexus.core import errors
from nexus.worker import runs, threads
from nexus.worker.adapters import contract

_CONTEXT_NAMES = ("context", "ctx")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def matches(target: object, names: tuple[str, ...]) -> bool:
    return callable(target) and (inspect.isroutine(target) or isinstance(target, functools.partial) or _has_call(target))


def adapt(target: Any) -> "FunctionAdapter":
    return FunctionAdapter(target, name="function")


class FunctionAdapter:
    """Calls `function` in the loop when it is a coroutine or async generator function, else in a thread."""

    def __init__(self, function: Callable[..., Any], *, name: str, uses_state: bool = False) -> None:
        self.name = name
        self.uses_state = uses_state
        self._function = function
        self._arity, self._context_keyword = _shape(function)
        unwrapped = _unwrap(function)
        self._asynchronous = inspect.iscoroutinefunction(unwrapped)
        self._generates = inspect.isasyncgenfunction(unwrapped) or inspect.isgeneratorfunction(unwrapped)

    async def run(self, run: runs.Run) -> Any:
        call = run.call
        arguments = (call.input, call.context)[: self._arity]
        function = self._function
        if self._context_keyword:
            function = functools.partial(function, context=call.context)
        if self._asynchronous:
            value = await function(*arguments)
            return value if type(value) in (str, dict, list) else await contract.settle(run, value)
        if self._generates:
            return await contract.settle(run, function(*arguments))
        return await contract.settle(run, await threads.call(run, function, *arguments))


def _has_call(target: object) -> bool:
    return not isinstance(target, type) and "__call__" in dir(type(target))


def _unwrap(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) or isinstance(function, type) else type(function).__call__


def _shape(function: Callable[..., Any]) -> tuple[int, bool]:
    """How many of (input, context) to pass by position, and whether `context` goes by keyword."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return 1, False
    positional = [entry for entry in parameters if entry.kind in _POSITIONAL]
    required = [entry.name for entry in positional if entry.default is entry.empty]
    by_keyword = any(entry.name == "context" and entry.kind is entry.KEYWORD_ONLY for entry in parameters)
    needed = [entry.name for entry in parameters if entry.kind is entry.KEYWORD_ONLY and entry.default is entry.empty]
    if len(required) > 2 or [name for name in needed if name != "context"]:
        raise errors.AgentFailed(
            f"the entry point {getattr(function, '__name__', 'function')} needs more than (input, context)",
            code="entrypoint.bad_signature",
            phase="import",
            cause=f"it requires {', '.join([*required, *needed])}",
            next_step="write it as f(input) or f(input, context)",
        )
    if not positional:
        return (1 if any(entry.kind is entry.VAR_POSITIONAL for entry in parameters) else 0), by_keyword
    if len(positional) > 1 and (len(required) > 1 or positional[1].name in _CONTEXT_NAMES):
        return 2, by_keyword
    return 1, by_keyword
