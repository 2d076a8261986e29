"""Threads of graphs in a real database: what is written together is read together, who writes from an old view is told so."""

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from nexus.core import deployments, errors
from nexus.ports import checkpoint_store as port
from nexus.ports import task_store
from nexus.stores.postgres import checkpoint_store, engine
from nexus.tasks import checkpoints
from nexus.wire import blobs

LANE = task_store.Lane(tenant="default", agent="graph", environment="production")
HERE = port.Thread(lane=LANE, id="ses-1")
THERE = port.Thread(lane=LANE, id="ses-2")


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[checkpoint_store.PostgresCheckpointStore]:
    async with engine.open_engine(postgres_url, pool_size=2) as database:
        yield checkpoint_store.PostgresCheckpointStore(database, look_every=4)


def blob(text: str) -> port.Blob:
    return port.Blob(kind="msgpack", body=b"\x00\xff" + text.encode())


def checkpoint(number: int, *, ns: str = "", run: str | None = None, **values: str) -> port.Checkpoint:
    """`number` is its place in time; the values are new with it, `kept` has been the same since the first one."""
    versions = {"kept": "1", **{name: str(number) for name in values}}
    return port.Checkpoint(
        ns=ns, id=f"c{number:05}", parent=f"c{number - 1:05}" if number > 1 else None, run_id=run, versions=versions,
        state=blob(f"state {number}"), meta=blob("meta"),
        values={name: blob(value) for name, value in values.items()} | ({"kept": blob("kept")} if number == 1 else {}),
    )  # fmt: skip


def write(idx: int, task: str, text: str, *, path: str = "") -> port.Write:
    return port.Write(task=task, idx=idx, task_path=path, channel="out", value=blob(text))


async def newest(store: port.CheckpointStore, thread: port.Thread = HERE, ns: str = "") -> port.Checkpoint | None:
    found = await store.page(thread, ns=ns, checkpoint_id=None, before=None, limit=1)
    return found[0] if found else None


async def test_a_checkpoint_comes_back_with_its_values_and_writes_in_order(store: port.CheckpointStore) -> None:
    assert await newest(store) is None
    await store.put(HERE, checkpoint(1, a="one", b=""), keep=9)
    await store.put(HERE, checkpoint(2, a="two"), keep=9)
    await store.put(HERE, checkpoint(2, a="two"), keep=9)
    await store.put(HERE, checkpoint(7, ns="sub:1", a="elsewhere"), keep=9)
    await store.put_writes(HERE, "", "c00002", [write(0, "t2", "b"), write(-1, "t2", "error"), write(0, "t1", "a", path="~x")])
    await store.put_writes(HERE, "", "c00002", [write(0, "t2", "late"), write(-1, "t2", "error again")])
    found = await newest(store)
    assert found is not None
    assert (found.id, found.parent, found.state, dict(found.versions)) == (
        "c00002", "c00001", blob("state 2"), {"kept": "1", "a": "2"},
    )  # fmt: skip
    assert dict(found.values) == {"kept": blob("kept"), "a": blob("two")}
    assert [(each.task, each.idx, each.value) for each in found.writes] == [
        ("t2", -1, blob("error again")), ("t2", 0, blob("b")), ("t1", 0, blob("a")),
    ]  # fmt: skip
    everywhere = await store.page(HERE, ns=None, checkpoint_id=None, before=None, limit=9)
    assert [(each.ns, each.id) for each in everywhere] == [("sub:1", "c00007"), ("", "c00002"), ("", "c00001")]
    (first,) = await store.page(HERE, ns="", checkpoint_id=None, before="c00002", limit=9)
    assert (first.id, first.values["b"], first.writes) == ("c00001", blob(""), [])
    assert [each.id for each in await store.page(HERE, ns="", checkpoint_id="c00001", before=None, limit=9)] == ["c00001"]
    assert await newest(store, THERE) is None


