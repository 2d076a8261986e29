"""Packing is deterministic, and unpacking refuses everything that could leave the target or fill the machine."""

import errno
import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from nexus.core import errors
from nexus.wire import archive, tar_stream
from nexus.wire.archive import Limits


def tar_of(*members: tuple[tarfile.TarInfo, bytes], fmt: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=fmt) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(
    name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname, info.mode = len(content), kind, link, mode
    return info, content


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "agent"
    (root / "lib" / "deep").mkdir(parents=True)
    (root / "agent.py").write_text("def run(input): return input\n")
    (root / "lib" / "deep" / ("n" * 120 + ".py")).write_text("x = 1\n")
    (root / "lib" / "tö.txt").write_bytes(b"\0\xff")
    (root / "go.sh").write_text("#!/bin/sh\n")
    (root / "go.sh").chmod(0o700)
    return root


def test_the_same_files_give_the_same_bytes_whatever_their_times_and_place(folder: Path, tmp_path: Path) -> None:
    first = archive.pack(folder)
    copy = tmp_path / "a copy"
    archive.unpack(first.data, copy)
    os.utime(copy / "agent.py", (1, 1))
    second = archive.pack(copy)
    assert second.data == first.data
    assert second.digest == first.digest == archive.digest_of(first.data)


def test_the_digest_is_of_the_contents_not_of_the_container(folder: Path, tmp_path: Path) -> None:
    packed = archive.pack(folder)
    other = tar_of(*[member(path, archive.read_file(packed.data, path) or b"", mode=0o755 if path == "go.sh" else 0o600)
                     for path in reversed(archive.list_files(packed.data))], fmt=tarfile.GNU_FORMAT)  # fmt: skip
    stored = tmp_path / "p.tar.gz"
    stored.write_bytes(other)
    assert archive.digest_of(stored) == packed.digest
    (folder / "agent.py").write_text("changed")
    assert archive.pack(folder).digest != packed.digest


def test_the_executable_bit_counts_and_survives(folder: Path, tmp_path: Path) -> None:
    packed = archive.pack(folder)
    archive.unpack(packed.data, tmp_path / "out")
    assert (tmp_path / "out" / "go.sh").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "out" / "agent.py").stat().st_mode & 0o777 == 0o644
    (folder / "go.sh").chmod(0o644)
    assert archive.pack(folder).digest != packed.digest


