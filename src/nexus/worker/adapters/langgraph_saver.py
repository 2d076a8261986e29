"""LangGraph's checkpoints at the platform: a `BaseCheckpointSaver` that speaks with the door, for graphs that have none.

Every checkpoint is there for the next run of the session, for time travel, and for the next attempt of a task. A state that
LangGraph cannot serialise is remembered for the run alone, and the log says so.
Source: https://docs.langchain.com/oss/python/langgraph/persistence (the interface of checkpointers).
"""

import base64
import functools
import importlib
import json
import logging
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from nexus.core import errors
from nexus.kit import http_client
from nexus.wire import problem
from nexus.worker import door as doors
from nexus.worker import talks

_LOG = logging.getLogger("nexus.worker")
_PAGE = 50
_EMPTY = "empty"


@functools.cache
def saver_class() -> Any:
    """The class; LangGraph is in the process already when this is called."""
    return type("DoorSaver", (Saving, _base().BaseCheckpointSaver), {})


@functools.cache
def _base() -> Any:
    return importlib.import_module("langgraph.checkpoint.base")


class Saving:
    """One for a run. `run_id` is noted with each checkpoint, so that those of a failed run can be taken back."""

    serde: Any

    def __init__(self, door: doors.Door, run_id: str | None = None) -> None:
        super().__init__()
        self._door, self._run_id = door, run_id
        self.refused: Exception | None = None
        self.wrote = False

    def get_next_version(self, current: Any, channel: Any = None) -> str:
        number = 0 if current is None else current if isinstance(current, int) else int(str(current).partition(".")[0])
        return f"{number + 1:032}.{random.random():016}"  # noqa: S311 - tells versions apart, no secret

    def get_tuple(self, config: Any) -> Any:
        return talks.say_blocking(self._door, self._get(config))

    async def aget_tuple(self, config: Any) -> Any:
        return await talks.say(self._door, self._get(config))

    def list(self, config: Any, *, filter: Any = None, before: Any = None, limit: int | None = None) -> Iterator[Any]:
        last, left = _id_of(before), limit
        while left is None or left > 0:
            page = talks.say_blocking(self._door, self._page(config, last))
            for found in self._fitting(page, filter, left):
                left = None if left is None else left - 1
                yield found
            if len(page) < _PAGE:
                return
            last = page[-1]["id"]

    async def alist(self, config: Any, *, filter: Any = None, before: Any = None, limit: int | None = None) -> AsyncIterator[Any]:
        last, left = _id_of(before), limit
        while left is None or left > 0:
            page = await talks.say(self._door, self._page(config, last))
            for found in self._fitting(page, filter, left):
                left = None if left is None else left - 1
                yield found
            if len(page) < _PAGE:
                return
            last = page[-1]["id"]

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        return talks.say_blocking(self._door, self._put(config, checkpoint, metadata, new_versions))

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        return await talks.say(self._door, self._put(config, checkpoint, metadata, new_versions))

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        talks.say_blocking(self._door, self._put_writes(config, writes, task_id, task_path))

    async def aput_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        await talks.say(self._door, self._put_writes(config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        talks.say_blocking(self._door, _told("DELETE", f"/door/threads/{quote(thread_id, safe='')}"))

    async def adelete_thread(self, thread_id: str) -> None:
        await talks.say(self._door, _told("DELETE", f"/door/threads/{quote(thread_id, safe='')}"))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        talks.say_blocking(self._door, _told("POST", "/door/threads:forget", {"run_ids": [*run_ids]}))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        await talks.say(self._door, _told("POST", "/door/threads:forget", {"run_ids": [*run_ids]}))

    def _get(self, config: Any) -> talks.Talk[Any]:
        configurable = config["configurable"]
        query = {"ns": configurable.get("checkpoint_ns", ""), "limit": "1"}
        if wanted := _id_of(config):
            query["id"] = wanted
        items = yield from _items(configurable["thread_id"], query)
        return self._tuple(items[0], configurable["thread_id"]) if items else None

    def _page(self, config: Any, before: str | None) -> talks.Talk[Sequence[Any]]:
        if config is None:
            raise ValueError("checkpoints are listed for one thread: name it in config")
        configurable = config["configurable"]
        asked = {"ns": configurable.get("checkpoint_ns"), "id": _id_of(config), "before": before, "limit": str(_PAGE)}
        query = {name: value for name, value in asked.items() if value is not None}
        items = yield from _items(configurable["thread_id"], query)
        return [{**item, "thread": configurable["thread_id"]} for item in items]

    def _fitting(self, page: Sequence[Any], wanted: Any, left: int | None) -> Iterator[Any]:
        for item in page:
            if left is not None and left <= 0:
                return
            found = self._tuple(item, item["thread"])
            if not wanted or all(found.metadata.get(name) == value for name, value in wanted.items()):
                left = None if left is None else left - 1
                yield found

    def _tuple(self, item: Any, thread: str) -> Any:
        checkpoint = self._load(item["state"])
        values = {name: self._load(blob) for name, blob in item["values"].items() if blob[0] != _EMPTY}
        parent = item.get("parent")
        return _base().CheckpointTuple(
            config=_config(thread, item["ns"], item["id"]),
            checkpoint={**checkpoint, "channel_values": values},
            metadata=self._load(item["meta"]),
            parent_config=_config(thread, item["ns"], parent) if parent else None,
            pending_writes=[(task, channel, self._load([kind, body])) for task, channel, kind, body in item["writes"]],
        )

    def _put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> talks.Talk[Any]:
        configurable = config["configurable"]
        thread, ns = configurable["thread_id"], configurable.get("checkpoint_ns", "")
        state = dict(checkpoint)
        values = state.pop("channel_values")
        told = _base().get_checkpoint_metadata(config, metadata)
        try:
            sent = {
                "ns": ns,
                "id": checkpoint["id"],
                "parent": configurable.get("checkpoint_id"),
                "run_id": self._run_id or told.get("run_id"),
                "versions": {name: str(version) for name, version in checkpoint["channel_versions"].items()},
                "state": self._dump(state),
                "meta": self._dump(told),
                "values": {name: self._dump(values[name]) if name in values else [_EMPTY, ""] for name in new_versions},
            }
        except Exception as error:  # noqa: BLE001 - whatever an author's class raises
            self._refuse(thread, error)
        else:
            yield from _told("PUT", f"/door/threads/{quote(thread, safe='')}/checkpoints", {"checkpoint": sent})
            self.wrote = True
        return _config(thread, ns, checkpoint["id"])

    def _put_writes(self, config: Any, writes: Any, task_id: str, task_path: str) -> talks.Talk[None]:
        configurable = config["configurable"]
        thread = configurable["thread_id"]
        try:
            rows = [
                [_base().WRITES_IDX_MAP.get(channel, number), channel, *self._dump(value)]
                for number, (channel, value) in enumerate(writes)
            ]
        except Exception as error:  # noqa: BLE001 - whatever an author's class raises
            return self._refuse(thread, error)
        sent = {
            "ns": configurable.get("checkpoint_ns", ""),
            "id": configurable["checkpoint_id"],
            "task": task_id,
            "task_path": task_path,
            "writes": rows,
        }
        yield from _told("PUT", f"/door/threads/{quote(thread, safe='')}/checkpoints", {"writes": sent})

    def _refuse(self, thread: str, error: Exception) -> None:
        if self.refused is None:
            _LOG.warning("session %s: its graph's state is not kept: %s", thread, error)
        self.refused = error

    def _dump(self, value: Any) -> Any:
        kind, body = self.serde.dumps_typed(value)
        return [kind, base64.b64encode(body).decode()]

    def _load(self, blob: Any) -> Any:
        return self.serde.loads_typed((blob[0], base64.b64decode(blob[1])))


def _items(thread: str, query: Mapping[str, str]) -> talks.Talk[Any]:
    answer = yield "GET", f"/door/threads/{quote(thread, safe='')}/checkpoints?{urlencode(query)}", b""
    _check(answer)
    return json.loads(answer.body).get("items", [])


def _told(method: str, path: str, value: Any = None) -> talks.Talk[None]:
    answer = yield method, path, b"" if value is None else json.dumps(value).encode()
    _check(answer)


def _check(answer: http_client.Answer) -> None:
    if answer.status < 300:
        return
    try:
        raise problem.parse(json.loads(answer.body))
    except (ValueError, AttributeError):
        raise errors.Unavailable(f"the platform's door answered {answer.status}", code="door.refused") from None


def _id_of(config: Any) -> str | None:
    found = None if config is None else config["configurable"].get("checkpoint_id")
    return None if not found else str(found)


def _config(thread: str, ns: str, checkpoint_id: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}}
