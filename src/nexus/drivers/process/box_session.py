"""A session's own box, inside the box of its zygote: what the forked child does before it may read a byte of a request.

The zygote's box has the version's root already, read-only; a session adds only what is its own: user, processes, mounts,
System V objects, host name and control groups of its own, a network of its own unless it shares the host's, `/proc` of its own
processes, and work directory, `/tmp` and `/dev/shm` with a size limit. Everything of the zygote's that can be written is covered.
Standard library only; it comes with the worker into every environment. `session_boot` hands it to the zygote.
"""

import ctypes
import os
import resource
import socket
import stat

from nexus.drivers.process import box_calls, box_filter, box_landlock, box_relay, box_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    Mount = tuple[bytes | None, bytes, bytes | None, int, bytes | None]

_OWN_FLAGS = box_calls.MS_NOSUID | box_calls.MS_NODEV
_PROC_FLAGS = _OWN_FLAGS | box_calls.MS_NOEXEC
_MS_RDONLY, _MS_REMOUNT, _MS_BIND = 1, 32, 4096
_EMPTY = "/tmp/.empty"  # noqa: S108 - the session's own
_NAMESPACES = (
    box_calls.CLONE_NEWUSER | box_calls.CLONE_NEWNS | box_calls.CLONE_NEWPID | box_calls.CLONE_NEWIPC | box_calls.CLONE_NEWUTS
)
_SIGCHLD = 17
_FIRST_PID, _PIDS = 300, 29_000
_PR_SET_DUMPABLE = 4

_held = ctypes.PyDLL(None, use_errno=True)  # without giving up the interpreter's lock: nobody could take it back in the child
_held.syscall.restype = ctypes.c_long
_held.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
Denied = box_calls.Denied


def fork(plan: "box_calls.Plan") -> int:
    """As `os.fork`, but the child is the first process of namespaces of its own. It runs no hooks of `os.register_at_fork`:
    the worker that it forks in turn does.
    """
    flags = _NAMESPACES | _SIGCHLD
    if plan["isolated"]:
        flags |= box_calls.CLONE_NEWNET
    pid = int(_held.syscall(ctypes.c_long(box_calls.number_of_clone()), ctypes.c_long(flags), None, None, None, None))
    if pid < 0:
        number = ctypes.get_errno()
        raise Denied("namespaces", "clone", number)
    return pid