def test_rubbish_and_secrets_stay_out_and_nexusignore_decides_last(folder: Path) -> None:
    for path in (
        ".git/config",
        "__pycache__/a.pyc",
        ".venv/bin/python",
        "lib/x.pyc",
        ".env",
        "dist/a.whl",
        "lib/dist/a",
        "data/big.bin",
        "data/keep.bin",
        "log.txt",
        ".env.example",
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("x")
    (folder / ".nexusignore").write_text("# comment\n\ndata/*.bin\n!data/keep.bin\n/log.txt\n")
    files = archive.list_files(archive.pack(folder).data)
    assert {"agent.py", "data/keep.bin", "lib/dist/a", ".env.example"} <= set(files)
    assert not {
        ".git/config",
        "__pycache__/a.pyc",
        ".venv/bin/python",
        "lib/x.pyc",
        ".env",
        "dist/a.whl",
        "data/big.bin",
        "log.txt",
    } & set(files)


def test_links_outside_are_left_out_with_a_warning_and_inside_become_files(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("top")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "folder").symlink_to("lib")
    (folder / "inside").symlink_to("agent.py")
    os.mkfifo(folder / "pipe")
    packed = archive.pack(folder)
    assert archive.read_file(packed.data, "inside") == (folder / "agent.py").read_bytes()
    assert b"top" not in gzip.decompress(packed.data)
    assert {warning.split(":")[0] for warning in packed.warnings} == {"out", "dangling", "folder", "pipe"}


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (member("/etc/passwd", b"x"), "package.unsafe"),
        (member("../up", b"x"), "package.unsafe"),
        (member("a/../../up", b"x"), "package.unsafe"),
        (member("a//b", b"x"), "package.unsafe"),
        (member("a/./b", b"x"), "package.unsafe"),
        (member("a\\..\\b", b"x"), "package.unsafe"),
        (member("a\nb", b"x"), "package.unsafe"),
        (member("a\x1b[31mb", b"x"), "package.unsafe"),
        (member("x" * 300, b"x"), "package.unsafe"),
        (member("d/" * 80 + "x", b"x"), "package.unsafe"),
        (member("link", kind=tarfile.SYMTYPE, link="/etc"), "package.unsafe"),
        (member("link", kind=tarfile.LNKTYPE, link="agent.py"), "package.unsafe"),
        (member("dev", kind=tarfile.CHRTYPE), "package.unsafe"),
        (member("dev", kind=tarfile.BLKTYPE), "package.unsafe"),
        (member("pipe", kind=tarfile.FIFOTYPE), "package.unsafe"),
        (member("ok.py", b"again"), "package.unsafe"),
        (member("./ok.py", b"again"), "package.unsafe"),
        (member("ok.py/below", b"again"), "package.unsafe"),
        (member("..", kind=tarfile.DIRTYPE), "package.unsafe"),
        (member("big", b"x" * 1001), "package.too_large"),
    ],
)  # fmt: skip
def test_unsafe_entries_are_refused_by_name_and_leave_nothing(
    tmp_path: Path, bad: tuple[tarfile.TarInfo, bytes], code: str
) -> None:
    data = tar_of(member("ok.py", b"fine"), bad)
    target = tmp_path / "out"
    with pytest.raises(errors.Invalid) as caught:
        archive.unpack(data, target, limits=Limits(file_bytes=1000))
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "data",
    [b"", b"not gzip", gzip.compress(b"x" * 512), gzip.compress(b"short"), tar_of(member("a", b"x" * 9000))[:-40]],
    ids=["empty", "text", "zeros", "short", "cut"],
)
def test_what_is_no_archive_is_invalid(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(errors.Invalid) as caught:
        archive.unpack(data, tmp_path / "out")
    assert caught.value.code == "package.invalid"
    assert list(tmp_path.iterdir()) == []


def test_bombs_stop_at_the_limit(tmp_path: Path) -> None:
    many = tar_of(*[member(f"f{number}") for number in range(50)])
    zeros = tar_of(member("z", b"\0" * 4_000_000))
    header = member("a")[0]
    header.pax_headers = {"comment": "y" * 200_000}
    for data, limits, code in [
        (many, Limits(files=49), "package.too_large"),
        (zeros, Limits(ratio_from=1_000_000), "package.too_large"),
        (zeros, Limits(total_bytes=3_999_999), "package.too_large"),
        (tar_of((header, b"")), Limits(), "package.invalid"),
    ]:
        with pytest.raises(errors.Invalid) as caught:
            archive.digest_of(data, limits=limits)
        assert caught.value.code == code


def test_a_sparse_entry_and_a_lying_pax_size_are_refused() -> None:
    sparse = member("s", b"x")[0]
    sparse.pax_headers = {"GNU.sparse.major": "1"}
    lying = member("l", b"x")[0]
    lying.pax_headers = {"size": "99999999"}
    for info, code in [(sparse, "package.unsafe"), (lying, "package.invalid")]:
        with pytest.raises(errors.Invalid) as caught:
            archive.list_files(tar_of((info, b"x")))
        assert caught.value.code == code


def test_unpacking_onto_something_is_a_conflict(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    data = archive.pack(folder).data
    archive.unpack(data, target)
    before = sorted(target.rglob("*"))
    with pytest.raises(errors.Conflict):
        archive.unpack(data, target)
    assert sorted(target.rglob("*")) == before


def test_a_full_disk_is_a_typed_error(folder: Path) -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("there is no /dev/full here")
    with pytest.raises(OSError) as caught:
        Path("/dev/full").write_bytes(b"x" * 100_000)
    assert caught.value.errno == errno.ENOSPC
    translated = archive._translate(caught.value, folder)
    assert translated.code == "disk.full"


def test_folders_that_cannot_be_packed(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "empty", tmp_path / "absent", folder / "agent.py"):
        with pytest.raises(errors.Invalid) as caught:
            archive.pack(where)
        assert caught.value.code == "package.invalid"
    with pytest.raises(errors.Invalid) as caught:
        archive.pack(folder, limits=Limits(total_bytes=10))
    assert caught.value.code == "package.too_large"


def test_absent_files_and_packages(folder: Path, tmp_path: Path) -> None:
    assert archive.read_file(archive.pack(folder).data, "nothing") is None
    with pytest.raises(errors.NotFound):
        archive.list_files(tmp_path / "no.tar.gz")


def test_git_archives_with_a_global_header_are_read() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "0123abc"}) as tar:
        info, content = member("./agent.py", b"x = 1")
        tar.addfile(info, io.BytesIO(content))
        tar.addfile(member("./lib/", kind=tarfile.DIRTYPE)[0])
    assert archive.list_files(buffer.getvalue()) == ["agent.py"]
    assert tar_stream.checked_path("./", Limits()) == "."
