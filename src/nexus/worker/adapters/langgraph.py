"""Compiled LangGraph graphs (`langgraph.pregel.Pregel`) and functions made with its `@entrypoint`, seen by type name.

Text becomes the first user message of graphs with a `messages` state; a dict is the graph's input as it is, and a function
gets whatever came. The output is the last message's text, or the final state. Message chunks stream as `message.delta`, node
updates as `step`.
Source: https://docs.langchain.com/oss/python/langgraph/streaming (stream modes "messages", "updates", "values").
"""

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from nexus.core import errors
from nexus.wire import runs as wire
from nexus.worker import door as doors
from nexus.worker import outputs, runs
from nexus.worker.adapters import langgraph_memory, langgraph_threads, tell, versions

_PREGEL = ("langgraph.pregel.Pregel", "langgraph.pregel.main.Pregel")
_MODES = ["messages", "updates", "values"]
_QUIET = ["updates", "values"]  # nobody is there to read a message while it is written


def matches(target: object, names: tuple[str, ...]) -> bool:
    return not isinstance(target, type) and any(name in _PREGEL for name in names)


def adapt(target: Any) -> "GraphAdapter":
    return GraphAdapter(target)


class GraphAdapter:
    """The session is the graph's thread: in a checkpointer of its own when it has one, else in the platform's."""

    name = "langgraph"

    def __init__(self, graph: Any) -> None:
        versions.check("langgraph", tried="1.2")
        self._graph = graph
        self.uses_state = False
        self._lends = getattr(graph, "checkpointer", None) is None
        self._remembers = getattr(graph, "checkpointer", None) is not False
        self._says_when = self._lends and _takes(graph.astream, "durability")
        self._threads = langgraph_memory.Threads() if self._lends else None
        self._channels = _channels(graph)
        self._is_function = getattr(graph, "input_channels", None) == "__start__" and getattr(graph, "builder", None) is None

    @property
    def graph(self) -> Any:
        """The author's."""
        return self._graph

    async def foresee(self, door: doors.Door, session_id: str) -> None:
        """See `contract.ForeseeingAdapter`."""
        if self._threads is not None and self._remembers:
            await self._threads.foresee(door, session_id)

    async def run(self, run: runs.Run) -> Any:
        if self._threads is None:
            return await self._through(self._graph, run)
        memory = self._threads.open(run)
        graph = copy.copy(self._graph)
        graph.checkpointer = memory.saver
        try:
            try:
                found = await self._through(graph, run)
            except BaseException:
                if not (run.waits or run.stop_reason == "shutdown"):  # the next attempt goes on where these stopped
                    await memory.take_back()
                raise
            await memory.keep()
        finally:
            memory.close()
        return found

    async def _through(self, graph: Any, run: runs.Run) -> Any:
        """To the graph's end, and on from its interrupts as long as there are answers."""
        given, config = run.call.input, self._config(run)
        try:
            if self._remembers:
                given = await langgraph_threads.begin(graph, config, run, given)
            if given is run.call.input:
                given = self._input(given)
            while True:
                state, interrupts = await self._stream(graph, run, given, config)
                if not interrupts:
                    return _output(state)
                if run.recording is None:
                    return langgraph_threads.shown(interrupts)
                given = await langgraph_threads.answered(run, interrupts)
        except langgraph_threads.Finished as ended:
            return _output(ended.state)

    async def _stream(self, graph: Any, run: runs.Run, given: Any, config: dict[str, Any]) -> tuple[Any, list[Any]]:
        """The final state, and what the graph was interrupted for. A task's checkpoints are written before it goes on."""
        state: Any = None
        interrupts: list[Any] = []
        seen: set[str] = set()
        options = {"durability": "exit" if run.recording is None else "sync"} if self._says_when else {}
        modes = _MODES if run.streaming else _QUIET
        async for mode, value in graph.astream(given, config, stream_mode=modes, **options):
            if mode == "values":
                state = value
            elif mode == "updates":
                if isinstance(value, Mapping) and langgraph_threads.INTERRUPT in value:
                    interrupts.extend(value[langgraph_threads.INTERRUPT])
                else:
                    self._step(run, value, seen)
            else:
                _delta(run, value, seen)
            await run.room()
        return state, interrupts

    def _input(self, value: Any) -> Any:
        if not isinstance(value, str) or self._is_function:
            return value
        if "messages" in self._channels or not self._channels:
            return {"messages": [("user", value)]}
        if len(self._channels) == 1:
            return {self._channels[0]: value}
        raise errors.Invalid(
            "this graph needs an object as input",
            code="input.not_an_object",
            phase="run",
            cause=f"its state has the fields {', '.join(self._channels)} and no messages",
            next_step='send {"input": {"' + self._channels[0] + '": ...}}',
        )

    def _config(self, run: runs.Run) -> dict[str, Any]:
        config: dict[str, Any] = {
            "metadata": {"run_id": run.run_id, "session_id": run.session_id},
            "run_name": getattr(self._graph, "name", None) or "graph",
        }
        configurable = dict(run.context)
        if self._remembers:
            configurable["thread_id"] = run.session_id
        if configurable:
            config["configurable"] = configurable
        return config

    def _step(self, run: runs.Run, update: Any, seen: set[str]) -> None:
        if not isinstance(update, Mapping):
            return
        for node, change in update.items():
            for message in _messages(change):
                _tool_events(run, message, seen)
                _count(run, message)
            if tell.listens(run):
                tell.step(run, node, _shown(change))


