"""LangGraph's checkpoints at the platform: a `BaseCheckpointSaver` that speaks with the door, for graphs that have none.

With a `langgraph_recall.Recall` it asks only for what it has not written or read itself.

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
from collections.abc import AsyncIterator, Callable, Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from nexus.core import errors
from nexus.kit import http_client
from nexus.wire import blobs, problem
from nexus.worker import door as doors
from nexus.worker import talks
from nexus.worker.adapters import langgraph_recall

_LOG = logging.getLogger("nexus.worker")
_PAGE = 50
_EMPTY = "empty"
_NOTHING = langgraph_recall.Blob(_EMPTY, b"")


@functools.cache
def saver_class() -> Any:
    """The class; LangGraph is in the process already when this is called."""
    return type("DoorSaver", (Saving, _base().BaseCheckpointSaver), {})


@functools.cache
def _base() -> Any:
    return importlib.import_module("langgraph.checkpoint.base")


class Saving:
    """One for a run. `run_id` is noted with each checkpoint, so that those of a failed run can be taken back. `recall` where
    nobody else writes the run's thread."""

    serde: Any

    def __init__(self, door: doors.Door, run_id: str | None = None, recall: langgraph_recall.Recall | None = None) -> None:
        super().__init__()
        self._door, self._run_id, self._recall = door, run_id, recall
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
            last = page[-1][1].id

    async def alist(self, config: Any, *, filter: Any = None, before: Any = None, limit: int | None = None) -> AsyncIterator[Any]:
        last, left = _id_of(before), limit
        while left is None or left > 0:
            page = await talks.say(self._door, self._page(config, last))
            for found in self._fitting(page, filter, left):
                left = None if left is None else left - 1
                yield found
            if len(page) < _PAGE:
                return
            last = page[-1][1].id

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        return talks.say_blocking(self._door, self._put(config, checkpoint, metadata, new_versions))

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        return await talks.say(self._door, self._put(config, checkpoint, metadata, new_versions))

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        talks.say_blocking(self._door, self._put_writes(config, writes, task_id, task_path))

    async def aput_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        await talks.say(self._door, self._put_writes(config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        talks.say_blocking(self._door, self._forget("DELETE", f"/door/threads/{quote(thread_id, safe='')}"))

    async def adelete_thread(self, thread_id: str) -> None:
        await talks.say(self._door, self._forget("DELETE", f"/door/threads/{quote(thread_id, safe='')}"))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        talks.say_blocking(self._door, self._forget("POST", "/door/threads:forget", {"run_ids": [*run_ids]}))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        await talks.say(self._door, self._forget("POST", "/door/threads:forget", {"run_ids": [*run_ids]}))

    def _get(self, config: Any) -> talks.Talk[Any]:
        configurable = config["configurable"]
        thread, ns, wanted = configurable["thread_id"], configurable.get("checkpoint_ns", ""), _id_of(config)
        recall = self._recall
        if recall is not None and (thread, ns) in recall.known:
            known = recall.known[thread, ns]
            if wanted is None or (known is not None and known.id == wanted):
                return None if known is None else self._tuple(known, thread)
        query = {"ns": ns, "limit": "1"} | ({"id": wanted} if wanted else {})
        items = yield from _items(thread, query)
        found = items[0].item if items else None
        if recall is not None and not wanted and (not items or items[0].whole):
            recall.keep(thread, ns, found)
        return None if found is None else self._tuple(found, thread)

    def _page(self, config: Any, before: str | None) -> talks.Talk[Sequence[Any]]:
        if config is None:
            raise ValueError("checkpoints are listed for one thread: name it in config")
        configurable = config["configurable"]
        asked = {"ns": configurable.get("checkpoint_ns"), "id": _id_of(config), "before": before, "limit": str(_PAGE)}
        query = {name: value for name, value in asked.items() if value is not None}
        items = yield from _items(configurable["thread_id"], query)
        return [(configurable["thread_id"], found.item) for found in items]

    def _fitting(self, page: Sequence[Any], wanted: Any, left: int | None) -> Iterator[Any]:
        for thread, item in page:
            if left is not None and left <= 0:
                return
            found = self._tuple(item, thread)
            if not wanted or all(found.metadata.get(name) == value for name, value in wanted.items()):
                left = None if left is None else left - 1
                yield found

    def _tuple(self, item: langgraph_recall.Item, thread: str) -> Any:
        load = self.serde.loads_typed
        values = {name: load(blob) for name, blob in item.values.items() if blob.kind != _EMPTY}
        return _base().CheckpointTuple(
            config=_config(thread, item.ns, item.id),
            checkpoint={**load(item.state), "channel_values": values},
            metadata=load(item.meta),
            parent_config=_config(thread, item.ns, item.parent) if item.parent else None,
            pending_writes=[(write.task, write.channel, load(write.blob)) for write in item.writes],
        )

    def _put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> talks.Talk[Any]:
        configurable = config["configurable"]
        thread, ns = configurable["thread_id"], configurable.get("checkpoint_ns", "")
        state = dict(checkpoint)
        values = state.pop("channel_values")
        told = _base().get_checkpoint_metadata(config, metadata)
        try:
            item = langgraph_recall.Item(
                ns=ns,
                id=checkpoint["id"],
                parent=configurable.get("checkpoint_id"),
                versions={name: str(version) for name, version in checkpoint["channel_versions"].items()},
                state=self._dump(state),
                meta=self._dump(told),
                values={name: self._dump(values[name]) if name in values else _NOTHING for name in new_versions},
            )
        except Exception as error:  # noqa: BLE001 - whatever an author's class raises
            self._refuse(thread, error)
        else:
            self.wrote = True  # or may have: an answer that is lost tells nothing
            yield from self._store(thread, item, self._run_id or told.get("run_id"), values)
        return _config(thread, ns, checkpoint["id"])

    def _store(self, thread: str, item: langgraph_recall.Item, run_id: Any, present: Container[str]) -> talks.Talk[None]:
        """What becomes of it is not known until the answer has come; then it is the newest, unless an older one was branched."""
        recall, packer = self._recall, blobs.Packer()
        sent = _render(item, run_id, packer)
        knows = recall is not None and recall.alone and (thread, item.ns) in recall.known
        last = recall.known.pop((thread, item.ns)) if knows and recall is not None else None
        if knows:
            sent["after"] = "" if last is None else last.id
        yield from _told("PUT", f"/door/threads/{quote(thread, safe='')}/checkpoints", packer.pack({"checkpoint": sent}))
        if recall is not None and knows and (last is None or item.id >= last.id):
            whole = langgraph_recall.follow(last, item, present)
            if whole is not None:
                recall.keep(thread, item.ns, whole)

    def _put_writes(self, config: Any, writes: Any, task_id: str, task_path: str) -> talks.Talk[None]:
        configurable = config["configurable"]
        thread, ns, checkpoint_id = (
            configurable["thread_id"],
            configurable.get("checkpoint_ns", ""),
            configurable["checkpoint_id"],
        )
        try:
            rows = [
                langgraph_recall.Write(
                    task_id, _base().WRITES_IDX_MAP.get(channel, number), task_path, channel, self._dump(value)
                )
                for number, (channel, value) in enumerate(writes)
            ]
        except Exception as error:  # noqa: BLE001 - whatever an author's class raises
            return self._refuse(thread, error)
        packer = blobs.Packer()
        sent = {
            "ns": ns,
            "id": checkpoint_id,
            "task": task_id,
            "task_path": task_path,
            "writes": [[row.idx, row.channel, *packer.add(*row.blob)] for row in rows],
        }
        recall = self._recall
        known = None if recall is None else recall.known.get((thread, ns))
        if recall is not None and known is not None and known.id == checkpoint_id:
            recall.forget(thread, ns)
        yield from _told("PUT", f"/door/threads/{quote(thread, safe='')}/checkpoints", packer.pack({"writes": sent}))
        if recall is not None and known is not None and known.id == checkpoint_id:
            recall.keep(thread, ns, langgraph_recall.add_writes(known, rows))

    def _forget(self, method: str, path: str, value: Any = None) -> talks.Talk[None]:
        if self._recall is not None:
            self._recall.known.clear()
        yield from _told(method, path, b"" if value is None else json.dumps(value).encode())

    def _refuse(self, thread: str, error: Exception) -> None:
        if self.refused is None:
            _LOG.warning("session %s: its graph's state is not kept: %s", thread, error)
        self.refused = error

    def _dump(self, value: Any) -> langgraph_recall.Blob:
        return langgraph_recall.Blob(*self.serde.dumps_typed(value))


def fetch_newest(thread: str) -> talks.Talk[langgraph_recall.Item | None]:
    """The newest checkpoint of a thread's own namespace. Raises `Unavailable` where it could not be remembered."""
    items = yield from _items(thread, {"ns": "", "limit": "1"})
    if items and not items[0].whole:
        raise errors.Unavailable("the host is older than this worker", code="door.refused")
    return items[0].item if items else None


class Found(NamedTuple):
    """A checkpoint of the platform; `whole`: with the places of its pending writes."""

    item: langgraph_recall.Item
    whole: bool


def _render(item: langgraph_recall.Item, run_id: Any, packer: blobs.Packer) -> dict[str, Any]:
    return {
        "ns": item.ns,
        "id": item.id,
        "parent": item.parent,
        "run_id": run_id,
        "versions": item.versions,
        "state": packer.add(*item.state),
        "meta": packer.add(*item.meta),
        "values": {name: packer.add(*blob) for name, blob in item.values.items()},
    }


def _parse(told: Any, take: Callable[[Any], tuple[str, bytes]]) -> Found:
    """A host that was not upgraded yet tells no `places`: the writes' indexes and paths."""
    places = told.get("places")

    def blob(entry: Any) -> langgraph_recall.Blob:
        return langgraph_recall.Blob(*take(entry))

    item = langgraph_recall.Item(
        ns=told["ns"],
        id=told["id"],
        parent=told.get("parent"),
        versions=told["versions"],
        state=blob(told["state"]),
        meta=blob(told["meta"]),
        values={name: blob(entry) for name, entry in told["values"].items()},
        writes=[
            langgraph_recall.Write(task, number, path, channel, blob(entry))
            for (task, channel, *entry), (number, path) in zip(
                told["writes"], places or [(number, "") for number in range(len(told["writes"]))], strict=True
            )
        ],
    )
    return Found(item, places is not None)


def _from_base64(entry: Any) -> tuple[str, bytes]:
    return entry[0], base64.b64decode(entry[1])


def _items(thread: str, query: Mapping[str, str]) -> talks.Talk[Sequence[Found]]:
    """Packed; an older host answers with JSON."""
    asked = urlencode({**query, "as": "blobs"})
    answer = yield "GET", f"/door/threads/{quote(thread, safe='')}/checkpoints?{asked}", b""
    _check(answer)
    if not blobs.is_packed(answer.body):
        return [_parse(told, _from_base64) for told in json.loads(answer.body).get("items", [])]
    unpacker = blobs.Unpacker(answer.body)
    return [_parse(told, unpacker.take) for told in unpacker.head["items"]]


def _told(method: str, path: str, body: bytes = b"") -> talks.Talk[None]:
    answer = yield method, path, body
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
