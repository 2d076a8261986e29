"""The kernel's control groups as a session's first process meets them: it enters by itself, and dies frozen."""

import os
import signal
import uuid
from collections.abc import Iterator

import pytest

from nexus.drivers.process import cgroups


@pytest.fixture
def group() -> Iterator[cgroups.Group]:
    layout = cgroups.detect(f"nexus-test-{uuid.uuid4().hex[:8]}")
    if "freezer" not in layout.v1:
        cgroups.release(layout)
        pytest.skip("this machine has no control groups of version 1 that we may use")
    made = cgroups.make(layout, "ins_1", memory_bytes=1 << 26, cpu_millis=None)
    yield made
    assert cgroups.wait_removed(made)
    cgroups.release(layout)


def spawn(entrances: list[int], *, uid: int) -> int:
    """A process that gives up its rights, enters, and waits for its end."""
    ours, theirs = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.setresuid(uid, uid, uid)
            for number in entrances:
                os.write(number, b"0")
            os.write(theirs, b"in")
            signal.pause()
        finally:
            os._exit(1)
    os.close(theirs)
    said = os.read(ours, 2)
    os.close(ours)
    assert said == b"in"
    return pid


def test_who_has_no_rights_enters_by_the_doors_that_were_opened_for_it(group: cgroups.Group) -> None:
    entrances = group.open_entrances()
    pid = spawn(entrances, uid=65534)
    for number in entrances:
        os.close(number)
    for folder in group.v1.values():
        assert str(pid) in (folder / "cgroup.procs").read_text().split()
    assert group.unified is None, "a move by another would wait for a grace period"
    group.kill()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("by_group", [True, False])
def test_who_is_frozen_can_be_killed(group: cgroups.Group, by_group: bool) -> None:
    entrances = group.open_entrances()
    pid = spawn(entrances, uid=65534)
    for number in entrances:
        os.close(number)
    assert group.freeze()
    if by_group:
        group.kill()
    else:
        os.kill(pid, signal.SIGKILL)
        cgroups.thaw(pid)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_group_that_is_gone_has_no_entrance(group: cgroups.Group) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (group.v1["pids"]).rmdir()
    with pytest.raises(FileNotFoundError):
        group.open_entrances()
    assert len(os.listdir("/proc/self/fd")) == before