def _takes(function: Any, parameter: str) -> bool:
    try:
        return parameter in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _channels(graph: Any) -> list[str]:
    """The input fields of the graph, in order; empty when they cannot be told."""
    channels = getattr(graph, "input_channels", None)
    if isinstance(channels, str):
        fields = getattr(getattr(graph, "builder", None), "input_schema", None) or getattr(graph, "input_schema", None)
        hints = getattr(fields, "__annotations__", None) or getattr(fields, "model_fields", None) or {}
        return [str(name) for name in hints]
    return [str(name) for name in channels or ()]


def _delta(run: runs.Run, value: Any, seen: set[str]) -> None:
    """A chunk of an AI message, once: a whole message that was streamed before comes again as an update, not here."""
    message = value[0] if isinstance(value, tuple) and value else value
    if getattr(message, "type", None) not in ("ai", "AIMessageChunk"):
        return
    text = _text(getattr(message, "content", ""))
    if text:
        run.emit(wire.MESSAGE_DELTA, {"text": text})


def _tool_events(run: runs.Run, message: Any, seen: set[str]) -> None:
    for call in getattr(message, "tool_calls", None) or ():
        key = f"call:{call.get('id')}"
        if key not in seen:
            seen.add(key)
            tell.tool_call(run, id=call.get("id"), name=call.get("name"), arguments=call.get("args"))
    if getattr(message, "type", None) == "tool":
        key = f"result:{getattr(message, 'tool_call_id', None)}"
        if key not in seen:
            seen.add(key)
            tell.tool_result(run, id=message.tool_call_id, name=getattr(message, "name", None), output=message.content)


def _count(run: runs.Run, message: Any) -> None:
    usage = getattr(message, "usage_metadata", None)
    if isinstance(usage, Mapping):
        run.add_usage(input_tokens=int(usage.get("input_tokens") or 0), output_tokens=int(usage.get("output_tokens") or 0))


def _messages(change: Any) -> Iterator[Any]:
    """Messages anywhere in the first level of a node's update, or of what a task returned."""
    values = change.values() if isinstance(change, Mapping) else (change,)
    for value in values:
        for entry in value if isinstance(value, list | tuple) else (value,):
            if hasattr(entry, "type") and hasattr(entry, "content"):
                yield entry


def _shown(change: Any) -> Any:
    """A node's update as JSON; what has no JSON form is named by its type instead of failing the run."""
    try:
        return outputs.plain(change)
    except errors.AgentFailed:
        if isinstance(change, Mapping):
            return {str(name): _shown(value) for name, value in change.items()}
        return f"<{type(change).__name__}>"


def _output(state: Any) -> Any:
    messages = state.get("messages") if isinstance(state, Mapping) else None
    if isinstance(messages, list | tuple) and messages:
        content = getattr(messages[-1], "content", messages[-1])
        return _text(content) or content
    return _shown(state)


def _text(content: Any) -> str:
    """Text of a message's content, which may be text or a list of blocks."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(
            block if isinstance(block, str) else str(block.get("text") or "")
            for block in content
            if isinstance(block, str) or (isinstance(block, Mapping) and block.get("type") in (None, "text"))
        )
    return ""
