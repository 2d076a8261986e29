"""What is kept of a session's work directory, and what a hostile one is not let do."""

import gzip
import io
import os
import tarfile

import pytest

from nexus.core import errors
from nexus.drivers.process import session_files

MIB = 1024 * 1024


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "work"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "note.txt").write_text("hello")
    (folder / "a" / "b" / "run.sh").write_text("#!/bin/sh\n")
    (folder / "a" / "b" / "run.sh").chmod(0o755)
    return folder


def names_in(path):
    with tarfile.open(path) as archive:
        return sorted(archive.getnames())


def test_what_was_saved_comes_back(work, tmp_path):
    target, again = tmp_path / "kept" / "x.tar.gz", tmp_path / "again"
    told = session_files.save(work, target, most_bytes=MIB)
    assert (told.files, told.left_out) == (2, [])
    again.mkdir()
    assert session_files.restore(target, again, owner=os.getuid() if os.getuid() else None, most_bytes=MIB)
    assert (again / "note.txt").read_text() == "hello"
    assert os.access(again / "a" / "b" / "run.sh", os.X_OK)
    assert not session_files.restore(tmp_path / "nothing.tar.gz", tmp_path / "other", owner=None, most_bytes=MIB)


def test_links_pipes_and_odd_names_are_left_out(work, tmp_path):
    outside = tmp_path / "secret"
    outside.mkdir()
    (outside / "key").write_text("sesame")
    (work / "link").symlink_to(outside / "key")
    (work / "folder").symlink_to(outside)
    (work / "up").symlink_to("../..")
    os.mkfifo(work / "pipe")
    (work / "line\nbreak").write_text("x")
    open(os.fsencode(work) + b"/\xff\xfe", "w").close()
    (work / "closed").write_text("x")
    target = tmp_path / "x.tar.gz"
    told = session_files.save(work, target, most_bytes=MIB)
    assert names_in(target) == ["a/b/run.sh", "closed", "note.txt"]
    assert len(told.left_out) == 6


def test_a_work_directory_beyond_its_size_leaves_the_last_one(work, tmp_path):
    target = tmp_path / "x.tar.gz"
    session_files.save(work, target, most_bytes=MIB)
    before = target.read_bytes()
    with open(work / "sparse", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(errors.Exhausted) as caught:
        session_files.save(work, target, most_bytes=MIB)
    assert caught.value.code == "session.work_too_large"
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_archive_that_is_not_ours_puts_nothing_anywhere(tmp_path):
    raw = io.BytesIO()
    with gzip.GzipFile(fileobj=raw, mode="wb") as packed, tarfile.open(fileobj=packed, mode="w|") as archive:
        entry = tarfile.TarInfo("../escaped")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    target = tmp_path / "x.tar.gz"
    target.write_bytes(raw.getvalue())
    with pytest.raises(errors.Invalid):
        session_files.restore(target, tmp_path / "work", owner=None, most_bytes=MIB)
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "work").exists()


def test_what_nobody_came_back_for_is_forgotten(work, tmp_path):
    kept = session_files.KeptFiles(tmp_path / "sessions")
    old, new = (kept.place("t", "a", "production", name) for name in ("../old", "new"))
    for target in (old, new):
        session_files.save(work, target, most_bytes=MIB)
    assert old.parent == new.parent == tmp_path / "sessions" / "t" / "a" / "production"
    os.utime(old, (1, 1))
    assert kept.prune(default_s=3600) == 1
    assert (old.exists(), new.exists()) == (False, True)
    kept.forget_agent("t", "a")
    assert not new.exists()
