"""Environments built by the real uv, from wheels made here so that no index is needed."""

import asyncio
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from nexus.core import errors
from nexus.drivers.process import box_launcher, cgroups, environment_plans, environments

Steps = list[tuple[str, str]]


def wheel(folder: Path, name: str, version: str, requires: str = "") -> None:
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-say = {name}:VERSION.upper\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            file.writestr(path, text)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    wheel(tmp_path / "wheels", "uvicorn", "0.1")  # an agent may want other versions of our own dependencies
    wheel(tmp_path / "wheels", "alpha", "1.0", "beta>=2")
    wheel(tmp_path / "wheels", "beta", "2.0")
    return tmp_path / "wheels"


@pytest.fixture
def built(tmp_path: Path, wheels: Path, request: pytest.FixtureRequest) -> environments.Environments:
    (tmp_path / "index").mkdir()
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "UV_CACHE_DIR": str(tmp_path / "cache"),
        "UV_FIND_LINKS": str(wheels),
        "UV_DEFAULT_INDEX": (tmp_path / "index").as_uri(),
        "UV_PYTHON_DOWNLOADS": "never",
    }
    started = box_launcher.BoxLauncher(cgroups.Layout()) if getattr(request, "param", "boxed") == "boxed" else None
    made = environments.Environments(tmp_path / "environments", environ=environ, started=started)
    made.sweep()
    return made


def plan(folder: Path, requirements: str | None, *, python: str | None = None) -> environment_plans.EnvironmentPlan:
    folder.mkdir(exist_ok=True)
    if requirements is not None:
        (folder / "requirements.txt").write_text(requirements)
    return environment_plans.plan_environment(
        folder, package_digest="0" * 64, host_python=environments.host_python(), python=python
    )


def ask(environment: Path, code: str) -> str:
    return subprocess.run([environment / "bin" / "python", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


async def test_nothing_to_install_needs_no_index_and_a_second_ask_no_build(
    built: environments.Environments, tmp_path: Path
) -> None:
    steps: Steps = []
    empty = plan(tmp_path / "agent", None)
    place = await built.ensure(empty, lambda *step: steps.append(step))
    assert ask(place, "import sys; print(sys.prefix)") == str(place)
    before = place.stat().st_ino
    steps.clear()
    assert await built.ensure(empty, lambda *step: steps.append(step)) == place
    assert (place.stat().st_ino, steps) == (before, [])


@pytest.mark.parametrize("built", ["boxed", "plain"], indirect=True)
async def test_requirements_are_installed_with_progress_and_scripts_work(
    built: environments.Environments, tmp_path: Path
) -> None:
    steps: Steps = []
    place = await built.ensure(plan(tmp_path / "agent", "alpha\nuvicorn==0.1\n"), lambda *step: steps.append(step))
    assert ask(place, "import alpha, beta, uvicorn; print(alpha.VERSION, beta.VERSION, uvicorn.VERSION)") == "1.0 2.0 0.1"
    assert {"resolving", "installing"} <= {step for step, _ in steps}
    said = subprocess.run([place / "bin" / "alpha-say"], check=False, capture_output=True, text=True)
    assert said.stderr.strip() == "1.0"  # the script found its interpreter after the environment was renamed


async def test_a_project_file_is_enough_and_the_project_itself_is_not_installed(
    built: environments.Environments, tmp_path: Path
) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[project]\nname = "mine"\nversion = "1"\ndependencies = ["beta==2.0"]\n')
    place = await built.ensure(plan(folder, None), lambda *_: None)
    assert ask(place, "import beta, importlib.util as u; print(beta.VERSION, u.find_spec('mine'))") == "2.0 None"


async def test_a_lock_is_followed(built: environments.Environments, tmp_path: Path, wheels: Path) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "mine"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["alpha"]\n'
    )
    uv = environments.find_uv()
    assert uv is not None
    locking = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "UV_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run(
        [uv, "lock", "--no-index", "--find-links", str(wheels), "--offline"],
        cwd=folder,
        env=locking,
        check=True,
        capture_output=True,
    )
    made = plan(folder, None)
    assert made.kind == "locked"
    place = await built.ensure(made, lambda *_: None)
    assert ask(place, "import alpha, beta; print(beta.VERSION)") == "2.0"
    assert not (folder / ".venv").exists()


@pytest.mark.parametrize(
    ("requirements", "python", "code"),
    [
        ("nowhere-to-be-found==9\n", None, "build.unresolvable"),
        ("alpha\nbeta<2\n", None, "build.unresolvable"),
        ("alpha ===== 1\n", None, "build.failed"),
        ("https://127.0.0.1:9/x-1-py3-none-any.whl\n", None, "build.offline"),
        ("beta\n", "3.99", "build.python_missing"),
    ],
)
async def test_what_cannot_be_built_says_why_and_leaves_nothing(
    built: environments.Environments, tmp_path: Path, requirements: str, python: str | None, code: str
) -> None:
    built._environ["UV_HTTP_RETRIES"] = "0"
    with pytest.raises(errors.NexusError) as caught:
        await built.ensure(plan(tmp_path / "agent", requirements, python=python), lambda *_: None)
    assert (caught.value.code, caught.value.phase) == (code, "build")
    assert caught.value.cause
    assert caught.value.next_step
    assert list((tmp_path / "environments").iterdir()) == []


async def test_many_who_want_the_same_share_one_build(built: environments.Environments, tmp_path: Path) -> None:
    wanted = plan(tmp_path / "agent", "alpha\n")
    steps: list[Steps] = [[] for _ in range(5)]
    places = await asyncio.gather(*(built.ensure(wanted, lambda *step, mine=mine: mine.append(step)) for mine in steps))
    assert len(set(places)) == 1
    told = [[step for step in mine if step[0] == "installing"] for mine in steps]
    assert all(mine == told[0] for mine in told)


async def test_the_last_to_leave_ends_the_build_and_the_next_can_begin_anew(
    built: environments.Environments, tmp_path: Path
) -> None:
    wanted = plan(tmp_path / "agent", "alpha\n")
    first = asyncio.ensure_future(built.ensure(wanted, lambda *_: None))
    second = asyncio.ensure_future(built.ensure(wanted, lambda *_: None))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second / "pyvenv.cfg").exists()
    other = plan(tmp_path / "other", "beta\n")
    lonely = asyncio.ensure_future(built.ensure(other, lambda *_: None))
    await asyncio.sleep(0)
    lonely.cancel()
    await asyncio.wait({lonely})
    assert ask(await built.ensure(other, lambda *_: None), "import beta; print(beta.VERSION)") == "2.0"


async def test_a_build_in_time_or_not_at_all(tmp_path: Path, built: environments.Environments) -> None:
    hurried = environments.Environments(tmp_path / "environments", environ=built._environ, timeout_s=0.001)
    with pytest.raises(errors.AgentFailed) as caught:
        await hurried.ensure(plan(tmp_path / "agent", "alpha\n"), lambda *_: None)
    assert caught.value.code == "build.timeout"


async def test_rubbish_of_a_killed_build_is_swept(built: environments.Environments, tmp_path: Path) -> None:
    rubbish = tmp_path / "environments" / ("f" * 64 + ".building")
    (rubbish / "bin").mkdir(parents=True)
    built.sweep()
    assert list((tmp_path / "environments").iterdir()) == []


async def test_without_uv_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    made = environments.Environments(tmp_path, environ={})
    made._uv = None
    with pytest.raises(errors.Unavailable) as caught:
        await made.ensure(plan(tmp_path / "agent", None), lambda *_: None)
    assert caught.value.code == "build.no_uv"
