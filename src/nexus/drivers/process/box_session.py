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
from nexus.drivers.process.box_calls import ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY

_OWN_FLAGS = box_calls.MS_NOSUID | box_calls.MS_NODEV
_PROC_FLAGS = _OWN_FLAGS | box_calls.MS_NOEXEC
_HIDE = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC
_NAMESPACES = (
    box_calls.CLONE_NEWUSER | box_calls.CLONE_NEWNS | box_calls.CLONE_NEWPID | box_calls.CLONE_NEWIPC | box_calls.CLONE_NEWUTS
)
_SIGCHLD = 17
_FIRST_PID, _PIDS = 300, 29_000
_PR_SET_DUMPABLE = 4

_held = ctypes.PyDLL(None, use_errno=True)  # without giving up the interpreter's lock: nobody could take it back in the child
_held.syscall.restype = ctypes.c_long
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


def find_hidden() -> list[tuple[str, bool]]:
    """What of `/proc` is to be hidden and exists here, and whether it is a folder. The same for every session: asked once."""
    found = []
    for name in box_root.HIDDEN:
        path = f"/proc/{name}"
        if os.path.lexists(path):
            found.append((path, os.path.isdir(path)))
    return found


def build_filter(plan: "box_calls.Plan") -> bytes:
    """The same for every session: built once."""
    return box_filter.build(box_calls.machine, restricted=plan["restricted"])


def furnish(plan: "box_calls.Plan") -> "list[box_relay.Listener]":
    """In the child: who we are, and a file tree of our own. Gives back the ports of the way out."""
    _map_ids(plan["inner"])
    ways: list[box_relay.Listener] = []
    if plan["isolated"]:
        box_calls.raise_loopback()
    if plan["way"]:
        ways = box_relay.listen(plan["pins"])
    socket.sethostname(plan["host"])
    needed = [(path, box_calls.take_tree(path)) for path in plan["below"]]
    box_calls.mount("tmpfs", "/tmp", "tmpfs", _OWN_FLAGS, f"mode=1777,size={plan['tmp_bytes']},nr_inodes=64k")  # noqa: S108
    box_calls.mount("tmpfs", "/dev/shm", "tmpfs", _OWN_FLAGS, f"mode=1777,size={plan['shm_bytes']},nr_inodes=4k")  # noqa: S108
    for path, tree in needed:
        _put_back(path, tree)
    inner = plan["inner"]
    owned = f"mode=0700,uid={inner},gid={inner},size={plan['work_bytes']},nr_inodes=64k"
    box_calls.mount("tmpfs", plan["work"], "tmpfs", _OWN_FLAGS, owned)
    empty = "/tmp/.empty"  # noqa: S108 - our own by now
    os.mkdir(empty, 0o555)
    for path in plan["hide"]:
        _hide(path, os.path.isdir(path), empty)
    _mount_proc(plan, empty)
    os.rmdir(empty)
    if not plan["read_only_root"]:
        box_calls.set_attributes("/", ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)
    return ways


def _put_back(path: str, tree: int) -> None:
    """What lies below a folder of the host's that has the name of one of ours, such as a home in `/tmp`."""
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    box_calls.put_tree(tree, path)
    os.close(tree)


def _map_ids(inner: int) -> None:
    same = b"%d %d 1" % (inner, inner)
    for name, line in (("setgroups", b"deny"), ("uid_map", same), ("gid_map", same)):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(fd, line)
        except OSError as error:
            raise Denied("user", f"map the {name.partition('_')[0]}", error.errno or 0) from None
        finally:
            os.close(fd)


def _hide(path: str, is_folder: bool, empty: str) -> None:
    if is_folder:
        box_calls.bind(empty, path, _HIDE)
    elif os.path.lexists(path):
        box_calls.bind("/dev/null", path, ATTR_NOSUID | ATTR_NOEXEC | ATTR_RDONLY)


def _mount_proc(plan: "box_calls.Plan", empty: str) -> None:
    """`/proc` of our own processes, whose numbers begin somewhere else in each session: libraries know a fork by its new one."""
    box_calls.mount("proc", "/proc", "proc", _PROC_FLAGS)
    first = _FIRST_PID + int.from_bytes(os.urandom(4), "little") % _PIDS
    try:
        with open("/proc/sys/kernel/ns_last_pid", "wb", buffering=0) as file:
            file.write(b"%d" % first)
    except OSError:  # a kernel without checkpoints: numbers begin at 2
        pass
    box_calls.bind("/proc/sys", "/proc/sys", _HIDE)
    for path, is_folder in plan["hidden"]:
        _hide(path, is_folder, empty)


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
