"""The seam between what authors hold (`nexus.ai.agents.Agent`) and whatever executes their run (the worker, a test).

The run in hand is found through a context variable, so one agent object serves many runs at once. Outside a run the
variable is empty: `self.state` is then a plain dict of the object and events go nowhere.
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol


class Asked(BaseException):
    """Ends a run that asked a person: not an error, and not to be caught. It is run again once there is an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """`choices` are the answers allowed, `schema` a JSON Schema of them. `default` holds one value, or none: then a question
    that nobody answered within `timeout_s` is an error. `name` tells it from others when its words change."""

    text: str
    choices: Sequence[Any] | None = None
    schema: Mapping[str, Any] | None = None
    timeout_s: float | None = None
    default: tuple[Any, ...] = field(default=())
    name: str | None = None


class Recording(Protocol):
    """What earlier attempts of a task have done already. The blocking forms are for code in a thread without an event loop."""

    async def step(self, name: str, work: Callable[[], Awaitable[Any]]) -> Any:
        """The recorded result of the step of this name, or that of `work`, which is recorded."""
        ...

    def step_blocking(self, name: str, work: Callable[[], Any]) -> Any: ...

    async def ask(self, question: Question) -> Any:
        """A person's answer as JSON. Raises `Asked` as long as there is none, `errors.Exhausted` (`ask.timeout`) too late."""
        ...

    def ask_blocking(self, question: Question) -> Any: ...


class Run(Protocol):
    """One run as its author may see it. Every method may be called from any thread and never blocks for long."""

    @property
    def run_id(self) -> str: ...

    @property
    def session_id(self) -> str: ...

    @property
    def context(self) -> Mapping[str, Any]:
        """What the caller sent beside the input; empty when nothing was sent."""
        ...

    @property
    def state(self) -> MutableMapping[str, Any]:
        """The session's JSON object; what is changed here is kept after the run.

        Raises `errors.Unavailable` (code `state.unavailable`) when it cannot be read.
        """
        ...

    @property
    def recording(self) -> "Recording | None":
        """The run's recorded steps; None for a run that is no task, where steps are simply made."""
        ...

    def emit(self, name: str, data: Mapping[str, Any]) -> None:
        """Tell a streaming client. Raises `errors.Exhausted` (code `run.events_overflow`) when events pile up unread."""
        ...

    def outgoing_headers(self, host: str, port: int) -> Mapping[str, str]:
        """Headers that tie a model call to this run; empty unless `host:port` is the platform's own relay."""
        ...

    def add_usage(self, *, input_tokens: int, output_tokens: int) -> None:
        """Tokens a model call reported. Only counted where no platform door counts them."""
        ...


CURRENT: ContextVar[Run | None] = ContextVar("nexus_run", default=None)
