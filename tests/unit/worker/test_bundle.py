"""The host's own worker copy: whole, idempotent, and safe against two builders at once."""

import os
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import pytest

from nexus.core import errors
from nexus.worker import bundle


def test_a_copy_has_what_the_box_needs_and_nothing_of_the_host(tmp_path: Path) -> None:
    copy = bundle.build_worker_copy(tmp_path)
    packages = {path.name for path in (copy / "lib" / "nexus").iterdir() if not path.name.startswith("_")}
    assert packages == {*bundle.LIGHT, "drivers"}
    assert {path.stem for path in (copy / "lib" / "nexus" / "drivers" / "process").glob("*.py")} == set(bundle.BOX)
    assert (copy / "site" / "uvicorn").is_dir()
    assert not (copy / "site" / "pydantic").exists()
    assert not (copy / "lib" / "nexus" / "hosting").exists()
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert bundle.build_worker_copy(tmp_path) == copy
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    assert all(os.stat(path).st_mode & 0o044 == 0o044 for path in copy.rglob("*"))
    assert [path.name for path in tmp_path.iterdir()] == [copy.name]


def test_four_builders_at_once_make_one_copy(tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"from pathlib import Path; from nexus.worker import bundle; "
               f"print(bundle.build_worker_copy(Path({str(tmp_path)!r})))"]  # fmt: skip
    with futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: subprocess.run(command, capture_output=True, text=True, check=True).stdout, range(4)))
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [Path(found[0].strip()).name]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "REQUIRED", ("uvicorn", "no-such-package"))
    with pytest.raises(errors.Unavailable, match="no-such-package"):
        bundle.build_worker_copy(tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_workers_import_brings_no_third_party_package_but_uvicorn(tmp_path: Path) -> None:
    script = (
        "import sys, nexus.worker.main\n"
        "names = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(*sorted(name for name in names if not name.startswith('_')))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert set(shown) <= {"nexus", "uvicorn", "click", "typing_extensions", "h11", "httptools", "sitecustomize", "usercustomize"}
