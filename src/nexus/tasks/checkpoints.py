"""LangGraph's checkpoints as workers put and ask for them through their door. A session's worker reaches its own thread only."""

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from nexus.core import deployments, errors, names
from nexus.kit import guard
from nexus.ports import checkpoint_store, task_store
from nexus.wire import blobs

_LOG = logging.getLogger(__name__)
MAX_BODY_BYTES = 32 * 1024 * 1024
MOST_KEPT = 1000
MOST_ASKED = 100
KEEP_S = 30 * 86400.0
_SWEEP_S = 3600.0
_AT_ONCE = 500
_LONGEST_NAME = 1000


class Checkpoints:
    """An async context manager; its loop forgets threads that nobody used for 30 days."""

    def __init__(self, *, store: checkpoint_store.CheckpointStore) -> None:
        self._store = store
        self._life = AsyncExitStack()

    async def __aenter__(self) -> Self:
        loops = await self._life.enter_async_context(guard.Loops())
        loops.start("checkpoints", self._loop)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._life.aclose()

    async def put(self, owner: deployments.InstanceOwner, thread: str, body: bytes) -> None:
        """`{"checkpoint": {…}}` or `{"writes": {…}}`, or both; see `parse_checkpoint`. JSON, or packed (`wire.blobs`)."""
        where = _thread(owner, thread)
        given, take = _read(body)
        if (told := given.get("checkpoint")) is not None:
            checkpoint, after = parse_checkpoint(told, take)
            await self._store.put(where, checkpoint, keep=MOST_KEPT, after=after)
        if (told := given.get("writes")) is not None:
            ns, checkpoint_id, writes = parse_writes(told, take)
            await self._store.put_writes(where, ns, checkpoint_id, writes)

    async def page(
        self,
        owner: deployments.InstanceOwner,
        thread: str,
        *,
        ns: str | None,
        checkpoint_id: str | None,
        before: str | None,
        limit: int,
        packed: bool = False,
    ) -> bytes:
        """`{"items": […]}`, newest first; JSON, or packed."""
        found = await self._store.page(
            _thread(owner, thread), ns=ns, checkpoint_id=checkpoint_id, before=before, limit=min(limit, MOST_ASKED)
        )
        if not packed:
            return json.dumps({"items": [render_checkpoint(each, _as_base64) for each in found]}).encode()
        packer = blobs.Packer()
        return packer.pack({"items": [render_checkpoint(each, packer.add) for each in found]})

    async def delete(self, owner: deployments.InstanceOwner, thread: str) -> None:
        await self._store.delete(_thread(owner, thread))

    async def delete_runs(self, owner: deployments.InstanceOwner, run_ids: Sequence[str]) -> None:
        lane = task_store.Lane(tenant=owner.tenant, agent=owner.agent, environment=owner.environment)
        await self._store.delete_runs(lane, list(run_ids)[:1000], thread=owner.session_id)

    async def _loop(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            try:
                while await self._store.sweep(keep_s=KEEP_S, limit=_AT_ONCE) == _AT_ONCE:
                    pass
            except errors.Unavailable as error:
                _LOG.warning("old checkpoints cannot be deleted: %s", error.cause or error)


Take = Callable[[Any], tuple[str, bytes]]
Give = Callable[[str, bytes], Any]


def parse_checkpoint(value: Any, take: Take) -> tuple[checkpoint_store.Checkpoint, str | None]:
    """`{"ns", "id", "parent", "run_id", "versions": {channel: version}, "state", "meta", "values": {channel: …}, "after"?}`; the
    three before the last are blobs: `[kind, base64]`, or packed. `after` comes second: see `CheckpointStore.put`."""
    try:
        versions = {str(name): str(version) for name, version in value["versions"].items()}
        after = None if value.get("after") is None else _name(value["after"])
        checkpoint = checkpoint_store.Checkpoint(
            ns=_name(value["ns"]),
            id=_name(value["id"]),
            parent=None if value.get("parent") is None else _name(value["parent"]),
            run_id=None if value.get("run_id") is None else _name(value["run_id"]),
            versions=versions,
            state=_blob(take(value["state"])),
            meta=_blob(take(value["meta"])),
            values={str(name): _blob(take(blob)) for name, blob in value["values"].items() if str(name) in versions},
        )
        return checkpoint, after
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise _invalid(error) from None


def parse_writes(value: Any, take: Take) -> tuple[str, str, list[checkpoint_store.Write]]:
    """`{"ns", "id", "task", "task_path", "writes": [[idx, channel, *blob], …]}`."""
    try:
        task, path = _name(value["task"]), _name(value["task_path"])
        writes = [
            checkpoint_store.Write(task=task, idx=int(idx), task_path=path, channel=_name(channel), value=_blob(take(blob)))
            for idx, channel, *blob in value["writes"]
        ]
        return _name(value["ns"]), _name(value["id"]), writes
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise _invalid(error) from None


def render_checkpoint(found: checkpoint_store.Checkpoint, give: Give) -> dict[str, Any]:
    def rendered(blob: checkpoint_store.Blob) -> Any:
        return give(blob.kind, blob.body)

    return {
        "ns": found.ns,
        "id": found.id,
        "parent": found.parent,
        "run_id": found.run_id,
        "versions": dict(found.versions),
        "state": rendered(found.state),
        "meta": rendered(found.meta),
        "values": {name: rendered(blob) for name, blob in found.values.items()},
        "writes": [[write.task, write.channel, *rendered(write.value)] for write in found.writes],
        "places": [[write.idx, write.task_path] for write in found.writes],
    }


def too_large() -> errors.Invalid:
    return errors.Invalid(
        f"a checkpoint may have {MAX_BODY_BYTES} bytes",
        code="checkpoint.too_large",
        next_step="keep large things elsewhere and their address in the graph's state",
    )


def _thread(owner: deployments.InstanceOwner, thread: str) -> checkpoint_store.Thread:
    if not names.is_session_id(thread):
        raise errors.Invalid("this is not a session id", code="session.invalid_id")
    if owner.session_id not in (None, thread):
        raise errors.Forbidden(
            "a session's worker reaches its own thread only", code="session.other", next_step="ask for its own"
        )
    lane = task_store.Lane(tenant=owner.tenant, agent=owner.agent, environment=owner.environment)
    return checkpoint_store.Thread(lane=lane, id=thread)


def _read(body: bytes) -> tuple[Mapping[str, Any], Take]:
    """The object, and how its blobs are taken."""
    try:
        if blobs.is_packed(body):
            unpacker = blobs.Unpacker(body)
            value, take = unpacker.head, unpacker.take
        else:
            value, take = json.loads(body), _from_base64
    except (ValueError, RecursionError) as error:
        raise _invalid(error) from None
    if not isinstance(value, dict):
        raise _invalid(TypeError("not an object"))
    return value, take


def _from_base64(entry: Any) -> tuple[str, bytes]:
    kind, body = entry
    return kind, base64.b64decode(body, validate=True)


def _as_base64(kind: str, body: bytes) -> list[str]:
    return [kind, base64.b64encode(body).decode()]


def _blob(taken: tuple[str, bytes]) -> checkpoint_store.Blob:
    return checkpoint_store.Blob(kind=_name(taken[0]), body=taken[1])


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_NAME or "\0" in value:
        raise ValueError("a name is text without NUL")
    return value


def _invalid(error: Exception) -> errors.Invalid:
    return errors.Invalid("this is not a checkpoint", code="checkpoint.invalid", cause=f"{type(error).__name__}: {error}"[:200])