def prepare(plan: "box_calls.Plan") -> "box_calls.Plan":
    """In the zygote, once: whatever is the same for every session, down to the arguments of its system calls. A child that has
    little to run has little memory of its own.
    """
    hidden = [(path, os.path.isdir(path)) for name in box_root.HIDDEN if os.path.lexists(path := f"/proc/{name}")]
    covered = [(path, os.path.isdir(path)) for path in plan["hide"] if os.path.lexists(path) and not _below(path)]
    inner = plan["inner"]
    owned = f"mode=0700,uid={inner},gid={inner},size={plan['work_bytes']},nr_inodes=64k"
    before = [
        _mount("tmpfs", "/tmp", "tmpfs", _OWN_FLAGS, f"mode=1777,size={plan['tmp_bytes']},nr_inodes=64k"),  # noqa: S108
        _mount("tmpfs", "/dev/shm", "tmpfs", _OWN_FLAGS, f"mode=1777,size={plan['shm_bytes']},nr_inodes=4k"),  # noqa: S108
    ]
    after = [
        _mount("tmpfs", plan["work"], "tmpfs", _OWN_FLAGS, owned),
        _mount(_EMPTY, _EMPTY, "", _MS_BIND),
        _mount("", _EMPTY, "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _PROC_FLAGS),
        *[_cover(path, is_folder) for path, is_folder in covered],
        _mount("proc", "/proc", "proc", _PROC_FLAGS),
    ]
    last = [
        _mount("/proc/sys", "/proc/sys", "", _MS_BIND),
        _mount("", "/proc/sys", "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _PROC_FLAGS),
        *[_cover(path, is_folder) for path, is_folder in hidden],
    ]
    if not plan["read_only_root"]:
        last.append(_mount("", "/", "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _OWN_FLAGS))
    program = box_filter.build(box_calls.machine, restricted=plan["restricted"]) if "seccomp" in plan["layers"] else b""
    same = b"%d %d 1" % (inner, inner)
    ids = (("/proc/self/setgroups", b"deny"), ("/proc/self/uid_map", same), ("/proc/self/gid_map", same))
    return {**plan, "before": before, "after": after, "last": last, "filter": program, "ids": ids}


def _below(path: str) -> bool:
    """Whether it lies in a folder that a session has of its own anyway."""
    return path.startswith(("/tmp/", "/dev/shm/"))  # noqa: S108


def _cover(path: str, is_folder: bool) -> "Mount":
    """A mount of nothing over it; the flags are those of what is mounted."""
    return _mount(_EMPTY if is_folder else "/dev/null", path, "", _MS_BIND)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> "Mount":
    """A call of mount(2) to be made, and what it is for."""
    return (source.encode() or None, target.encode(), kind.encode() or None, flags, options.encode() or None)


def furnish(plan: "box_calls.Plan") -> "list[box_relay.Listener]":
    """In the child: who we are, and a file tree of our own. Gives back the ports of the way out."""
    for path, line in plan["ids"]:
        _write(path, line, "user")
    ways: list[box_relay.Listener] = []
    if plan["isolated"]:
        box_calls.raise_loopback()
    if plan["way"]:
        ways = box_relay.listen(plan["pins"])
    socket.sethostname(f"session-{os.urandom(3).hex()}")
    needed = [(path, box_calls.take_tree(path)) for path in plan["below"]]
    _make(plan["before"])
    for path, tree in needed:
        _put_back(path, tree)
    os.mkdir(_EMPTY, 0o555)
    _make(plan["after"])
    # Numbers of processes begin somewhere else in each session: libraries know a fork by its new number.
    first = _FIRST_PID + int.from_bytes(os.urandom(4), "little") % _PIDS
    try:  # noqa: SIM105 - contextlib is more memory
        _write("/proc/sys/kernel/ns_last_pid", b"%d" % first, "namespaces")
    except (OSError, Denied):  # a kernel without checkpoints: they begin at 2
        pass
    _make(plan["last"])
    return ways


def _make(mounts: "list[Mount]") -> None:
    for call in mounts:
        if _held.mount(*call) < 0:
            raise Denied("namespaces", f"mount {os.fsdecode(call[0] or b'')} on {os.fsdecode(call[1])}", ctypes.get_errno())


def _write(path: str, line: bytes, layer: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, line)
    except OSError as error:
        raise Denied(layer, f"write {path}", error.errno or 0) from None
    finally:
        os.close(fd)


def _put_back(path: str, tree: int) -> None:
    """What lies below a folder of the host's that has the name of one of ours, such as a home in `/tmp`."""
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    box_calls.put_tree(tree, path)
    os.close(tree)


def close(plan: "box_calls.Plan") -> None:
    """In the child, once it stands in its control groups: nothing of what it had to do until now can be done again."""
    box_calls.unshare(box_calls.CLONE_NEWCGROUP, "namespaces")
    box_calls.drop_bounding_set()
    box_calls.drop_capabilities()
    box_calls.forbid_new_privileges()
    if plan["processes"]:
        resource.setrlimit(resource.RLIMIT_NPROC, (plan["processes"],) * 2)
    if "landlock" in plan["layers"]:
        box_landlock.restrict(["/"], [*plan["landlock_write"], *_find_pipes()], files=plan["restricted"])
    if "seccomp" in plan["layers"]:
        box_calls.set_filter(plan["filter"])


def _find_pipes() -> list[str]:
    """What we print into, which programs open again as `/dev/stdout`: a FIFO beyond our file tree, so that no path covers it."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        try:
            if stat.S_ISFIFO(os.stat(path).st_mode) and os.readlink(path).startswith("/"):  # not a nameless pipe
                found.append(path)
        except OSError:
            continue
    return found


def serve_ways(plan: "box_calls.Plan", ways: "list[box_relay.Listener]") -> None:
    """Never returns: the way out, in a process of its own."""
    box_relay.serve(ways, plan["way"])


def be_private() -> None:
    """Nobody of the same user may look into this process, or steer it."""
    _held.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def be_open() -> None:
    box_calls.be_inspectable()
