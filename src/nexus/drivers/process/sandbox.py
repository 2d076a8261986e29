"""What a box is made of, decided by the supervisor: who the agent is on this machine, what it sees, which layers hold.

`Wish` is what an instance needs; `plan` turns it into what `box_entry` does; `Layers` is what this machine offers.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nexus.drivers.process import box_root

LAYERS = ("namespaces", "user", "network", "landlock", "seccomp")
SCOPES = "scopes"  # a part of Landlock that came late
_SCOPES_SINCE = 6
COSTS: Mapping[str, str] = {
    "namespaces": "namespaces: instances run as the host's own user and see its processes; run only code you trust",
    "user": "user namespace: an agent's user is unprivileged, but only by its number on this host",
    "network": "network namespace: hosting.network: isolated and egress are refused",
    "landlock": "landlock: the file tree of a box is kept by mounts alone, and abstract sockets of the host can be reached",
    SCOPES: "landlock scopes: with hosting.network: host an agent reaches abstract sockets of the host (X11, D-Bus)",
    "seccomp": "seccomp: every system call of the kernel can be made by an agent",
}
INNER_USER = 1000
RESTRICTED, BASELINE = "restricted", "baseline"
_MIB = 1024**2
_TEMPORARY = 1024 * _MIB
_LEAST_TEMPORARY = 16 * _MIB
_FIRST_USER, _USERS = 0x70000000, 2**27
_SMALL_FIRST_USER = 20_000
OWN_TREES = ("/tmp", "/dev", "/proc")  # noqa: S108 - the box's own
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/shm")  # noqa: S108 - shared, and said so
_SYSTEM = (
    "/proc",
    "/etc/passwd",
    "/etc/group",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/sys/devices/system/cpu",
    "/run/systemd/resolve",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Paths are the same inside and outside. `write` are the instance's own; `links` are symbolic links to make; `way` is the
    socket of the egress broker, `pins` the hosts behind loopback ports of their own (`egress_rules.plan_pins`). `zygote`: the
    program in it forks session workers, each into a box of its own (`box_session`). `own_user`: it stays our user outside.
    `runtime`: a class of `oci_launcher.RUNTIMES` in place of our own box. `home_bytes`: home is a folder in memory of this size
    in a box that has a file tree of its own; elsewhere it is the folder of that name."""

    stage: Path
    folder: Path
    home: Path
    output: Path
    read: Sequence[Path] = ()
    write: Sequence[Path] = ()
    links: Sequence[tuple[str, str]] = ()
    context: str = RESTRICTED
    network: str = "host"
    read_only_root: bool = True
    untrusted: bool = False
    way: Path | None = None
    pins: Sequence[tuple[str, str, int]] = ()
    memory_bytes: int | None = None
    zygote: bool = False
    own_user: bool = False
    runtime: str = ""
    home_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Those in force here, and for each that is not, what the machine answered."""

    held: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def boxed(self) -> bool:
        return "namespaces" in self.held

    @property
    def missing(self) -> tuple[str, ...]:
        """One line for each absent layer: what it is, what it costs, what the machine said."""
        return tuple(f"{COSTS[layer]} ({self.refused[layer]})" for layer in COSTS if layer in self.refused)


def plan(
    wish: Wish,
    *,
    instance_id: str,
    layers: Layers,
    owner: int | None,
    command: Sequence[str],
    environ: Mapping[str, str],
    limits: Mapping[str, tuple[int, int]],
    processes: int | None = None,
) -> dict[str, Any]:
    """The JSON that `box_entry` works from. `owner`: the host's user to become, None when we are not root ourselves.
    `processes`: how many the box may have, where no control group counts them.
    """
    temporary = temporary_bytes(wish.memory_bytes)
    boxed = layers.boxed
    writable = [str(path) for path in wish.write]
    return {
        "layers": sorted(layers.held),
        "zygote": wish.zygote and boxed,
        "extra": -1,
        "restricted": wish.context == RESTRICTED,
        "limits": {name: list(pair) for name, pair in limits.items()},
        "processes": processes or 0,
        "command": list(command),
        "environ": dict(environ),
        "folder": str(wish.folder),
        "home": str(wish.home),
        "output": str(wish.output),
        "stage": str(wish.stage),
        "host": f"agent-{instance_id[-6:]}",
        "owner": owner if boxed else None,
        "inner": INNER_USER if owner is None or "user" in layers.held else owner,
        "isolated": wish.network != "host",
        "way": str(wish.way) if wish.way is not None and boxed else "",
        "pins": [list(pin) for pin in wish.pins] if wish.way is not None and boxed else [],
        "read_only_root": wish.read_only_root,
        "root_bytes": (1 if wish.read_only_root else 64) * _MIB + 8 * _MIB,
        "tmp_bytes": temporary,
        "shm_bytes": temporary,
        "read": outermost([str(path) for path in wish.read]),
        "write": [*(bound(wish) if boxed else writable), str(wish.output)],
        "home_bytes": wish.home_bytes if boxed else None,
        "links": [list(link) for link in wish.links],
        "landlock_files": (wish.context == RESTRICTED and not wish.zygote) or not boxed,
        "landlock_read": ["/"] if boxed else _visible(wish),
        "landlock_write": [
            *writable, str(wish.output), *(OWN_TREES if boxed else _DEVICES),
            *(["/"] if boxed and not wish.read_only_root else []),
        ],
    }  # fmt: skip


def bound(wish: Wish) -> list[str]:
    """What it may write of the host's folders, in a file tree of its own."""
    return [str(path) for path in wish.write if wish.home_bytes is None or path != wish.home]


