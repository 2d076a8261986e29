"""Where a graph's threads are kept when it was compiled without a checkpointer: at the platform's door, or, where there is none
(`nexus ai agent dev`), in this process. What a failed run left in its thread is taken back.
"""

import importlib
import logging
from typing import Any

from nexus.core import errors
from nexus.worker import door as doors
from nexus.worker import runs, talks
from nexus.worker.adapters import langgraph_recall, langgraph_saver

_LOG = logging.getLogger("nexus.worker")


class Threads:
    """The threads of one graph, for all its runs. `held`: those of this process, where there is no platform."""

    def __init__(self) -> None:
        self._held = in_process()
        self._recall = langgraph_recall.Recall()

    async def foresee(self, door: doors.Door, session_id: str) -> None:
        """Read the thread of the only session of this process before its first run begins."""
        if door.session_id == session_id:
            found = await talks.say(door, langgraph_saver.fetch_newest(session_id))
            self._recall.prime(session_id, found)

    def open(self, run: runs.Run) -> "Memory":
        """The checkpointer of one run; to be closed."""
        if run.door is None:
            return Memory(run, self._held, None)
        recall = self._recall if run.door.session_id == run.session_id else None
        if recall is not None:
            recall.enter()
        return Memory(run, langgraph_saver.saver_class()(run.door, run.run_id, recall), recall)


class Memory:
    """The checkpointer of one run, `saver`. `recall`: what its worker knows, being the only one of the session."""

    def __init__(self, run: runs.Run, saver: Any, recall: langgraph_recall.Recall | None) -> None:
        self._run, self.saver, self._recall = run, saver, recall

    def close(self) -> None:
        if self._recall is not None:
            self._recall.leave()

    async def keep(self) -> None:
        """The run has ended well: its thread stays, unless a part of it could not be written."""
        if getattr(self.saver, "refused", None) is not None:
            await self.take_back()

    async def take_back(self) -> None:
        """The thread as it was before this run; of no consequence where nothing was written."""
        if self._run.door is None or not self.saver.wrote:
            return
        try:
            await self.saver.adelete_for_runs([self._run.run_id])
        except errors.NexusError as error:
            _LOG.warning("session %s keeps what a failed run left: %s", self._run.session_id, error.cause or error.message)


def in_process() -> Any:
    """A saver that lives as long as this process."""
    saver = importlib.import_module("langgraph.checkpoint.memory").InMemorySaver
    serde = importlib.import_module("langgraph.checkpoint.serde.jsonplus").JsonPlusSerializer()
    return saver(serde=_Serde(serde))


class _Serde:
    """LangGraph's own serializer; what it refuses stays in memory, so that a graph runs whatever its state holds."""

    def __init__(self, serde: Any) -> None:
        self._serde = serde
        self._held: list[Any] = []

    def dumps_typed(self, value: Any) -> tuple[str, bytes]:
        try:
            kind, data = self._serde.dumps_typed(value)
        except Exception as error:  # noqa: BLE001 - whatever an author's class raises
            _LOG.debug("kept in memory, as it cannot be written: %s", error)
            self._held.append(value)
            return "held", str(len(self._held) - 1).encode()
        return kind, data

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return self._held[int(data[1])] if data[0] == "held" else self._serde.loads_typed(data)
