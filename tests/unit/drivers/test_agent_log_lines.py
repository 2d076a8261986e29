"""Hostile output becomes bounded, honest, searchable lines."""

import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.drivers.process import log_lines, log_query, log_writer

ORIGIN = log_lines.Origin(tenant="t", agent="a", environment="production", version="1", instance_id="ins_1")


def parse(text: str | bytes, now: float = 1000.0) -> dict[str, object]:
    return dict(log_lines.parse_line(text.encode() if isinstance(text, str) else text, ORIGIN, now=now))


def test_a_workers_line_keeps_what_it_knows() -> None:
    said = {"at": 999.5, "level": "ERROR", "message": "no", "run_id": "run_1", "session_id": "s", "logger": "x", "trace_id": "t"}
    line = parse(json.dumps(said))
    assert line == {**said, "level": "error", "agent": "a", "instance_id": "ins_1", "version": "1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plain", "plain"),
        ('{"no": "message"}', '{"no": "message"}'),
        ('{"message": {"a": 1}}', '{"a": 1}'),
        ("{broken}", "{broken}"),
        ("{" * 3000 + "}" * 3000, "{" * 3000 + "}" * 3000),
        ("windows\r", "windows"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("tab\tstays", "tab\tstays"),
    ],
)
def test_other_lines_are_wrapped_and_made_harmless(text: str, message: str) -> None:
    line = parse(text)
    assert (line["message"], line["level"], line["at"]) == (message, "info", 1000.0)


@pytest.mark.parametrize("at", [1, 4e9, "soon", True, None, float("inf")])
def test_a_time_far_off_is_not_believed(at: object) -> None:
    assert parse(json.dumps({"message": "m", "at": at}), now=1e9)["at"] == 1e9


@given(st.binary(max_size=400))
def test_any_bytes_make_a_line_that_is_json_and_has_no_control_characters(raw: bytes) -> None:
    line = log_lines.parse_line(raw, ORIGIN, now=1.0)
    json.dumps(line).encode()
    assert not any(ord(letter) < 32 and letter not in "\t\n" for letter in line["message"])


@given(st.lists(st.binary(min_size=1, max_size=30)), st.integers(0, 2**32))
def test_lines_do_not_depend_on_how_they_were_cut(pieces: list[bytes], seed: int) -> None:
    whole = b"".join(pieces)
    draw = random.Random(seed)
    splitter, found, at = log_lines.Splitter(), [], 0
    while at < len(whole):
        size = draw.randint(1, 20)
        found += splitter.feed(whole[at : at + size])
        at += size
    found += splitter.drain()
    assert found == [line for line in whole.split(b"\n") if line.strip()]


def test_an_endless_line_is_cut_and_costs_no_memory() -> None:
    splitter = log_lines.Splitter(longest=100)
    found = [line for _ in range(1000) for line in splitter.feed(b"x" * 50)]
    assert len(found) == 1
    assert found[0].startswith(b"x" * 100)
    assert splitter.feed(b"rest\nnext\n") == [b"next"]


def test_what_is_lost_is_counted_and_the_next_line_is_whole() -> None:
    splitter = log_lines.Splitter()
    assert splitter.feed(b"begin") == []
    assert splitter.lose(b"ning\nlost\nhalf of") == 2
    assert splitter.feed(b" this\nwhole\n") == [b"whole"]
    assert splitter.lose(b"a\nb\n") == 2
    assert splitter.feed(b"fresh\n") == [b"fresh"]


def test_the_budget_allows_a_burst_then_a_rate() -> None:
    budget = log_lines.Budget(per_second=100, burst=1000)
    assert sum(100 for _ in range(50) if budget.take(100, 0.0)) == 1000
    assert not budget.take(100, 0.5)
    assert budget.take(100, 1.5)


def test_secrets_are_taken_out_in_every_form_they_take() -> None:
    redaction = log_lines.plan_redaction(['p"ss\nwörd-1', "s3cret-value", "s3cret-value-longer", "abc"])
    for said in (
        b"key s3cret-value-longer!",
        json.dumps({"message": 'p"ss\nwörd-1'}).encode(),
        json.dumps({"message": 'p"ss\nwörd-1'}, ensure_ascii=False).encode(),
        "a line of it: wörd-1".encode(),
    ):
        cleaned = redaction.apply(said)
        assert b"***" in cleaned
        assert not any(part in cleaned for part in (b"s3cret", b"longer", b"rd-1"))
    assert redaction.apply(b"abc stays") == b"abc stays"
    assert log_lines.plan_redaction([]).apply(b"all") == b"all"


