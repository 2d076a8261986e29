"""Control groups of either version are found from what the kernel says; limits are written where they belong."""

from pathlib import Path

import pytest

from nexus.drivers.process import cgroups

HYBRID = """\
cgroup {root}/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup {root}/memory cgroup rw,relatime,memory 0 0
cgroup {root}/systemd cgroup rw,relatime,name=systemd 0 0
cgroup {root}/freezer cgroup rw,relatime,freezer 0 0
cgroup2 {root}/unified cgroup2 rw,relatime 0 0
"""


@pytest.fixture
def hybrid(tmp_path: Path) -> cgroups.Layout:
    for name in ("cpu,cpuacct", "memory/own", "unified/own/leaf"):
        (tmp_path / name).mkdir(parents=True)
    own = "4:memory:/own\n1:cpu,cpuacct:/elsewhere\n0::/own/leaf\n"
    return cgroups.detect("nexus-1", mounts=HYBRID.format(root=tmp_path), own=own)


def test_version_1_goes_below_our_own_group_or_the_root(hybrid: cgroups.Layout, tmp_path: Path) -> None:
    assert hybrid.v1 == {
        "memory": tmp_path / "memory/own/nexus-1",
        "cpu": tmp_path / "cpu,cpuacct/nexus-1",
        "cpuacct": tmp_path / "cpu,cpuacct/nexus-1",
    }
    assert hybrid.unified == tmp_path / "unified/own/nexus-1"
    assert hybrid.has("memory")
    assert not hybrid.has("pids")


def test_version_2_is_left_alone_where_version_1_has_everything(tmp_path: Path) -> None:
    for name in ("cpu,cpuacct", "memory", "pids", "freezer", "unified"):
        (tmp_path / name).mkdir(parents=True)
    mounts = HYBRID.format(root=tmp_path) + f"cgroup {tmp_path}/pids cgroup rw,pids 0 0\n"
    layout = cgroups.detect("nexus-1", mounts=mounts, own="0::/\n")
    assert (layout.unified, layout.has("pids"), list((tmp_path / "unified").iterdir())) == (None, True, [])
    group = cgroups.make(layout, "ins_1", memory_bytes=None, cpu_millis=None)
    (group.v1["freezer"] / "freezer.state").write_text("THAWED")
    assert group.freeze()
    assert (group.v1["freezer"] / "freezer.state").read_text() == "FROZEN"


def test_limits_of_version_1(hybrid: cgroups.Layout) -> None:
    group = cgroups.make(hybrid, "ins_1", memory_bytes=1 << 20, cpu_millis=500)
    memory, cpu = group.v1["memory"], group.v1["cpu"]
    assert (memory / "memory.limit_in_bytes").read_text() == str(1 << 20)
    assert (cpu / "cpu.cfs_quota_us").read_text() == "50000"
    (memory / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    (memory / "memory.usage_in_bytes").write_text("5000\n")
    (memory / "memory.stat").write_text("cache 1\ntotal_inactive_file 1000\n")
    (cpu / "cpuacct.usage").write_text("1500000000\n")
    assert (group.memory_kills(), group.memory_bytes(), group.cpu_s()) == (2, 4000, 1.5)
    assert cgroups.from_paths(group.paths()) == group


def test_limits_of_version_2(tmp_path: Path) -> None:
    layout = cgroups.Layout(v2=frozenset({"memory", "pids", "cpu"}), unified=tmp_path)
    group = cgroups.make(layout, "ins_1", memory_bytes=1 << 20, cpu_millis=2000)
    folder = tmp_path / "ins_1"
    read = {path.name: path.read_text() for path in folder.iterdir()}
    assert read == {
        "memory.max": str(1 << 20),
        "memory.oom.group": "1",
        "cpu.max": "200000 100000",
        "pids.max": str(cgroups.PROCESSES),
    }
    (folder / "memory.events").write_text("low 0\noom 3\noom_kill 1\n")
    (folder / "memory.current").write_text("900\n")
    (folder / "cpu.stat").write_text("usage_usec 2500000\n")
    assert (group.memory_kills(), group.memory_bytes(), group.cpu_s()) == (1, 900, 2.5)


def test_a_machine_without_control_groups_has_none(tmp_path: Path) -> None:
    layout = cgroups.detect("nexus-1", mounts="proc /proc proc rw 0 0\n", own="")
    assert (dict(layout.v1), layout.unified, layout.has("memory")) == ({}, None, False)
    group = cgroups.make(layout, "ins_1", memory_bytes=1, cpu_millis=1)
    assert (group.processes(), group.memory_kills(), group.memory_bytes(), group.cpu_s()) == ([], 0, None, None)
    assert group.remove()
    missing = cgroups.detect("n", mounts=f"cgroup {tmp_path}/gone/memory cgroup rw,memory 0 0\n", own="4:memory:/\n")
    assert not missing.has("memory")


def test_leftovers_are_those_nobody_owns(hybrid: cgroups.Layout) -> None:
    for name in ("ins_1", "ins_2"):
        cgroups.make(hybrid, name, memory_bytes=None, cpu_millis=None)
    assert [group.v1["memory"].name for group in cgroups.leftovers(hybrid, {"ins_1"})] == ["ins_2"]


def test_refusals_are_counted_through_one_descriptor_until_it_is_closed(tmp_path: Path) -> None:
    (tmp_path / "pids.events").write_text("max 2\n")
    refusals = cgroups.Group(v1={"pids": tmp_path}).refusal_counter()
    assert refusals.count() == 2
    with (tmp_path / "pids.events").open("r+") as file:
        file.write("max 31\n")
    assert refusals.count() == 31
    refusals.close()
    refusals.close()
    assert refusals.count() == 0, "and nothing is opened again"
    assert cgroups.Group().refusal_counter().count() == 0
    assert cgroups.Group(v1={"pids": tmp_path / "gone"}).refusal_counter().count() == 0
