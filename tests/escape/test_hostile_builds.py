"""Requirements whose set-up code attacks the machine that builds them, and environments that lie about their interpreter."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus.core import errors
from nexus.drivers.process import box_launcher, cgroups, environment_plans, environments, launcher

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the box is Linux's")
CANARY = "canary-of-the-host"
BACKEND = """
import json, os, signal, sys, zipfile

def tried(attempt):
    try:
        return str(attempt())[:300]
    except BaseException as error:
        return "refused: " + type(error).__name__

def write(path):
    with open(path, "w") as file:
        file.write("hostile")
    return "wrote"

def linger():
    if os.fork() == 0:
        os.closerange(0, 1024)  # or uv would wait for whoever holds its pipes
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.execve("/bin/sleep", ["nexus-lingering", "300"], {})
        os._exit(0)

def build_wheel(folder, config_settings=None, metadata_directory=None):
    host = json.loads(HOST)
    target = sys.prefix if ATTACK != "none" else ""
    found = {
        "secret": tried(lambda: open(host["secret"]).read()),
        "home": tried(lambda: os.listdir(host["home"])),
        "outside": tried(lambda: write(host["home"] + "/hostile")),
        "cache": tried(lambda: write(host["cache"] + "/hostile")),
        "neighbour": tried(lambda: os.listdir(host["neighbour"])),
        "usr": tried(lambda: write("/usr/hostile")),
        "etc": tried(lambda: open("/etc/shadow").read()),
        "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
        "user": os.getuid(),
        "capabilities": next(line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")),
        "root": tried(lambda: os.listdir("/root")),
    }
    linger()
    at = host["at"]
    import glob
    for environment in glob.glob(at + "/*.building"):
        if ATTACK == "python":
            os.unlink(environment + "/bin/python")
            os.symlink(host["home"] + "/x/bin/python", environment + "/bin/python")
        elif ATTACK == "config":
            write(environment + "/pyvenv.cfg")
        elif ATTACK == "folder":
            os.rename(environment + "/bin", environment + "/bin2")
            os.symlink(host["home"], environment + "/bin")
        elif ATTACK == "mess":
            os.mkfifo(environment + "/lib/fifo")
            write(environment + "/setuid")
            os.chmod(environment + "/setuid", 0o6777)
            os.symlink("/etc", environment + "/lib/etc")
    name = "hostile-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("hostile.py", "FOUND = " + repr(found) + "\\n")
        wheel.writestr("hostile.pth", "import os; open(%r, 'a').write('pth')\\n" % (host["at"] + "/pth"))
        wheel.writestr("hostile-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: hostile\\nVersion: 1.0\\n")
        wheel.writestr("hostile-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("hostile-1.0.dist-info/RECORD", "")
    return name
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "hostile"
version = "1.0"
"""


class Place:
    """A host with something to steal and something to spoil; `build` installs the hostile requirement."""

    def __init__(self, root: Path) -> None:
        self.root, self.cache, self.store, self.index = root, root / "cache", root / "environments", root / "index"
        for folder in (self.cache, self.store / "neighbour", self.index, root / "source"):
            folder.mkdir(parents=True)
        (root / "secret").write_text(CANARY)
        self.index.chmod(0o755)
        (root / "source" / "requirements.txt").write_text("hostile==1.0\n")
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "UV_CACHE_DIR": str(self.cache),
            "UV_FIND_LINKS": str(self.index),
            "UV_OFFLINE": "1",
            "UV_PYTHON_DOWNLOADS": "never",
        }
        started = box_launcher.BoxLauncher(cgroups.Layout())
        self.built = environments.Environments(self.store, environ=environ, started=started)

    def offer(self, attack: str) -> None:
        host = {
            "secret": str(self.root / "secret"),
            "home": str(self.root),
            "cache": str(self.cache),
            "neighbour": str(self.store / "neighbour"),
            "at": str(self.store),
        }
        backend = f"HOST = {json.dumps(host)!r}\nATTACK = {attack!r}\n{BACKEND}"
        folder = self.root / "packed" / "hostile-1.0"
        folder.mkdir(parents=True)
        (folder / "pyproject.toml").write_text(PROJECT)
        (folder / "backend.py").write_text(backend)
        (folder / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
        with tarfile.open(self.index / "hostile-1.0.tar.gz", "w:gz") as archive:
            archive.add(folder, "hostile-1.0")

    async def build(self) -> Path:
        plan = environment_plans.plan_environment(
            self.root / "source", package_digest="0" * 64, host_python=environments.host_python(), python=None
        )
        return await self.built.ensure(plan, lambda *_: None)

    def outside(self) -> set[str]:
        return {str(path) for path in self.root.rglob("*") if "hostile" in path.name and "packed" not in path.parts}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    yield Place(tmp_path / "host")
    with contextlib.suppress(OSError):
        tmp_path.chmod(0o700)


async def test_set_up_code_sees_nothing_of_the_host_and_leaves_nothing(place: Place) -> None:
    place.offer("mess")
    environment = await place.build()
    code = "import importlib.util as u; s = u.spec_from_file_location('h', 'LIB/hostile.py'); m = u.module_from_spec(s)"
    library = next(environment.glob("lib/python*/site-packages"))
    script = code.replace("LIB", str(library)) + "; s.loader.exec_module(m); import json; print(json.dumps(m.FOUND))"
    answer = subprocess.run(
        [environment / "bin" / "python", "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )
    found = json.loads(answer.stdout)
    for name in ("secret", "outside", "cache", "neighbour", "usr", "etc", "root"):
        if name in ("outside", "cache") and os.geteuid() != 0:
            continue  # the box's own /tmp, below which the folders of this test lie: looked at from outside, further down
        if name == "root" and str(Path(sys.base_prefix)).startswith("/root"):
            assert set(found[name]) <= set(str([".pyenv"])), found  # the way to the interpreter, and nothing beside it
            continue
        assert found[name].startswith("refused"), (name, found[name])
    assert CANARY not in json.dumps(found)
    assert found["processes"] < 10
    assert found["user"] == 1000
    assert int(found["capabilities"], 16) == 0
    assert "secret" not in found["home"]
    # what it left is judged: no FIFO, no special bits, our own again
    assert not (environment / "lib" / "fifo").exists()
    assert (environment / "setuid").stat().st_mode & 0o7000 == 0
    assert {path.lstat().st_uid for path in environment.rglob("*")} == {os.geteuid()}
    assert not (place.store / "pth").exists()  # nobody ran the environment's start-up files
    assert {path for path in place.outside() if not path.startswith((str(environment), str(place.index)))} == set()
    assert [path.name for path in place.store.iterdir() if path.name.startswith(("box-", "."))] == []
    assert lingering() == []


@pytest.mark.parametrize("attack", ["python", "config", "folder"])
async def test_an_environment_that_was_led_elsewhere_is_never_used(place: Place, attack: str) -> None:
    place.offer(attack)
    with pytest.raises(errors.AgentFailed) as caught:
        await place.build()
    assert caught.value.code == "build.tampered"
    assert [path.name for path in place.store.iterdir()] == ["neighbour"]


async def test_a_wheel_is_installed_without_running_any_of_it(place: Place) -> None:
    with zipfile.ZipFile(place.index / "hostile-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("hostile.py", "")
        wheel.writestr("hostile.pth", f"import os; open({str(place.store / 'pth')!r}, 'a').write('pth')\n")
        wheel.writestr("hostile-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
        wheel.writestr("hostile-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("hostile-1.0.dist-info/RECORD", "")
    environment = await place.build()
    assert list(environment.glob("lib/python*/site-packages/__pycache__/hostile.*.pyc"))
    assert not (place.store / "pth").exists()


async def test_a_cancelled_build_leaves_nothing(place: Place) -> None:
    place.offer("none")
    building = asyncio.ensure_future(place.build())
    async with asyncio.timeout(20):
        while not list(place.store.glob("box-*")):
            await asyncio.sleep(0.01)
    building.cancel()
    await asyncio.gather(building, return_exceptions=True)
    await asyncio.gather(*(task for task in list(place.built._tasks)), return_exceptions=True)
    assert [path.name for path in place.store.iterdir()] == ["neighbour"]
    assert lingering() == []


def lingering() -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{name}/cmdline").read_bytes().startswith(b"nexus-lingering") and launcher.born(int(name)):
                found.append(int(name))
    return found