def test_filters() -> None:
    line = {"at": 10.0, "level": "warning", "run_id": "r", "session_id": "s", "environment": "production", "instance_id": "i"}
    takes = [
        log_lines.Filter(), log_lines.Filter(level="info"), log_lines.Filter(level="warning"), log_lines.Filter(since=10.0),
        log_lines.Filter(run_id="r", session_id="s", environment="production", instance_id="i"),
    ]  # fmt: skip
    leaves = [
        log_lines.Filter(level="error"), log_lines.Filter(since=10.1), log_lines.Filter(run_id="other"),
        log_lines.Filter(environment="staging"),
    ]  # fmt: skip
    assert all(wanted.takes(line) for wanted in takes)
    assert not any(wanted.takes(line) for wanted in leaves)


def stored(folder: Path, name: str, times: list[float]) -> None:
    (folder / f"{name}.jsonl").write_text(
        "".join(json.dumps({"at": at, "level": "info", "message": f"{name}-{at:g}", "instance_id": name}) + "\n" for at in times)
    )


def test_the_newest_lines_over_all_instances_oldest_first(tmp_path: Path) -> None:
    stored(tmp_path, "a", [1, 3, 5])
    stored(tmp_path, "b", [2, 4, 6])
    (tmp_path / "broken.jsonl").write_text('not json\n[]\n{"at": 3.5, "level": "info", "message": "ok"}\n{"at": 9, "mess')

    def ask(limit: int, **wanted: object) -> list[object]:
        files = log_query.measure(tmp_path)
        return [line["message"] for line in log_query.newest(files, log_lines.Filter(**wanted), limit)]  # type: ignore[arg-type]

    assert ask(3) == ["b-4", "a-5", "b-6"]
    assert ask(100) == ["a-1", "b-2", "a-3", "ok", "b-4", "a-5", "b-6"]
    assert ask(100, instance_id="b") == ["b-2", "b-4", "b-6"]
    assert ask(100, since=4.5) == ["a-5", "b-6"]
    assert ask(0) == []
    assert log_query.newest(log_query.measure(tmp_path / "absent"), log_lines.Filter(), 5) == []


@given(st.lists(st.binary(max_size=200).map(lambda line: line.replace(b"\n", b""))))
def test_reading_backwards_is_reading_forwards_reversed(lines: list[bytes]) -> None:
    fd = os.memfd_create("lines")
    try:
        data = b"".join(line + b"\n" for line in lines)
        os.write(fd, data)
        assert list(log_query.backwards(fd, len(data))) == [line for line in reversed(lines) if line]
    finally:
        os.close(fd)


def test_files_rotate_and_old_ones_are_pruned(tmp_path: Path) -> None:
    file = log_writer.LogFile(tmp_path / "ins_1.jsonl", 100)
    for number in range(50):
        file.write(f"line {number}\n")
    file.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ins_1.1.jsonl", "ins_1.jsonl"]
    assert all(path.stat().st_size <= 110 for path in tmp_path.iterdir())
    assert (tmp_path / "ins_1.jsonl").read_text().endswith("line 49\n")
    for number in range(5):
        (tmp_path / f"old{number}.jsonl").write_text("x" * 100)
        os.utime(tmp_path / f"old{number}.jsonl", (number, number))
    log_writer.prune(tmp_path, keep=tmp_path / "ins_1.jsonl", most_bytes=400, most_files=100)
    left = {path.name for path in tmp_path.iterdir()}
    assert {"ins_1.jsonl", "ins_1.1.jsonl", "old4.jsonl"} <= left
    assert "old0.jsonl" not in left


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = tmp_path / "log.jsonl"
    target.symlink_to("/dev/full")
    file = log_writer.LogFile(target, 1000)  # refuses to follow the link, as it would fail on a full disk
    for _ in range(100):
        file.write("line\n")
    assert len(caplog.records) == 1
    target.unlink()
    file.write("again\n")
    file.close()
    assert target.read_text() == "again\n"
