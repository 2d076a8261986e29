"""What a session's only worker may take for its thread without asking, and when it must ask."""

from dataclasses import replace

import pytest

from nexus.worker.adapters.langgraph_recall import Blob, Item, Recall, Write, add_writes, follow


def blob(text: str) -> Blob:
    return Blob("msgpack", text.encode())


def item(number: int, parent: int | None, *, versions: dict[str, str], **values: str) -> Item:
    return Item(
        ns="", id=f"c{number}", parent=None if parent is None else f"c{parent}", versions=versions, state=blob("s"),
        meta=blob("m"), values={name: blob(value) for name, value in values.items()},
    )  # fmt: skip


FIRST = item(1, None, versions={"a": "1", "b": "1"}, a="a1", b="b1")


@pytest.mark.parametrize(
    ("last", "new", "present", "values"),
    [
        (None, FIRST, {"a", "b"}, {"a": "a1", "b": "b1"}),
        (FIRST, item(2, 1, versions={"a": "2", "b": "1"}, a="a2"), {"a", "b"}, {"a": "a2", "b": "b1"}),
        (FIRST, item(2, 1, versions={"a": "1", "b": "1", "c": "9"}), {"a", "b"}, {"a": "a1", "b": "b1"}),
        (FIRST, item(3, 2, versions={"a": "2", "b": "1"}, a="a2"), {"a", "b"}, None),
        (FIRST, item(2, 1, versions={"a": "2", "b": "5"}, a="a2"), {"a", "b"}, None),
        (None, item(2, None, versions={"a": "2", "b": "1"}, a="a2"), {"a", "b"}, None),
        (None, item(2, 1, versions={"a": "2"}, a="a2"), {"a"}, None),
        (FIRST, item(2, None, versions={"a": "2"}, a="a2"), {"a"}, None),
    ],
    ids=["first", "one changed", "a channel without a value", "a branch", "a version not seen", "values not seen",
         "parent not seen", "another root"],
)  # fmt: skip
def test_a_checkpoint_follows_the_last_one_only_where_every_value_is_known(
    last: Item | None, new: Item, present: set[str], values: dict[str, str] | None
) -> None:
    found = follow(last, new, present)
    assert (None if found is None else {name: one.body.decode() for name, one in found.values.items()}) == values


def test_pending_writes_stand_as_first_written_but_for_those_that_replace() -> None:
    def write(idx: int, task: str, text: str) -> Write:
        return Write(task, idx, "", "out", blob(text))

    once = add_writes(FIRST, [write(0, "t2", "two"), write(0, "t1", "one"), write(-1, "t1", "error")])
    twice = add_writes(once, [write(0, "t1", "again"), write(-1, "t1", "error again")])
    assert [(each.task, each.idx, each.blob.body.decode()) for each in twice.writes] == [
        ("t1", -1, "error again"), ("t1", 0, "one"), ("t2", 0, "two"),
    ]  # fmt: skip


def test_nothing_is_recalled_beside_another_run_after_a_long_pause_or_beyond_the_bounds() -> None:
    now = [1000.0]
    recall = Recall(now=lambda: now[0])
    recall.prime("s", FIRST)
    recall.enter()
    assert recall.known == {("s", ""): FIRST}, "what was read before the first run is known to it"
    recall.prime("s", None)
    assert recall.known == {("s", ""): FIRST}, "a run knows better"
    recall.keep("s", "", FIRST)
    recall.keep("s", "large", replace(FIRST, values={"a": Blob("raw", bytes(2 * 1024 * 1024))}))
    assert recall.known == {("s", ""): FIRST}
    recall.enter()
    assert recall.known == {}
    recall.keep("s", "", FIRST)
    assert recall.known == {}, "what one of two runs writes, the other does not know"
    recall.leave()
    recall.keep("s", "", FIRST)
    assert recall.known == {}, "the one that is left began with the other"
    recall.leave()
    recall.enter()
    recall.keep("s", "", FIRST)
    recall.leave()
    now[0] += 59
    recall.enter()
    assert recall.known == {("s", ""): FIRST}
    recall.leave()
    now[0] += 61
    recall.enter()
    assert recall.known == {}