async def test_who_writes_after_a_checkpoint_that_is_not_the_newest_is_refused(store: port.CheckpointStore) -> None:
    await store.put(HERE, checkpoint(1, a="one"), keep=9, after="")
    with pytest.raises(errors.Conflict) as refused:
        await store.put(HERE, checkpoint(2, a="stale"), keep=9, after="")
    assert refused.value.code == "checkpoint.moved"
    await store.put(HERE, checkpoint(3, a="three"), keep=9, after="c00001")
    await store.put(HERE, checkpoint(3, a="three"), keep=9, after="c00001")
    with pytest.raises(errors.Conflict):
        await store.put(HERE, checkpoint(4, a="stale"), keep=9, after="c00001")
    await store.put(HERE, checkpoint(4, ns="sub", a="first here"), keep=9, after="")
    found = await newest(store)
    assert found is not None
    assert (found.id, found.values["a"]) == ("c00003", blob("three"))


async def test_the_oldest_go_with_what_only_they_had_and_shared_values_stay(store: port.CheckpointStore) -> None:
    for number in range(1, 30):
        await store.put(HERE, checkpoint(number, a=f"value {number}"), keep=5)
    kept = await store.page(HERE, ns="", checkpoint_id=None, before=None, limit=50)
    assert 5 <= len(kept) <= 5 + 4
    assert all(each.values["kept"] == blob("kept") for each in kept)
    assert [each.values["a"] for each in kept] == [blob(f"value {number}") for number in range(29, 29 - len(kept), -1)]


async def test_what_a_run_left_a_thread_and_an_agent_can_be_deleted(store: port.CheckpointStore) -> None:
    other = replace(HERE, lane=replace(LANE, environment="staging"))
    for thread in (HERE, THERE, other):
        await store.put(thread, checkpoint(1, a="one", run="r1"), keep=9)
        await store.put(thread, checkpoint(2, a="two", run="r2"), keep=9)
        await store.put_writes(thread, "", "c00002", [write(0, "t", "x")])
    await store.delete_runs(LANE, ["r2"], thread="ses-1")
    assert [(await newest(store, one)).id for one in (HERE, THERE)] == ["c00001", "c00002"]  # type: ignore[union-attr]
    await store.delete(HERE)
    assert await newest(store, HERE) is None
    await store.delete_agent("default", "graph", environment="production")
    assert await newest(store, THERE) is None
    assert await newest(store, other) is not None
    await store.delete_agent("default", "graph", environment=None)
    assert await newest(store, other) is None
    assert await store.sweep(keep_s=0, limit=9) == 0


OWNER = deployments.InstanceOwner(
    instance_id="ins_1", tenant="default", agent="graph", environment="production", deployment_id="dep_1", version="1",
    session_id="ses-1",
)  # fmt: skip


async def test_workers_of_before_speak_json_and_read_what_new_ones_packed(store: port.CheckpointStore) -> None:
    room = checkpoints.Checkpoints(store=store)
    text = base64.b64encode(b"\x00old").decode()
    old = {"ns": "", "id": "c1", "parent": None, "run_id": "r", "versions": {"a": "1"}, "state": ["m", text], "meta": ["m", text]}
    await room.put(OWNER, "ses-1", json.dumps({"checkpoint": {**old, "values": {"a": ["m", text]}}}).encode())
    packer = blobs.Packer()
    new = {**old, "id": "c2", "versions": {"a": "2"}, "state": packer.add("m", b"new"), "meta": packer.add("m", b"")}
    await room.put(OWNER, "ses-1", packer.pack({"checkpoint": {**new, "values": {"a": packer.add("m", b"\xff")}, "after": "c1"}}))
    asked: dict[str, Any] = {"ns": "", "checkpoint_id": None, "before": None, "limit": 9}
    told = json.loads(await room.page(OWNER, "ses-1", **asked))["items"]
    assert [base64.b64decode(each["values"]["a"][1]) for each in told] == [b"\xff", b"\x00old"]
    unpacker = blobs.Unpacker(await room.page(OWNER, "ses-1", **asked, packed=True))
    assert [unpacker.take(each["values"]["a"]) for each in unpacker.head["items"]] == [("m", b"\xff"), ("m", b"\x00old")]
