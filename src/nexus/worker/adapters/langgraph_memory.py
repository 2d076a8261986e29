"""LangGraph's checkpoints in the platform's session state, for graphs that were compiled without a checkpointer of their own.

The graph's last checkpoint is kept (its state and what is pending), not its history. A state that cannot be written is remembered
for the run alone, and the log says so.
"""

import base64
import importlib
import logging
from typing import Any

from nexus.worker import runs

_LOG = logging.getLogger("nexus.worker")
_KEY = "langgraph"


class Memory:
    """One run's checkpointer: `begin` puts back what the session knew, `keep` takes what the run left."""

    def __init__(self, run: runs.Run) -> None:
        self._run = run
        saver = importlib.import_module("langgraph.checkpoint.memory").InMemorySaver
        serde = importlib.import_module("langgraph.checkpoint.serde.jsonplus").JsonPlusSerializer()
        self._serde = _Serde(serde)
        self.saver = saver(serde=self._serde)
        self._config = {"configurable": {"thread_id": run.session_id, "checkpoint_ns": ""}}

    def begin(self) -> None:
        kept = self._run.state.get(_KEY)
        if not isinstance(kept, dict):
            return
        try:
            found = self._serde.loads_typed((kept["type"], base64.b64decode(kept["data"])))
        except Exception as error:  # noqa: BLE001 - the graph's classes may have changed with a new version of the agent
            _LOG.warning("session %s: its graph begins anew, its state cannot be read: %s", self._run.session_id, error)
            return
        checkpoint = found["checkpoint"]
        config = self.saver.put(self._config, checkpoint, found["metadata"], checkpoint["channel_versions"])
        for task, channel, value in found["pending"]:
            self.saver.put_writes(config, [(channel, value)], task)

    def keep(self) -> None:
        found = self.saver.get_tuple({"configurable": {"thread_id": self._run.session_id}})
        if found is None:
            return
        pending = [tuple(write) for write in found.pending_writes or ()]
        kind, data = self._serde.dumps_typed(
            {"checkpoint": found.checkpoint, "metadata": dict(found.metadata), "pending": pending}
        )
        if self._serde.refused is not None:
            _LOG.warning("session %s: its graph's state is not kept: %s", self._run.session_id, self._serde.refused)
            return
        self._run.state[_KEY] = {"type": kind, "data": base64.b64encode(data).decode()}


class _Serde:
    """LangGraph's own serializer; what it refuses stays in memory, so that a graph runs whatever its state holds."""

    def __init__(self, serde: Any) -> None:
        self._serde = serde
        self._held: list[Any] = []
        self.refused: Exception | None = None

    def dumps_typed(self, value: Any) -> tuple[str, bytes]:
        try:
            kind, data = self._serde.dumps_typed(value)
        except Exception as error:  # noqa: BLE001 - whatever an author's class raises
            self.refused = error
            self._held.append(value)
            return "held", str(len(self._held) - 1).encode()
        return kind, data

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return self._held[int(data[1])] if data[0] == "held" else self._serde.loads_typed(data)
