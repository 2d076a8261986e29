"""The file tree of the box: a fresh, tiny root into which only what the agent may see is bound. Runs as the box's first process.

`build` makes it below a staging folder and enters it; the host's tree is out of reach from then on. Every bind is
nosuid,nodev; what is not the instance's own is read-only too, from its first moment.
"""

import os
import stat

from nexus.drivers.process import box_calls
from nexus.drivers.process.box_calls import ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/libx32", "/nix/store", "/gnu/store")
ETC_TREES = ("/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/etc/alternatives", "/etc/fonts", "/etc/crypto-policies")
ETC_FILES = (
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/localtime", "/etc/timezone", "/etc/mime.types", "/etc/protocols",
    "/etc/services", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/host.conf", "/etc/os-release", "/etc/ca-certificates.conf",
)  # fmt: skip
_NET_FILES = ("/etc/resolv.conf", "/etc/hosts")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_LINKS = (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"))
HIDDEN = (
    "acpi", "asound", "bus", "cmdline", "config.gz", "driver", "fs", "interrupts", "iomem", "ioports", "irq", "kallsyms", "kcore",
    "key-users", "keys", "kmsg", "kpagecgroup", "kpagecount", "kpageflags", "latency_stats", "modules", "partitions",
    "sched_debug", "scsi", "slabinfo", "sysrq-trigger", "sysvipc", "timer_list", "timer_stats", "tty", "vmallocinfo",
)  # fmt: skip
_SHOWN_OF_SYS = ("/sys/devices/system/cpu",)
_NONE = "mode=0755,size=4k,nr_inodes=4"
_MOST_COPIED = 1024 * 1024
_OWN = ATTR_NOSUID | ATTR_NODEV
_READ = _OWN | ATTR_RDONLY


def build(plan: "box_calls.Plan") -> None:
    """Make the tree and go into it. The working directory is `/` afterwards."""
    root = plan["stage"]
    box_calls.make_private()
    mode = "0755" if plan["read_only_root"] else "1777"
    _tmpfs(root, f"mode={mode},size={plan['root_bytes']},nr_inodes=16k")
    for folder, size in (("/tmp", plan["tmp_bytes"]), ("/dev/shm", plan["shm_bytes"])):  # noqa: S108 - the box's own
        _tmpfs(root + folder, f"mode=1777,size={size},nr_inodes=64k")
    for path in SYSTEM:
        _system(root, path)
    _etc(root, plan)
    _dev(root)
    _proc(root)
    if plan["zygote"]:
        _hold_proc(root)
    for path in _SHOWN_OF_SYS:
        _bind(root, path, _READ | ATTR_NOEXEC)
    for path in plan["read"]:
        _bind(root, path, _READ)
    for path, target in plan["links"]:
        _make_parent(root + path)
        if not os.path.lexists(root + path):
            os.symlink(target, root + path)
    for path in plan["write"]:
        _bind(root, path, _OWN)
    if plan["home_bytes"]:
        owner = plan["inner"] if plan["owner"] is None else plan["owner"]
        _tmpfs(root + plan["home"], f"mode=0700,uid={owner},gid={owner},size={plan['home_bytes']},nr_inodes=64k")
    box_calls.pivot(root)
    if plan["read_only_root"]:
        box_calls.set_attributes("/", _READ)


def _tmpfs(path: str, options: str, flags: int = box_calls.MS_NOSUID | box_calls.MS_NODEV) -> None:
    os.makedirs(path, exist_ok=True)
    box_calls.mount("tmpfs", path, "tmpfs", flags, options)


def _bind(root: str, path: str, attributes: int) -> None:
    """`path` of the host at the same place in the box; nothing when the host has none."""
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return
    if is_folder:
        os.makedirs(root + path, exist_ok=True)
    else:
        _touch(root + path)
    box_calls.bind(path, root + path, attributes)


def _touch(path: str) -> None:
    _make_parent(path)
    if not os.path.lexists(path):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def _make_parent(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)


def _system(root: str, path: str) -> None:
    if os.path.islink(path):
        os.symlink(os.readlink(path), root + path)
    else:
        _bind(root, path, _READ)


def _etc(root: str, plan: "box_calls.Plan") -> None:
    for path in ETC_TREES:
        _bind(root, path, _READ | ATTR_NOEXEC)
    for path in ETC_FILES if plan["isolated"] else ETC_FILES + _NET_FILES:
        _copy(path, root + path)
    if plan["isolated"]:
        _write(root + "/etc/hosts", render_hosts(plan["pins"]))
    user, group, home = plan["inner"], plan["inner"], plan["home"]
    _write(
        root + "/etc/passwd",
        f"root:x:0:0:root:/:/bin/sh\nagent:x:{user}:{group}:agent:{home}:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/:/bin/false\n".encode(),
    )
    _write(root + "/etc/group", f"root:x:0:\nagent:x:{group}:\nnogroup:x:65534:\n".encode())


def render_hosts(pins: "Iterable[tuple[str, str, int] | list[Any]]") -> bytes:
    """A hosts file of a box without the host's network: loopback, and the pinned names."""
    pinned = sorted({(str(address), str(host)) for host, address, _ in pins})
    named = "".join(f"{address} {host}\n" for address, host in pinned)
    return f"127.0.0.1 localhost\n::1 localhost\n{named}".encode()


def _copy(path: str, target: str) -> None:
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_COPIED)
    except OSError:
        return
    _write(target, content)


