"""What an adapter is, and how whatever an author returned or yielded becomes events and one output."""

import inspect
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol, runtime_checkable

from nexus.core import errors
from nexus.wire import runs as wire
from nexus.worker import door as doors
from nexus.worker import runs, threads


class Adapter(Protocol):
    """`name` is shown in `/status`; `uses_state` says whether `self.state` should be read before a run begins."""

    name: str
    uses_state: bool

    async def run(self, run: runs.Run) -> Any:
        """Execute the author's code for `run.call`, emit its events, and return the output."""
        ...


@runtime_checkable
class ForeseeingAdapter(Protocol):
    """What an adapter can do as soon as its worker has learnt whose session it serves."""

    async def foresee(self, door: doors.Door, session_id: str) -> None:
        """Fetch what the session's first run will read. Raises what the door raises; that run then fetches it itself."""
        ...


@runtime_checkable
class AppAdapter(Protocol):
    """What an adapter of an app can do beside runs."""

    @property
    def takes_sockets(self) -> bool: ...

    async def socket(self, run: runs.Run, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Talk to one WebSocket client, until either side closes. `run` is what its model calls are counted for."""
        ...

    async def busy(self) -> bool:
        """Whether the app works without a run; it should not be stopped then."""
        ...

    async def aclose(self) -> None:
        """The app's own shut-down."""
        ...


def type_names(target: object) -> tuple[str, ...]:
    """`module.Class` of a class or an object's class and its ancestors, most special first."""
    cls = target if isinstance(target, type) else type(target)
    return tuple(f"{entry.__module__}.{entry.__qualname__}" for entry in cls.__mro__)


class Collector:
    """Takes what a generator yields: text becomes `message.delta`, a dict a `custom` event unless it has `text`."""

    __slots__ = ("_run", "_texts", "last")

    def __init__(self, run: runs.Run) -> None:
        self._run = run
        self._texts: list[str] = []
        self.last: Any = None

    def take(self, item: Any) -> None:
        if isinstance(item, str):
            self._texts.append(item)
            self._run.emit(wire.MESSAGE_DELTA, {"text": item})
            return
        self.last = item
        if isinstance(item, dict) and isinstance(text := item.get("text"), str):
            self._texts.append(text)
            self._run.emit(wire.MESSAGE_DELTA, item)
        elif item is not None:
            self._run.emit(wire.CUSTOM, {"name": "output", "data": item})

    def output(self, returned: Any = None) -> Any:
        if self._texts:
            return "".join(self._texts)
        return self.last if returned is None else returned


async def settle(run: runs.Run, value: Any) -> Any:
    """The output behind what a call returned: awaits, drains generators of both kinds, and leaves the rest alone."""
    for _ in range(8):
        if inspect.isawaitable(value):
            value = await value
        elif inspect.isasyncgen(value) or (isinstance(value, AsyncIterator) and not hasattr(value, "model_dump")):
            return await drain(run, value)
        elif inspect.isgenerator(value):
            collector = Collector(run)
            return collector.output(await threads.call(run, threads.drain, run, value, collector.take))
        else:
            return value
    raise errors.AgentFailed("the agent returned an awaitable of an awaitable without end", phase="run")


async def drain(run: runs.Run, items: AsyncIterator[Any]) -> Any:
    """Pull an async iterator to its end, pausing while the client is behind; closes it whatever happens."""
    collector = Collector(run)
    try:
        async for item in items:
            collector.take(item)
            await run.room()
    finally:
        if (close := getattr(items, "aclose", None)) is not None:
            await close()
    return collector.output()