def refused_scopes(version: int) -> dict[str, str]:
    """What a kernel whose Landlock is of this version lacks of it."""
    return {} if version >= _SCOPES_SINCE else {SCOPES: f"Landlock {version} here; {_SCOPES_SINCE} came with Linux 6.12"}


def outermost(paths: Sequence[str]) -> list[str]:
    """Without doubles and without what lies below another one or below `/usr`, which every box has."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(path == above or path.startswith(f"{above}/") for above in [*kept, "/usr"]):
            kept.append(path)
    return kept


def plan_owner(instance_id: str, uid_map: str) -> int:
    """An unprivileged user of this instance's own: from a range that no distribution hands out, or of what a container maps.

    By the instance's id alone, so that nothing has to be remembered; two of a hundred instances share one in 1 of 25,000 cases.
    """
    number = int.from_bytes(hashlib.sha256(instance_id.encode()).digest()[:8], "big")
    ranges = [(int(first), int(count)) for first, _, count in (line.split() for line in uid_map.splitlines() if line.strip())]
    if any(first <= _FIRST_USER and first + count >= _FIRST_USER + _USERS for first, count in ranges):
        return _FIRST_USER + number % _USERS
    most = max((first + count for first, count in ranges), default=0)
    if most <= _SMALL_FIRST_USER + 1000:
        return 65534
    return _SMALL_FIRST_USER + number % (min(most, 65_000) - _SMALL_FIRST_USER)


def interpreter(python: Path, *, private: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """What an environment's `bin/python` needs beside it: the installation it leads to, and the links between.

    `private` is a folder of the host's that no agent may see.
    """
    links: list[tuple[str, str]] = []
    environment = python.parent.parent if (python.parent.parent / "pyvenv.cfg").exists() else Path("/nowhere")
    at = python
    for _ in range(16):
        if not at.is_symlink():
            break
        target = os.readlink(at)
        if not at.is_relative_to(environment):
            links.append((str(at), target))
        at = Path(os.path.normpath(at.parent / target))
    real = at.resolve()
    prefix = real.parent.parent
    if prefix.is_relative_to(environment):
        return [], links
    if private.is_relative_to(prefix):  # such as /home/me/bin/python: then not all of its prefix, for it holds what is ours alone
        return [real, *sorted(prefix.glob("lib*/python3*")), *sorted(prefix.glob("lib*/libpython*"))], links
    return [prefix], links


def temporary_bytes(memory: int | None) -> int:
    return _TEMPORARY if memory is None else max(_LEAST_TEMPORARY, min(_TEMPORARY, memory // 2))


def _visible(wish: Wish) -> list[str]:
    """What Landlock alone leaves readable where there is no file tree of the box's own."""
    return [*_SYSTEM, *box_root.SYSTEM, *box_root.ETC_TREES, *box_root.ETC_FILES, *(str(path) for path in wish.read)]
