"""The layers of isolation that this kernel offers, found by asking it rather than by its version. Called by the doctor."""

import contextlib
import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nexus.drivers.process import box_launcher, cgroups, oci_launcher

_LANDLOCK_CREATE_RULESET = 444  # the same number on every architecture
_LANDLOCK_VERSION = 1
_CLONE_NEWUSER, _CLONE_NEWNS, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x00020000, 0x20000000, 0x40000000
_CGROUPS = Path("/sys/fs/cgroup")
_CONTROLLERS = {  # and what goes without each
    "memory": "a memory limit holds for each process apart",
    "cpu": "CPU limits are not enforced",
    "pids": "processes are limited by RLIMIT_NPROC, and a process bomb is not told from a busy agent",
    "freezer": "idle sessions are held by signals",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One layer. `needed`: the host cannot run without it."""

    name: str
    present: bool
    detail: str
    mend: str = ""
    needed: bool = False


def read_facts() -> list[Fact]:
    return [_pidfd(), _namespaces(), _landlock(), _seccomp(), _cgroups(), _box(), _gvisor()]


def read_memory() -> tuple[int, int]:
    """Bytes in all and available."""
    values = {}
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            values[name] = int(rest.split()[0]) * 1024
    return values.get("MemTotal", 0), values.get("MemAvailable", 0)


def _pidfd() -> Fact:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return Fact(
            name="process handles",
            present=False,
            needed=True,
            detail=f"pidfd_open: {error.strerror}",
            mend="Linux 5.3 or newer is needed, and a container must allow pidfd_open",
        )
    return Fact(name="process handles", present=True, detail="pidfd")


def _namespaces() -> Fact:
    flags = _CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWNET
    number = _in_child(lambda: _unshare(flags))
    if number == 0:
        return Fact(name="namespaces", present=True, detail="user, mount, pid and network namespaces may be made")
    return Fact(
        name="namespaces",
        present=False,
        detail=f"unshare: {os.strerror(number)}",
        mend="sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu 24.04), "
        "user.max_user_namespaces > 0; in a container: its seccomp profile",
    )


def _box() -> Fact:
    """What the layers come to: a box entered here and now, as the supervisor enters one at its start."""
    layers = box_launcher.find_layers(cgroups.Layout())
    if not layers.refused:
        return Fact(name="box", present=True, detail="entered with every layer: agents are closed in")
    return Fact(
        name="box",
        present=False,
        detail=f"{'entered' if layers.boxed else 'cannot be entered'}; without {'; '.join(layers.missing)}",
        mend="the lines above say which layer of the kernel is closed; Linux 5.12 or newer is needed",
    )


def _landlock() -> Fact:
    library = ctypes.CDLL(None, use_errno=True)
    version = library.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_LANDLOCK_VERSION))
    if version > 0:
        return Fact(name="landlock", present=True, detail=f"version {version}")
    return Fact(
        name="landlock",
        present=False,
        detail=f"not offered ({os.strerror(ctypes.get_errno())})",
        mend="boot with lsm=landlock,... (Linux 5.13 or newer)",
    )


def _seccomp() -> Fact:
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    present = actions.exists()
    return Fact(
        name="seccomp",
        present=present,
        detail="filters" if present else "not offered",
        mend="a kernel with CONFIG_SECCOMP_FILTER",
    )


def _cgroups() -> Fact:
    if (_CGROUPS / "cgroup.controllers").exists():
        own = _own_group_v2()
        writable = os.access(own, os.W_OK)
        costs = "; ".join(f"no {name}: {cost}" for name, cost in _CONTROLLERS.items())
        return Fact(
            name="cgroups",
            present=writable,
            detail=f"version 2 at {own}" + ("" if writable else f", not writable; {costs}"),
            mend="run as root, or in a unit with Delegate=yes (systemd-run --user --scope -p Delegate=yes nexus up)",
        )
    usable = [name for name in _CONTROLLERS if os.access(_CGROUPS / name, os.W_OK)]
    costs = "; ".join(f"no {name}: {cost}" for name, cost in _CONTROLLERS.items() if name not in usable)
    return Fact(
        name="cgroups",
        present=not costs,
        detail=f"version 1: {', '.join(usable) or 'none writable'}" + (f"; {costs}" if costs else ""),
        mend="run as root with /sys/fs/cgroup mounted, or use a system with cgroup version 2",
    )


def _gvisor() -> Fact:
    """Wanted by few, so its absence is told and no fault."""
    program = oci_launcher.find("gvisor")
    if program is None:
        return Fact(name="gvisor", present=True, detail="runsc is not installed: hosting.runtime_class: gvisor is refused")
    told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    version = told.partition("\n")[0].removeprefix("runsc version ").strip() or "of an unknown version"
    if os.geteuid() != 0:
        refused = ", and only root may start it: hosting.runtime_class: gvisor is refused"
    elif failed := _try_gvisor(program):
        refused = f" starts nothing here ({failed}): agents with hosting.runtime_class: gvisor will fail to start"
    else:
        refused = ""
    return Fact(name="gvisor", present=True, detail=f"runsc {version} at {program}{refused}")


def _try_gvisor(program: str) -> str:
    """What it says when it cannot run a program that does nothing; empty when it can."""
    with tempfile.TemporaryDirectory(prefix="nexus-runsc-") as state:
        command = [program, "--root", state, "--network=none", "--ignore-cgroups", "do", "/bin/true"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)[:200]
    told = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return "" if done.returncode == 0 else (told[-1][:200] if told else f"exit code {done.returncode}")


def _own_group_v2() -> Path:
    with contextlib.suppress(OSError, IndexError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return _CGROUPS / line[3:].lstrip("/")
    return _CGROUPS


def _unshare(flags: int) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    return 0 if library.unshare(flags) == 0 else ctypes.get_errno()


def _in_child(ask: Callable[[], int]) -> int:
    """Run a question that changes the asker in a child of its own; its answer is an error number below 256."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(min(255, ask()))
        finally:
            os._exit(255)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)
