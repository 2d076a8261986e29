"""Log files as the keeper sees them: whole lines, nothing a terminal would obey, and a bound on size."""

import os

import pytest

from nexus.apps import keeper_logs


def test_a_follower_yields_whole_lines_once(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("old\n")
    follower = keeper_logs.Follower(path)
    follower.skip()
    with path.open("a") as file:
        file.write("one\ntw")
        file.flush()
        assert list(follower.lines()) == ["one"]
        file.write("o\n")
        file.flush()
        assert list(follower.lines()) == ["two"]
    assert list(follower.lines()) == []


def test_a_file_that_was_turned_over_is_read_from_its_start(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("x" * 100 + "\n")
    follower = keeper_logs.Follower(path)
    follower.skip()
    path.write_text("new\n")
    assert list(follower.lines()) == ["new"]


def test_a_line_without_end_does_not_fill_memory(tmp_path):
    path = tmp_path / "a.log"
    path.write_bytes(b"x" * 2_000_000)
    follower = keeper_logs.Follower(path)
    shown = [line for _ in range(12) for line in follower.lines()]
    assert sum(map(len, shown)) >= 1_500_000
    assert max(map(len, shown)) <= 600_000


def test_a_missing_file_has_no_lines(tmp_path):
    assert list(keeper_logs.Follower(tmp_path / "none").lines()) == []
    assert keeper_logs.tail(tmp_path / "none", 5) == []


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain\ttext", "plain\ttext"),
        ("grün 日本", "grün 日本"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\rb", "a\\rb"),
        ("\x9b31m", "\\x9b31m"),
        ("bell\x07", "bell\\x07"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_text(raw, shown):
    assert keeper_logs.clean(raw) == shown


def test_a_large_file_is_turned_over_under_its_writer_and_only_two_are_kept(tmp_path):
    path = tmp_path / "a.log"
    writer = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for generation in range(3):
            os.write(writer, f"{generation}".encode() * 2000)
            keeper_logs.bound([path], largest=1000)
            assert path.stat().st_size == 0
        os.write(writer, b"after\n")
    finally:
        os.close(writer)
    assert path.read_text() == "after\n"
    assert (tmp_path / "a.log.1").read_text() == "2" * 2000
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.log", "a.log.1"]


def test_tail_gives_the_last_lines_that_say_something(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("\n".join(f"line {number}" for number in range(100)) + "\n\n  \n")
    assert keeper_logs.tail(path, 2) == ["line 98", "line 99"]
