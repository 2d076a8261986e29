"""Which environment a version gets, when two may share one, and what uv's words mean."""

from pathlib import Path

import pytest

from nexus.core import errors
from nexus.drivers.process import environment_plans as plans


def plan(folder: Path, *, package: str = "a" * 64, python: str | None = None) -> plans.EnvironmentPlan:
    return plans.plan_environment(folder, package_digest=package, host_python="CPython-3.11", python=python)


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".").replace("_lock", ".lock")).write_text(text)
    return folder


PROJECT = '[project]\nname = "a"\nversion = "1"\ndependencies = ["click"]\n'


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({}, "empty"),
        ({"agent__py": "x = 1"}, "empty"),
        ({"requirements__txt": "# nothing\n\n"}, "empty"),
        ({"requirements__txt": "click"}, "requirements"),
        ({"requirements__txt": "click", "pyproject__toml": PROJECT}, "requirements"),
        ({"pyproject__toml": PROJECT}, "project"),
        ({"pyproject__toml": '[project]\nname = "a"\nversion = "1"\n'}, "empty"),
        ({"pyproject__toml": '[project]\nname = "a"\ndynamic = ["dependencies"]\n'}, "project"),
        ({"pyproject__toml": "[tool.ruff]\n"}, "empty"),
        ({"pyproject__toml": PROJECT, "uv_lock": "version = 1", "requirements__txt": "click"}, "locked"),
        ({"uv_lock": "version = 1"}, "empty"),
    ],
)
def test_the_files_beside_the_code_decide(tmp_path: Path, files: dict[str, str], kind: str) -> None:
    assert plan(write(tmp_path, **files)).kind == kind


def test_equal_requirements_share_and_others_do_not(tmp_path: Path) -> None:
    one = write(tmp_path / "one", requirements__txt="click==8\n", agent__py="1")
    two = write(tmp_path / "two", requirements__txt="click==8\n", agent__py="2")
    three = write(tmp_path / "three", requirements__txt="click==7\n")
    assert plan(one).digest == plan(two, package="b" * 64).digest
    assert len({plan(one).digest, plan(three).digest, plan(one, python="3.12").digest}) == 3


def test_included_files_count_and_files_outside_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("secret")
    folder = write(tmp_path / "a", requirements__txt="-r more.txt\n-c ../outside.txt\n-r requirements.txt\n", more__txt="click\n")
    before = plan(folder).digest
    (tmp_path / "outside.txt").write_text("changed")
    assert plan(folder).digest == before
    (folder / "more.txt").write_text("click<9\n")
    assert plan(folder).digest != before


@pytest.mark.parametrize("line", ["-e .", "--editable ./lib", "./lib", "lib @ file:./lib", "file:lib", "../lib"])
def test_code_of_the_package_itself_ties_the_environment_to_the_package(tmp_path: Path, line: str) -> None:
    folder = write(tmp_path, requirements__txt=f"click\n{line}\n")
    assert plan(folder, package="a" * 64).digest != plan(folder, package="b" * 64).digest


def test_a_lock_with_members_is_tied_and_the_projects_own_entry_is_not(tmp_path: Path) -> None:
    own = write(tmp_path / "own", pyproject__toml=PROJECT, uv_lock='source = { virtual = "." }')
    member = write(tmp_path / "member", pyproject__toml=PROJECT, uv_lock='source = { editable = "lib" }')
    assert plan(own).digest == plan(own, package="b" * 64).digest
    assert plan(member).digest != plan(member, package="b" * 64).digest


def test_a_broken_pyproject_is_the_authors_problem(tmp_path: Path) -> None:
    with pytest.raises(errors.AgentFailed) as caught:
        plan(write(tmp_path, pyproject__toml="[project\n"))
    assert (caught.value.code, caught.value.phase) == ("build.failed", "build")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("error: No solution found when resolving dependencies\n  cause: Because x was not found in the package registry",
         "build.unresolvable"),
        ("error: Request failed after 3 retries\n  cause: client error (Connect)\n  cause: Connection refused (os error 111)",
         "build.offline"),
        ("error: Failed to fetch: `https://index.test`\n  cause: dns error", "build.offline"),
        ("error: No interpreter found for Python 3.19 in virtual environments, managed installations, or search path",
         "build.python_missing"),
        ("error: failed to write\n  cause: No space left on device (os error 28)", "disk.full"),
        ("error: Failed to build `x`\n  cause: The build backend returned an error", "build.failed"),
        ("", "build.failed"),
    ],
)  # fmt: skip
def test_uvs_words_become_codes(text: str, code: str) -> None:
    error = plans.explain_failure(text.splitlines(), code=1)
    assert (error.code, error.phase) == (code, "build")
    assert error.cause
    assert error.next_step


def test_progress_is_told_and_credentials_are_not() -> None:
    assert plans.parse_progress("\x1b[2mResolved 3 packages in 180ms\x1b[0m") == ("resolving", "Resolved 3 packages in 180ms")
    assert plans.parse_progress("Downloading numpy (15.2MiB)") == ("downloading", "Downloading numpy (15.2MiB)")
    assert plans.parse_progress(" + click==8.1") is None
    assert plans.tidy("at https://user:pa55@index.example/simple") == "at https://***@index.example/simple"
    assert len(plans.key_message(["error: " + "x" * 5000])) <= 600
