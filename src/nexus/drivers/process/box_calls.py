"""System calls that Python has no name for, by ctypes; only what the box needs. x86-64 and aarch64.

Imported by `box_entry` in the box's first process, so it stays light: no dataclasses, no typing.
Every call raises `Denied`, which names the layer of the box that it belongs to.
"""

import ctypes
import os
import struct

TYPE_CHECKING = False  # importing `typing` costs the start milliseconds
if TYPE_CHECKING:
    from typing import Any

    Plan = dict[str, Any]

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x10000000, 0x20000000, 0x40000000
MS_PRIVATE, MS_REC = 1 << 18, 1 << 14
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MNT_DETACH = 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8

_SIGCHLD, _CLONE_PARENT = 17, 0x00008000
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR, _CLOSE_RANGE = 428, 429, 442, 436  # the same on every architecture
_OPEN_TREE_CLONE, _AT_RECURSIVE, _AT_EMPTY_PATH, _AT_FDCWD, _O_CLOEXEC = 1, 0x8000, 0x1000, -100, 0o2000000
_MOVE_FROM_EMPTY_PATH = 4
_NUMBERS = {  # clone, pivot_root, capset, seccomp
    "x86_64": (56, 155, 126, 317),
    "aarch64": (220, 41, 91, 277),
}
_PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 24, 47, 4
_PR_SET_DUMPABLE = 4
_CAPABILITY_VERSION_3 = 0x20080522

machine = os.uname().machine
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Denied(Exception):
    """A layer that this machine does not let us have. `layer` is one of `sandbox.LAYERS`."""

    def __init__(self, layer: str, what: str, number: int) -> None:
        super().__init__(f"{what}: {os.strerror(number)}")
        self.layer = layer
        self.number = number


def known() -> bool:
    return machine in _NUMBERS


def _number(index: int) -> int:
    return _NUMBERS[machine][index]


def number_of_clone() -> int:
    return _number(0)


def _done(result: int, layer: str, what: str) -> int:
    if result < 0:
        raise Denied(layer, what, ctypes.get_errno())
    return result


def _syscall(layer: str, what: str, number: int, *args: object) -> int:
    given = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return _done(int(_libc.syscall(ctypes.c_long(number), *given)), layer, what)


def unshare(flags: int, layer: str) -> None:
    _done(_libc.unshare(flags), layer, "unshare")


def fork_beside() -> int:
    """A child of our parent, not of ours (CLONE_PARENT): it becomes the supervisor's own child and outlives us."""
    return _syscall("namespaces", "clone", _number(0), _CLONE_PARENT | _SIGCHLD, 0, 0, 0, 0)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    result = _libc.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode() or None)
    _done(result, "namespaces", f"mount {kind or source} on {target}")


def make_private() -> None:
    """No mount of ours shows on the host, and none of the host's later ones here."""
    _done(_libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None), "namespaces", "make mounts private")


def bind(source: str, target: str, attributes: int) -> None:
    """`source` with everything mounted below it, with these attributes on each of the mounts from its first moment."""
    tree = take_tree(source)
    try:
        if attributes:
            _set_attributes(tree, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, attributes, f"bind {source}")
        put_tree(tree, target)
    finally:
        os.close(tree)


def take_tree(source: str) -> int:
    """A descriptor of what is mounted at `source` and below, to be put elsewhere even when it can no longer be reached there."""
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | _O_CLOEXEC
    return _syscall("namespaces", f"bind {source}", _OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags)


def put_tree(tree: int, target: str) -> None:
    what = f"bind to {target}"
    _syscall("namespaces", what, _MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_FROM_EMPTY_PATH)


def set_attributes(path: str, attributes: int) -> None:
    """More restrictions for the one mount at `path`."""
    _set_attributes(_AT_FDCWD, os.fsencode(path), 0, attributes, f"restrict {path}")


def _set_attributes(fd: int, path: bytes, flags: int, attributes: int, what: str) -> None:
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
    _syscall("namespaces", what, _MOUNT_SETATTR, fd, path, flags, wanted, len(wanted))


def pivot(new_root: str) -> None:
    """`new_root` becomes `/` and nothing of the old tree stays reachable."""
    os.chdir(new_root)
    _syscall("namespaces", "pivot_root", _number(1), b".", b".")
    _done(_libc.umount2(b".", MNT_DETACH), "namespaces", "leave the host's file tree")
    os.chdir("/")


def unmount(path: str) -> None:
    _done(_libc.umount2(os.fsencode(path), MNT_DETACH), "namespaces", f"unmount {path}")


def close_from(first: int) -> None:
    if _libc.syscall(ctypes.c_long(_CLOSE_RANGE), ctypes.c_long(first), ctypes.c_long(0xFFFFFFFF), ctypes.c_long(0)) != 0:
        os.closerange(first, 65536)


def forbid_new_privileges() -> None:
    _done(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "privileges", "no_new_privs")


def be_inspectable() -> None:
    """Changing the user hid our own `/proc/self` from us."""
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def drop_bounding_set() -> None:
    """No program may ever have a capability again. Needs CAP_SETPCAP, so before `drop_capabilities`."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            number = ctypes.get_errno()
            if number == 22:  # EINVAL: the kernel knows no more of them
                break
            raise Denied("privileges", "drop the bounding set", number)
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


def drop_capabilities() -> None:
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _syscall("privileges", "capset", _number(2), header, bytes(24))


def set_filter(program: bytes) -> None:
    """The seccomp filter, for this process and all it will ever start."""
    buffer = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    _syscall("seccomp", "seccomp", _number(3), 1, 0, described)


def raise_loopback() -> None:
    """`lo` up in our own network namespace."""
    import _socket
    import fcntl

    asked = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        fcntl.ioctl(asked.fileno(), 0x8914, struct.pack("16sH14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: IFF_UP | IFF_RUNNING
    except OSError as error:
        raise Denied("network", "raise lo", error.errno or 0) from None
    finally:
        asked.close()
