"""Work directories as archives: everything of the session's comes back, and nothing lands elsewhere."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from nexus.worker import work_folder


def test_files_folders_and_links_come_back(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "a" / "empty").mkdir(parents=True)
    (one / "a" / "text").write_text("kept")
    (one / "a" / "run.sh").write_text("#!/bin/sh")
    (one / "a" / "run.sh").chmod(0o700)
    (one / "link").symlink_to("a/text")
    (one / "away").symlink_to("/etc/hostname")
    os.mkfifo(one / "fifo")
    file = io.BytesIO()
    assert work_folder.pack(str(one), file, most=10**6) == len(file.getvalue())
    file.seek(0)
    two.mkdir()
    work_folder.unpack(file, str(two))
    assert sorted(path.relative_to(two).as_posix() for path in two.rglob("*")) == [
        "a", "a/empty", "a/run.sh", "a/text", "away", "link",
    ]  # fmt: skip
    assert (two / "link").read_text() == "kept"
    assert os.readlink(two / "away") == "/etc/hostname"
    assert (two / "a" / "run.sh").stat().st_mode & 0o777 == 0o700


def test_too_much_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(200_000))
    file = io.BytesIO()
    with pytest.raises(work_folder.TooLarge):
        work_folder.pack(str(tmp_path), file, most=100_000)
    assert len(file.getvalue()) <= 100_000


@pytest.mark.parametrize("name", ["/tmp/outside", "../outside", "a/../../outside", "."])
def test_what_points_elsewhere_is_passed_over(tmp_path: Path, name: str) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for given in (name, "inside"):
            member = tarfile.TarInfo(given)
            member.size, member.mode = 1, 0o4777
            archive.addfile(member, io.BytesIO(b"x"))
        device = tarfile.TarInfo("device")
        device.type = tarfile.CHRTYPE
        archive.addfile(device)
    file.seek(0)
    folder = tmp_path / "into" / "here"
    folder.mkdir(parents=True)
    work_folder.unpack(file, str(folder))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["inside"]
    assert (folder / "inside").stat().st_mode & 0o7000 == 0


def test_an_archive_that_is_none_harms_nobody(tmp_path: Path) -> None:
    with pytest.raises(tarfile.TarError):
        work_folder.unpack(io.BytesIO(b"\0\1garbage" * 1000), str(tmp_path))