def _write(path: str, content: bytes) -> None:
    _make_parent(path)
    with open(path, "wb") as file:
        file.write(content)


def _dev(root: str) -> None:
    """A `/dev` with five devices; `/dev/shm` is mounted inside it already."""
    for name in _DEVICES:
        _touch(f"{root}/dev/{name}")
        box_calls.bind(f"/dev/{name}", f"{root}/dev/{name}", ATTR_NOSUID | ATTR_NOEXEC)
    for name, target in _LINKS:
        os.symlink(target, f"{root}/dev/{name}")


def _proc(root: str) -> None:
    """Our own processes only; what tells of the machine or steers it is hidden or read-only."""
    at = root + "/proc"
    os.makedirs(at, exist_ok=True)
    box_calls.mount("proc", at, "proc", box_calls.MS_NOSUID | box_calls.MS_NODEV | box_calls.MS_NOEXEC)
    empty = root + "/.empty"
    os.makedirs(empty)
    box_calls.mount("tmpfs", empty, "tmpfs", box_calls.MS_NOSUID | box_calls.MS_NODEV | box_calls.MS_NOEXEC, _NONE)
    box_calls.bind(at + "/sys", at + "/sys", ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC)
    for name in HIDDEN:
        path = f"{at}/{name}"
        if os.path.isdir(path):
            box_calls.bind(empty, path, _READ | ATTR_NOEXEC)
        elif os.path.lexists(path):
            box_calls.bind("/dev/null", path, ATTR_NOSUID | ATTR_NOEXEC | ATTR_RDONLY)
    box_calls.unmount(empty)
    os.rmdir(empty)


def _hold_proc(root: str) -> None:
    """A `/proc` in which nothing is hidden, out of everybody's reach below an empty file system: where a mount namespace has
    none, the kernel lets no session mount a `/proc` of its own (mount_too_revealing in fs/namespace.c).
    """
    at = root + "/.held"
    os.makedirs(at + "/proc")
    box_calls.mount("proc", at + "/proc", "proc", box_calls.MS_NOSUID | box_calls.MS_NODEV | box_calls.MS_NOEXEC)
    box_calls.mount("tmpfs", at, "tmpfs", box_calls.MS_NOSUID | box_calls.MS_NODEV | box_calls.MS_NOEXEC, _NONE)
