"""`Agent`: the class authors subclass. Nothing is kept per run on the object, so one object serves many runs at once."""

import logging
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from nexus.ai.agents import llm
from nexus.ai.agents import work as work_of_tasks
from nexus.ports import run as runs

_LOG = logging.getLogger("agent")


class Events:
    """`self.events`: tell a streaming client something of your own."""

    __slots__ = ()

    def emit(self, name: str, data: object = None) -> None:
        """Send a `custom` event with this name and JSON data; goes nowhere when nobody streams."""
        if (run := runs.CURRENT.get()) is not None:
            run.emit("custom", {"name": name, "data": data})


_EVENTS = Events()


class Agent:
    """Write `process(self, input)` or `process(self, input, context)`; a coroutine, a generator, or plain.

    What is yielded as text streams to the client. `self.llm` calls models, `self.state` is the session's JSON object,
    `self.progress(…)` and `self.events` report on the way. `__init__` may be left alone or replaced without `super()`.
    """

    name: str = ""
    description: str = ""
    model: str | None = None
    tools: Sequence[Any] = ()

    def __init__(
        self,
        name: str | None = None,
        description: str | None = None,
        model: str | None = None,
        tools: Sequence[Any] | None = None,
        **settings: Any,
    ) -> None:
        """`settings` holds what else was given, as `self.settings`."""
        self.name = name if name is not None else type(self).name or type(self).__name__
        self.description = description if description is not None else type(self).description
        self.model = model if model is not None else type(self).model
        self.tools = list(tools) if tools is not None else list(type(self).tools)
        self.settings = settings

    def process(self, input: Any) -> Any:
        """Answer one run."""
        raise NotImplementedError(f"{type(self).__name__} has no process(self, input)")

    @property
    def llm(self) -> llm.Llm:
        """The model door: `await self.llm.generate("…")`."""
        return llm.Llm(model=self.model if isinstance(self.model, str) else None)

    @property
    def events(self) -> Events:
        return _EVENTS

    @property
    def log(self) -> logging.Logger:
        """A logger whose lines carry the run and session they belong to."""
        return _LOG

    @property
    def state(self) -> MutableMapping[str, Any]:
        """The session's own JSON object: read and change it like a dict. Outside a run, a dict of this object."""
        run = runs.CURRENT.get()
        if run is not None:
            return run.state
        own: dict[str, Any] = self.__dict__.setdefault("_state_outside_runs", {})
        return own

    @state.setter
    def state(self, value: Mapping[str, Any]) -> None:
        fresh = dict(value)
        current = self.state
        current.clear()
        current.update(fresh)

    @property
    def context(self) -> Mapping[str, Any]:
        """What the caller sent as `context`."""
        run = runs.CURRENT.get()
        return {} if run is None else run.context

    @property
    def session_id(self) -> str:
        run = runs.CURRENT.get()
        return "" if run is None else run.session_id

    @property
    def run_id(self) -> str:
        run = runs.CURRENT.get()
        return "" if run is None else run.run_id

    def step(self, name: str, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
        """`await self.step("charge", charge, order)`: in a task, done once over all its attempts; see `work.step`."""
        return work_of_tasks.step(name, work, *arguments, **named)

    def ask(
        self,
        question: str,
        *,
        choices: Sequence[Any] | None = None,
        schema: Any = None,
        timeout: float | str | None = None,
        default: Any = work_of_tasks.NO_DEFAULT,
        name: str | None = None,
    ) -> Any:
        """`await self.ask("Refund?", choices=["yes", "no"])`: in a task, a person's answer, days later; see `work.ask`."""
        return work_of_tasks.ask(question, choices=choices, schema=schema, timeout=timeout, default=default, name=name)

    def progress(self, percent: float, message: str | None = None) -> None:
        """How far this run is, 0 to 100; a task's status shows it."""
        if math.isnan(percent):
            raise ValueError("progress needs a number from 0 to 100")
        number = min(100.0, max(0.0, float(percent)))
        data: dict[str, Any] = {"percent": int(number) if number.is_integer() else round(number, 2)}
        if message is not None:
            data["message"] = str(message)
        if (run := runs.CURRENT.get()) is not None:
            run.emit("progress", data)
