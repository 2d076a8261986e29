"""A node without control groups, and one whose disk is full: less is promised, nothing is lost."""

import asyncio
import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import plain_worker
import psutil
import pytest
import supervisor_rig

from nexus.core import instances
from nexus.core.phases import InstancePhase
from nexus.drivers.process import cgroups, launcher, node, preparation
from nexus.kit.home import Home

READY, FAILED = InstancePhase.READY, InstancePhase.FAILED
ENVIRON = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp"), "UV_PYTHON_DOWNLOADS": "never"}


async def worker_copy_in(folder: Path) -> Path:
    return plain_worker.build_worker_copy(folder)


@contextlib.asynccontextmanager
async def a_node(home: Home) -> AsyncIterator[node.Node]:
    home.run.mkdir(parents=True, exist_ok=True)
    layout = cgroups.Layout()
    async with node.Node(home, environ=ENVIRON, worker_copy=lambda: worker_copy_in(home.worker_copies), layout=layout) as made:
        try:
            yield made
        finally:
            await made.stop_all(grace_s=1)


async def until(made: node.Node, instance_id: str, *phases: InstancePhase) -> instances.InstanceStatus:
    seen: instances.InstanceStatus | None = None
    try:
        async with asyncio.timeout(30):
            while True:
                for status in made.statuses():
                    if status.id == instance_id:
                        seen = status
                        if status.phase in phases or status.phase is FAILED:
                            assert status.phase in phases, status
                            return status
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it never came to {phases}; last seen: {seen}") from None


@pytest.fixture
def rig() -> Iterator[supervisor_rig.SupervisorRig]:
    with tempfile.TemporaryDirectory(prefix="nexus-node-") as folder:
        yield supervisor_rig.SupervisorRig(Path(folder))


async def test_without_control_groups_memory_is_limited_for_each_process_and_it_is_said(
    rig: supervisor_rig.SupervisorRig,
) -> None:
    async with a_node(rig.home) as made:
        said = made.capabilities()
        assert not said.limits_cpu
        assert any("RLIMIT_DATA" in line for line in said.missing)
        agent = "def run(input):\n    try: hold = bytearray(512 << 20)\n    except MemoryError: return 'refused'\n"
        spec = rig.spec_of({"agent.py": agent}, memory_bytes=256 << 20)
        made.start(spec)
        await until(made, spec.id, READY)
        assert await rig.run(spec.id, None) == "refused"
        status = next(status for status in made.statuses() if status.id == spec.id)
        assert status.pid is not None


async def test_without_control_groups_children_die_with_their_instance(rig: supervisor_rig.SupervisorRig) -> None:
    async with a_node(rig.home) as made:
        agent = (
            "import subprocess\n"
            "def run(input): return [subprocess.Popen(['sleep', '600'], start_new_session=own).pid for own in (True, False)]\n"
        )
        spec = rig.spec_of({"agent.py": agent})
        made.start(spec)
        await until(made, spec.id, READY)
        inside = await rig.run(spec.id, None)
        status = next(status for status in made.statuses() if status.id == spec.id)
        children = [child.pid for child in psutil.Process(status.pid).children()]
        assert len(children) == len(inside) == 2
        stopping = made.stop(spec.id, grace_s=0)
        assert stopping is not None
        await stopping
        async with asyncio.timeout(10):
            while any(launcher.born(child) for child in children):
                await asyncio.sleep(0.02)


async def test_without_control_groups_the_number_of_processes_is_limited_all_the_same(rig: supervisor_rig.SupervisorRig) -> None:
    async with a_node(rig.home) as made:
        if made.capabilities().isolation != "box":
            pytest.skip("this machine has no namespaces for us")
        agent = (
            "import os, signal\n"
            "def run(input):\n"
            "    children = []\n"
            "    try:\n"
            "        while len(children) < 3000:\n"
            "            if (child := os.fork()) == 0: signal.pause()\n"
            "            children.append(child)\n"
            "    except OSError as error: return [len(children), error.errno]\n"
            "    finally:\n"
            "        for child in children: os.kill(child, 9)\n"
        )
        spec = rig.spec_of({"agent.py": agent})
        made.start(spec)
        await until(made, spec.id, READY)
        count, said = await rig.run(spec.id, None)
        assert count <= cgroups.PROCESSES
        assert said == 11


async def test_a_full_disk_is_a_typed_failure_and_the_node_goes_on(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)], capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        rig = supervisor_rig.SupervisorRig(tmp_path)
        async with a_node(rig.home) as made:
            small = rig.spec("good")
            big = rig.spec_of({"agent.py": supervisor_rig.GOOD, "big.bin": "x" * 9_000_000})
            made.start(big)
            failed = await until(made, big.id, FAILED, READY)
            assert (failed.problem or {})["code"] == "disk.full"
            assert (failed.problem or {})["phase"] == "build"
            assert list((tmp_path / "sources").iterdir()) == []
            made.start(small)
            await until(made, small.id, READY)
            assert await rig.run(small.id, 1) == 1
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_what_nobody_used_for_long_is_pruned_whole(tmp_path: Path) -> None:
    for name, age in (("old", 100), ("new", 1), (".old.gone", 1)):
        (tmp_path / name / "deep").mkdir(parents=True)
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    assert preparation.prune(tmp_path, before=time.time() - 50) == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["new"]
