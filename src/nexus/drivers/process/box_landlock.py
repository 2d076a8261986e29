"""Landlock: a second, independent lock on files, on signals and abstract sockets, and on what ptrace may see.

Within the box's own file tree it repeats what the mounts say; on a machine without namespaces it is what keeps the host's
files from the agent. Kernels differ by ABI; what one does not know is left out. Source: linux/landlock.h of Linux 6.18.
"""

import ctypes
import os
import stat
import struct

from nexus.drivers.process import box_calls

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on every architecture
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_BY_ABI = ((1, 0x1FFF), (2, 1 << 13), (3, _TRUNCATE), (5, _IOCTL_DEV))
_SCOPES = 0x3  # abstract unix sockets, signals: since ABI 6
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READING = _EXECUTE | _READ_FILE | _READ_DIR
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def version() -> int:
    """The kernel's ABI; 0 when there is none."""
    return max(0, int(_libc.syscall(ctypes.c_long(_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint32(1))))


def restrict(readable: list[str], writable: list[str], *, files: bool = True) -> None:
    """Only these files and trees from now on (`files`), and no signal or abstract socket beyond this process's own kin.

    Missing paths are passed over. Raises `Denied` where Landlock is not offered.
    """
    abi = version()
    if abi < 1:
        raise box_calls.Denied("landlock", "landlock_create_ruleset", ctypes.get_errno())
    handled = 0
    for since, rights in _BY_ABI:
        handled |= rights if files and abi >= since else 0
    if not handled and abi < 6:
        return
    ruleset = struct.pack("=QQQ", handled, 0, _SCOPES if abi >= 6 else 0)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    fd = _call("landlock_create_ruleset", _CREATE, ruleset, len(ruleset), 0)
    try:
        for path in readable if files else ():
            _allow(fd, path, handled & _READING)
        for path in writable if files else ():
            _allow(fd, path, handled)
        _call("landlock_restrict_self", _RESTRICT, fd, 0)
    finally:
        os.close(fd)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _FILE_RIGHTS
        _call(f"landlock_add_rule {path}", _ADD, ruleset, 1, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


def _call(what: str, number: int, *args: object) -> int:
    given = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result = int(_libc.syscall(ctypes.c_long(number), *given))
    if result < 0:
        raise box_calls.Denied("landlock", what, ctypes.get_errno())
    return result
