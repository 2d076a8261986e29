"""Live readers of task events: each sleeps until its task is named by a notification.

Notifications are lost only with the listener's connection, and a new one wakes everybody; looking now and then is a second net.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

from nexus.ports import task_store
from nexus.wire import runs

_PAGE = 500


class Wakeups:
    """Who waits for which task. `wake("")` wakes everybody: notifications may have been missed.

    Readers of one task that are woken together look together: `read` asks the store once for all who stand at the same place.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._reading: dict[str, dict[int, asyncio.Future[Sequence[task_store.TaskEvent]]]] = {}

    async def read(self, store: task_store.TaskStore, task_id: str, after: int) -> Sequence[task_store.TaskEvent]:
        """Up to a page of events behind `after`. What was committed before the last `wake` is seen."""
        places = self._reading.setdefault(task_id, {})
        found = places.get(after)
        if found is None:
            found = places[after] = asyncio.ensure_future(store.events_after(task_id, after, limit=_PAGE))
            found.add_done_callback(lambda done: self._forget(task_id, after, done))
        return await asyncio.shield(found)

    def _forget(self, task_id: str, after: int, done: "asyncio.Future[Sequence[task_store.TaskEvent]]") -> None:
        places = self._reading.get(task_id, {})
        if places.get(after) is done:
            del places[after]
            if not places:
                del self._reading[task_id]
        if not done.cancelled():
            done.exception()  # readers that have gone do not ask for it

    def wake(self, task_id: str) -> None:
        if task_id:  # a look that began before may miss what this tells of; nobody may join it any more
            self._reading.pop(task_id, None)
        else:
            self._reading.clear()
        groups = self._waiting.values() if not task_id else [self._waiting.get(task_id, set())]
        for group in groups:
            for event in group:
                event.set()

    def subscribe(self, task_id: str) -> asyncio.Event:
        event = asyncio.Event()
        self._waiting.setdefault(task_id, set()).add(event)
        return event

    def unsubscribe(self, task_id: str, event: asyncio.Event) -> None:
        group = self._waiting.get(task_id, set())
        group.discard(event)
        if not group:
            self._waiting.pop(task_id, None)


async def tail(
    store: task_store.TaskStore, wakeups: Wakeups, task_id: str, *, after: int, idle_s: float = 15.0, repair_s: float = 15.0
) -> AsyncIterator[task_store.TaskEvent | None]:
    """Events behind `after`, in order, as they come; ends after the terminal one. None: still waiting.

    Where events are no longer kept an `events.gap` stands for them.
    """
    woken = wakeups.subscribe(task_id)
    quiet = 0.0
    try:
        while True:
            woken.clear()
            events = await wakeups.read(store, task_id, after)
            for event in events:
                if event.seq > after + 1:
                    yield gap(after + 1, event.seq - 1)
                yield event
                after = event.seq
                if event.name in runs.TERMINAL:
                    return
            if events:
                quiet = 0.0
                continue
            if await nothing_within(woken, repair_s):
                quiet += repair_s
            if quiet >= idle_s:
                quiet = 0.0
                yield None
    finally:
        wakeups.unsubscribe(task_id, woken)


def gap(first: int, last: int) -> task_store.TaskEvent:
    """What stands for events that are no longer kept; a reader goes on behind it."""
    return task_store.TaskEvent(seq=last, name=runs.EVENTS_GAP, data=json.dumps({"first": first, "last": last}))


async def nothing_within(woken: asyncio.Event, seconds: float) -> bool:
    """Whether nobody was woken for that long."""
    try:
        async with asyncio.timeout(seconds):
            await woken.wait()
    except TimeoutError:
        return True
    return False
