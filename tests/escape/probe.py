# ruff: noqa: SIM115 - a probe ends with its child
"""The escape probe: an agent that tries to get out. `run(target)` makes every attempt in a child of its own and returns
`{probe: "allowed" | "denied"}`; one JSON line for each goes to the log, with what the kernel said.

Standard library and ctypes only: it runs in every tier, whatever is installed there. `target` names what lies outside:
paths, pids, ports and sockets that the harness put there.
"""

import ctypes
import errno
import json
import mmap
import os
import platform
import resource
import signal
import socket
import struct
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
X86 = platform.machine() == "x86_64"
NUMBERS = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    "unshare": (272, 97), "clone": (56, 220), "clone3": (435, 435), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "setns": (308, 268), "open_tree": (428, 428), "fsopen": (430, 430),
    "mount_setattr": (442, 442), "move_mount": (429, 429), "keyctl": (250, 219), "add_key": (248, 217), "bpf": (321, 280),
    "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "perf_event_open": (298, 241), "kexec_load": (246, 104),
    "init_module": (175, 105), "finit_module": (313, 273), "syslog": (103, 116), "reboot": (169, 142), "swapon": (167, 224),
    "acct": (163, 89), "quotactl": (179, 60), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "sethostname": (170, 161), "settimeofday": (164, 170), "adjtimex": (159, 171), "personality": (135, 92), "capset": (126, 91),
    "fanotify_init": (300, 262), "move_pages": (279, 239), "process_madvise": (440, 440), "vhangup": (153, 58),
    "lookup_dcookie": (212, 18),
}  # fmt: skip
FLAGS = {
    "mount": 0x00020000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000, "user": 0x10000000, "pid": 0x20000000,
    "net": 0x40000000, "time": 0x80,
}  # fmt: skip
PROBES = {}
FAMILIES = range(0, 46)
PATIENCE_S = 5


def probe(name):
    def keep(function):
        PROBES[name] = function
        return function

    return keep


def call(name, *args):
    number = NUMBERS[name][0 if X86 else 1] if isinstance(name, str) else name
    given = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    ctypes.set_errno(0)
    result = LIBC.syscall(ctypes.c_long(number), *given)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(name))
    return result


def touch(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def write(path):
    """Opening is enough to know, and harms nothing where it succeeds."""
    os.close(os.open(path, os.O_WRONLY))


def read(path):
    with open(path, "rb") as file:
        content = file.read(4096)
    if not content:
        raise OSError(errno.ENODATA, "nothing is in it", path)
    return content


# C01: what is not ours to read

for where in ("/etc/shadow", "/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/cmdline", "/proc/kallsyms", "/proc/timer_list",
              "/proc/config.gz", "/proc/sysrq-trigger", "/dev/mem", "/dev/vda", "/dev/sda", "/dev/vsock", "/dev/kvm",
              "/dev/kmsg", "/dev/fuse", "/dev/net/tun"):  # fmt: skip
    probe(f"C01 read {where}")(lambda target, where=where: read(where))
for where in ("/root/.ssh", "/home", "/var/lib", "/sys/kernel", "/sys/class", "/proc/fs", "/proc/bus", "/run/systemd", "/boot"):
    probe(f"C01 list {where}")(lambda target, where=where: os.listdir(where)[0])
probe("C01 read a file of the host")(lambda target: read(target["host_file"]))
probe("C01 list the host's home")(lambda target: open(os.path.join(target["home"], "supervisor.lock")))
probe("C01 read the record of the instance")(lambda target: read(target["record"]))
probe("C01 write the record of the instance")(lambda target: write(target["record"]))


@probe("C01 make a block device")
def make_device(target):
    os.mknod(os.environ["HOME"] + "/disk", 0o060600, os.makedev(254, 0))


@probe("C01 read a block device of its own making")
def read_device(target):
    """Where the node can be made, nothing is behind it."""
    for place in (os.environ["HOME"], "/tmp", "/dev/shm"):
        for major, minor in ((8, 0), (253, 0), (254, 0), (259, 0), (1, 1)):
            path, kind = f"{place}/probe-{major}", 0o020000 if major == 1 else 0o060000
            try:
                os.mknod(path, kind | 0o600, os.makedev(major, minor))
                return read(path)
            except OSError:
                continue
    raise OSError(errno.EPERM, "none can be made, or read")


@probe("C01 leave by the parent of the root")
def parent_of_root(target):
    return read("/" + "../" * 40 + target["host_file"].lstrip("/"))


@probe("C01 leave by a link in proc")
def link_in_proc(target):
    return read(f"/proc/{target['pid']}/root{target['host_file']}")


# C02: other processes


@probe("C02 see a process of the host")
def see(target):
    return read(f"/proc/{target['pid']}/cmdline")


@probe("C02 see the first process of the host")
def first_process(target):
    line = read("/proc/1/cmdline")
    if any(ours in line for ours in (b"box_main", b"boot.py", b"oci_start.py")):
        raise OSError(errno.ESRCH, "it is the init of the box, or the agent itself")
    return line


probe("C02 signal a process of the host")(lambda target: os.kill(target["pid"], 0))
probe("C02 open a process of the host")(lambda target: call("pidfd_open", target["pid"], 0))
probe("C02 read the memory of the parent")(lambda target: read_memory(os.getppid()))
probe("C02 take a descriptor of the parent")(lambda target: call("pidfd_getfd", call("pidfd_open", os.getppid(), 0), 0, 0))
probe("C02 compare with the parent")(lambda target: call("kcmp", os.getpid(), os.getppid(), 0, 0, 0))
probe("C02 process_madvise")(lambda target: call("process_madvise", call("pidfd_open", os.getpid(), 0), 0, 0, 0, 0))


def read_memory(pid):
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("=QQ", ctypes.addressof(buffer), 8)
    remote = struct.pack("=QQ", id(LIBC), 8)
    return call("process_vm_readv", pid, local, 1, remote, 1, 0)


@probe("C02 trace a child")
def trace(target):
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        call("ptrace", 16, child, 0, 0)
    finally:
        os.kill(child, signal.SIGKILL)


# C03: namespaces and mounts

for name, flag in FLAGS.items():
    probe(f"C03 unshare {name}")(lambda target, flag=flag: call("unshare", flag))
for name in ("mount", "user", "pid", "net"):
    probe(f"C03 clone {name}")(lambda target, flag=FLAGS[name]: gone(call("clone", flag | 17, 0, 0, 0, 0)))
probe("C03 clone user and mount")(lambda target: gone(call("clone", FLAGS["user"] | FLAGS["mount"] | 17, 0, 0, 0, 0)))
probe("C03 clone3")(lambda target: gone(call("clone3", struct.pack("=QQQQQQQQ", FLAGS["user"], 0, 0, 0, 17, 0, 0, 0), 64)))
probe("C03 mount a tmpfs")(lambda target: call("mount", b"none", b"/tmp", b"tmpfs", 0, None))
probe("C03 mount proc")(lambda target: call("mount", b"proc", b"/proc", b"proc", 0, None))
probe("C03 remount usr writable")(lambda target: call("mount", None, b"/usr", None, 32 | 4096, None))
probe("C03 bind over etc")(lambda target: call("mount", b"/tmp", b"/etc", None, 4096, None))
probe("C03 unmount proc")(lambda target: call("umount2", b"/proc", 2))
probe("C03 pivot_root")(lambda target: call("pivot_root", b"/tmp", b"/tmp"))
probe("C03 chroot")(lambda target: call("chroot", b"/tmp"))
probe("C03 setns")(lambda target: call("setns", os.open("/proc/self/ns/mnt", os.O_RDONLY), 0))
probe("C03 open_tree")(lambda target: call("open_tree", -100, b"/usr", 1))
probe("C03 fsopen")(lambda target: call("fsopen", b"tmpfs", 0))
probe("C03 mount_setattr")(lambda target: call("mount_setattr", -100, b"/usr", 0, struct.pack("=QQQQ", 0, 1, 0, 0), 32))
probe("C03 move_mount")(lambda target: call("move_mount", -100, b"/usr", -100, b"/tmp", 0))
probe("C03 write to a mount that is not its own")(lambda target: foreign_mount())
probe("C03 mount inside a user namespace")(lambda target: nested())


def foreign_mount():
    """Where a mount may be written to that is neither a folder of the agent's nor one of its kernel's."""
    mine = (os.environ["HOME"], os.environ["TMPDIR"], "/tmp", "/dev", "/proc")
    for line in open("/proc/self/mounts"):
        path = line.split()[1].replace("\\040", " ")
        if path.startswith(mine) or os.environ.get("NEXUS_SOCKET", "").startswith(path + "/") or path.endswith("output.fifo"):
            continue
        if path.endswith("/output") or path == os.path.dirname(os.environ["HOME"]) + "/tmp":  # what it prints into; its own
            continue
        try:
            touch(os.path.join(path, "probe")) if os.path.isdir(path) else write(path)
        except OSError:
            continue
        return path
    raise OSError(errno.EROFS, "none")


def gone(pid):
    """A child of ours made by clone ends at once."""
    if pid == 0:
        os._exit(0)


def nested():
    call("unshare", FLAGS["user"] | FLAGS["mount"])
    call("mount", b"none", b"/tmp", b"tmpfs", 0, None)


# C04: more privileges

probe("C04 become root")(lambda target: os.setuid(0))
probe("C04 become another group")(lambda target: os.setgid(0))
probe("C04 become another user")(lambda target: os.setresuid(12345, 12345, 12345))
probe("C04 join groups")(lambda target: os.setgroups([0]))
probe("C04 take a capability")(
    lambda target: call("capset", struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", 2, 2, 0, 0, 0, 0))
)
probe("C04 keep a capability over exec")(lambda target: prctl(47, 2, 10))
probe("C04 clear no_new_privs")(lambda target: prctl(38, 0))
probe("C04 give a file a capability")(lambda target: give_capability())
probe("C04 keyctl")(lambda target: call("keyctl", 0, -3, 1))
probe("C04 add_key")(lambda target: call("add_key", b"user", b"probe", b"x", 1, -3))
probe("C04 run a setuid program")(lambda target: setuid_program())
probe("C04 personality without randomness")(lambda target: call("personality", 0x0040000))
probe("C04 have a capability")(lambda target: capabilities())
probe("C04 run without a filter")(lambda target: none_of("Seccomp:\t2"))
probe("C04 run with new privileges")(lambda target: none_of("NoNewPrivs:\t1"))


def prctl(*args):
    if LIBC.prctl(*(ctypes.c_ulong(arg) for arg in [*args, 0, 0, 0, 0][:5])) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def none_of(line):
    if line in open("/proc/self/status").read():
        raise OSError(errno.EPERM, "it is in force")


def capabilities():
    lines = [line for line in open("/proc/self/status") if line.startswith("Cap")]
    if all(int(line.split()[1], 16) == 0 for line in lines):
        raise OSError(errno.EPERM, "none, not even to be had")
    return lines


def give_capability():
    path = os.environ["HOME"] + "/capable"
    touch(path)
    try:
        os.setxattr(path, "security.capability", struct.pack("=IIIII", 0x02000001, 1 << 21, 0, 0, 0))
    finally:
        os.unlink(path)


def setuid_program():
    for path in ("/usr/bin/su", "/usr/bin/passwd", "/usr/bin/mount", "/usr/bin/newgrp", "/usr/bin/chsh"):
        if os.path.exists(path) and not os.statvfs(path).f_flag & os.ST_NOSUID:
            return path
    raise OSError(errno.EPERM, "no file system honours setuid")


# C05: rare sockets and system calls


@probe("C05 socket families")
def families(target):
    """Exactly those that an agent needs: anything more is an escape, anything less a defect."""
    made = []
    for family in FAMILIES:
        for kind in (1, 2, 3, 5):
            try:
                socket.socket(family, kind, 0).close()
            except OSError:
                continue
            made.append(family)
            break
    extra = set(made) - {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}
    if extra:
        return sorted(extra)
    raise OSError(errno.EAFNOSUPPORT, f"only {made}")


probe("C05 raw socket")(lambda target: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
probe("C05 packet socket")(lambda target: socket.socket(17, socket.SOCK_RAW, 0))
probe("C05 vsock")(lambda target: socket.socket(40, socket.SOCK_STREAM))
probe("C05 alg")(lambda target: socket.socket(38, socket.SOCK_SEQPACKET))
probe("C05 netlink audit")(lambda target: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9))
probe("C05 netlink netfilter")(lambda target: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
probe("C05 netlink generic")(lambda target: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16))
probe("C05 family with high bits")(lambda target: call(41 if X86 else 198, (1 << 32) | 40, 1, 0))
probe("C05 bpf")(lambda target: call("bpf", 0, struct.pack("=IIII", 2, 4, 4, 1), 16))
probe("C05 io_uring")(lambda target: call("io_uring_setup", 4, bytes(120)))
probe("C05 userfaultfd")(lambda target: call("userfaultfd", 1))
probe("C05 perf_event_open")(lambda target: call("perf_event_open", struct.pack("=IIQ", 1, 64, 0) + bytes(48), 0, -1, -1, 0))
probe("C05 kexec_load")(lambda target: call("kexec_load", 0, 0, 0, 0))
probe("C05 init_module")(lambda target: call("init_module", b"", 0, b""))
probe("C05 finit_module")(lambda target: call("finit_module", 0, b"", 0))
probe("C05 syslog")(lambda target: call("syslog", 10, 0, 0))
probe("C05 swapon")(lambda target: call("swapon", b"/tmp/none", 0))
probe("C05 acct")(lambda target: call("acct", 0))
probe("C05 quotactl")(lambda target: call("quotactl", 0x80000100, 0, 0, 0))
probe("C05 open_by_handle_at")(lambda target: call("open_by_handle_at", -100, struct.pack("=Ii8s", 8, 1, b""), 0))
probe("C05 sethostname")(lambda target: call("sethostname", b"probe", 5))
probe("C05 settimeofday")(lambda target: call("settimeofday", 0, bytes(8)))
probe("C05 fanotify_init")(lambda target: call("fanotify_init", 0x200, 0))
probe("C05 lookup_dcookie")(lambda target: call("lookup_dcookie", 0, bytes(8), 8))
probe("C05 vhangup")(lambda target: call("vhangup"))
probe("C05 a call of the future")(lambda target: not_missing(600))
probe("C05 x32")(lambda target: call(0x40000000 + 39))
probe("C05 i386")(lambda target: i386())


def not_missing(number):
    try:
        call(number)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise
    return number


def i386():
    """getpid of the i386 table by `int 0x80`: mov eax, 20; int 0x80; ret."""
    if not X86:
        raise OSError(errno.ENOSYS, "no such table here")
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    found = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
    if found != os.getpid():
        raise OSError(errno.ENOSYS, f"answered {found}")


# C06: ways in that were left open


@probe("C06 inherited directories and files")
def inherited(target):
    mine = (os.environ["HOME"], "/dev/", "/proc", "/tmp", os.environ["NEXUS_SOURCE"], "/usr", "/run")
    for name in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if path.startswith("/") and not path.startswith(mine) and not path.endswith("output.fifo"):
            return path
    raise OSError(errno.EBADF, "none")


def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as link:
        link.settimeout(3)
        link.connect(address)


probe("C06 abstract socket of the host")(lambda target: connect(socket.AF_UNIX, "\0" + target["abstract"]))
probe("C06 the supervisor's socket")(lambda target: connect(socket.AF_UNIX, target["supervisor"]))
for where in ("/var/run/docker.sock", "/run/docker.sock", "/run/podman/podman.sock", "/run/containerd/containerd.sock",
              "/run/dbus/system_bus_socket", "/run/systemd/private", "/run/systemd/notify"):  # fmt: skip
    probe(f"C06 {where}")(lambda target, where=where: os.stat(where))
probe("C06 working directory outside")(lambda target: os.stat(target["home"] + "/supervisor.lock"))


@probe("C06 a socket named by a variable of the host")
def named_socket(target):
    for name in ("SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "DOCKER_HOST", "XDG_RUNTIME_DIR"):
        if name in os.environ:
            return name
    raise OSError(errno.ENOENT, "none")


# C07: what steers the kernel

for where in ("kernel/core_pattern", "kernel/modprobe", "kernel/hotplug", "fs/binfmt_misc/register", "vm/drop_caches",
              "kernel/sysrq", "net/ipv4/ip_forward", "kernel/hostname", "user/max_user_namespaces"):  # fmt: skip
    probe(f"C07 write /proc/sys/{where}")(lambda target, where=where: write(f"/proc/sys/{where}"))
for where in ("/sys/kernel/uevent_helper", "/sys/fs/cgroup/memory/release_agent", "/sys/fs/cgroup/cgroup.procs",
              "/sys/fs/cgroup/memory/cgroup.procs", "/proc/sysrq-trigger", "/sys/devices/system/cpu/cpu0/online"):  # fmt: skip
    probe(f"C07 write {where}")(lambda target, where=where: write(where))
probe("C07 be less likely to be killed")(lambda target: less_likely_to_be_killed())


for where in ("/proc/sys", "/sys"):
    probe(f"C07 write to anything below {where}")(lambda target, where=where: writable_below(where))


def writable_below(top):
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if not os.path.islink(os.path.join(folder, name))]
        for name in files:
            try:
                write(os.path.join(folder, name))
            except OSError:
                continue
            return os.path.join(folder, name)
    raise OSError(errno.EROFS, "nothing")


def less_likely_to_be_killed():
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")


# C09: terminals

probe("C09 TIOCSTI")(lambda target: ioctl(0x5412, b"x"))
probe("C09 TIOCLINUX")(lambda target: ioctl(0x541C, b"\x06"))
for where in ("/dev/tty", "/dev/console", "/dev/ptmx", "/dev/tty0"):
    probe(f"C09 open {where}")(lambda target, where=where: os.open(where, os.O_RDWR))


def ioctl(command, data):
    import fcntl

    fcntl.ioctl(0, command, data)


# Changing what others run

for where in ("/", "/usr", "/usr/bin", "/usr/local/bin", "/etc", "/bin", "/lib", "/dev"):
    probe(f"write below {where}")(lambda target, where=where: touch(os.path.join(where, "probe")))
probe("write below the source")(lambda target: touch(os.environ["NEXUS_SOURCE"] + "/probe"))
probe("write below the environment")(lambda target: touch(os.environ["VIRTUAL_ENV"] + "/probe"))
probe("write below the interpreter")(lambda target: touch(sys.base_prefix + "/probe"))
probe("write below the worker")(lambda target: touch(os.path.dirname(os.path.abspath(sys.argv[0])) + "/probe"))
probe("replace a door")(lambda target: os.unlink(target["door"]))
probe("put something beside a door")(lambda target: touch(os.path.join(os.path.dirname(target["door"]), "probe")))
probe("change the owner of a file")(lambda target: os.chown(os.environ["HOME"], 0, 0))

# The neighbour: another tenant's box, which holds a flag everywhere

probe("neighbour: its files")(lambda target: read(target["neighbour"]["home"] + "/flag"))
probe("neighbour: its folder")(lambda target: os.listdir(target["neighbour"]["home"])[0])
probe("neighbour: its source")(lambda target: os.listdir(target["neighbour"]["source"])[0])
probe("neighbour: its socket")(lambda target: connect(socket.AF_UNIX, target["neighbour"]["socket"]))
probe("neighbour: its published socket")(lambda target: connect(socket.AF_UNIX, target["neighbour"]["published"]))
probe("neighbour: its temporary file")(lambda target: read("/tmp/neighbours-flag"))
probe("neighbour: its shared memory")(lambda target: read("/dev/shm/neighbours-flag"))
probe("neighbour: its abstract socket")(lambda target: connect(socket.AF_UNIX, "\0neighbours-flag"))
probe("neighbour: its process")(lambda target: os.kill(target["neighbour"]["pid"], 0))
probe("neighbour: its environment")(lambda target: read(f"/proc/{target['neighbour']['pid']}/environ"))
probe("neighbour: its System V memory")(lambda target: system_v(target["neighbour"]["key"]))
probe("neighbour: its loopback port")(lambda target: connect(socket.AF_INET, ("127.0.0.1", target["neighbour"]["port"])))
probe("host: a loopback port")(lambda target: connect(socket.AF_INET, ("127.0.0.1", target["port"])))


def system_v(key):
    if LIBC.shmget(key, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


# D: the way out. What the broker does not refuse counts as allowed, whether or not anybody answers there.


def way_out():
    """Our end of the way; without one there is nothing to ask."""
    proxy = os.environ.get("HTTP_PROXY", "")
    if not proxy:
        raise OSError(errno.ENETUNREACH, "there is no way out")
    host, port = proxy.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=4)


def asked(line, more=b""):
    """What the broker says to one request line."""
    with way_out() as link:
        link.sendall(line.encode("utf-8", "surrogateescape") + b" HTTP/1.1\r\n" + more + b"\r\n")
        answer = link.recv(4096)
    status = answer.split(b" ")[1:2]
    if status in ([b"403"], []):
        raise OSError(errno.EACCES, (answer.partition(b"\r\n\r\n")[2] or b"closed").decode("utf-8", "replace")[:120])
    return answer[:80]


def by_socks(kind, address, port=443, command=1):
    with way_out() as link:
        link.sendall(b"\x05\x01\x00")
        if link.recv(2) != b"\x05\x00":
            raise OSError(errno.EACCES, "no greeting")
        link.sendall(bytes((5, command, 0, kind)) + address + port.to_bytes(2, "big"))
        answer = link.recv(10)
    if answer[1:2] in (b"\x02", b"\x07", b"\x08", b""):
        raise OSError(errno.EACCES, f"refused: {answer[1:2].hex()}")
    return answer.hex()


def named(host):
    return bytes((len(host),)) + host


INWARD = (
    "127.0.0.1", "127.0.0.53", "[::1]", "0.0.0.0", "169.254.169.254", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1",
    "[fd00::1]", "[fe80::1]", "[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "2130706433",
    "0x7f000001", "0x7f.1", "017700000001", "127.1", "localhost", "localhost.", "LOCALHOST", "127\u30020\u30020\u30021",
    "\uff11\uff12\uff17.0.0.1", "metadata.google.internal",
)  # fmt: skip
for where in INWARD:
    shown = where.encode("ascii", "backslashreplace").decode()
    probe(f"D01 connect to {shown}")(lambda target, where=where: asked(f"CONNECT {where}:80"))
probe("D01 ask for a page of the metadata service")(lambda target: asked("GET http://169.254.169.254/latest/meta-data/"))
probe("D01 by SOCKS: loopback by number")(lambda target: by_socks(1, b"\x7f\x00\x00\x01"))
probe("D01 by SOCKS: loopback in IPv6's clothes")(lambda target: by_socks(4, bytes(10) + b"\xff\xff\x7f\x00\x00\x01"))
probe("D01 by SOCKS: localhost")(lambda target: by_socks(3, named(b"localhost")))
probe("D01 a port of the host")(lambda target: asked(f"CONNECT 127.0.0.1:{target['port']}"))
LINES = (
    "GET file:///etc/passwd", "GET gopher://127.0.0.1:6379/_INFO", "GET ftp://api.example.com/", "GET https://api.example.com/",
    "GET http://user:pass@api.example.com/", "GET http://api.example.com:22/", "CONNECT api.example.com:22", "TRACE *",
)  # fmt: skip
for line in LINES:
    probe(f"D03 {line}")(lambda target, line=line: asked(line))
probe("D03 a second request in a header")(
    lambda target: asked("GET http://other.test/", b"x: y\r\n\r\nGET http://api.example.com/ HTTP/1.1\r\n")
)
TRICKS = {
    "a longer name": "api.example.com.evil.test:443",
    "a longer beginning": "evilapi.example.com:443",
    "a NUL": "evil.test\0.api.example.com:443",
    "a NUL at the end": "api.example.com\0.evil.test:443",
    "another user": "api.example.com@evil.test:443",
    "a slash": "evil.test/api.example.com:443",
    "a backslash": "evil.test\\api.example.com:443",
    "a fragment": "evil.test#api.example.com:443",
    "an escape": "api%2eexample%2ecom:443",
    "the parent": "example.com:443",
}
for how, where in TRICKS.items():
    probe(f"D04 pass for a named host by {how}")(lambda target, where=where: asked(f"CONNECT {where}"))
probe("D04 by SOCKS: a NUL in the name")(lambda target: by_socks(3, named(b"api.example.com\0.evil.test")))
probe("D05 another address by SOCKS")(lambda target: by_socks(1, b"\xc6\x33\x64\x01"))
probe("D05 listen by SOCKS")(lambda target: by_socks(1, b"\x00\x00\x00\x00", command=2))
probe("D05 datagrams by SOCKS")(lambda target: by_socks(1, b"\x00\x00\x00\x00", command=3))
probe("D05 a datagram to a name server")(lambda target: datagram(("198.51.100.53", 53)))
probe("D05 a datagram to QUIC's port")(lambda target: datagram(("198.51.100.1", 443)))
probe("D05 ping")(lambda target: ping())
probe("D05 an interface that leads out")(lambda target: interface())
probe("D05 a name server on the way in")(lambda target: connect(socket.AF_INET, ("127.0.0.53", 53)))
probe("D07 a head without an end")(lambda target: endless_head())


def datagram(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        return link.sendto(b"probe", address)


def interface():
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not names:
        raise OSError(errno.ENODEV, "loopback alone")
    return names


def ping():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as link:
        return link.sendto(bytes((8, 0, 0xF7, 0xFF)) + bytes(4), ("198.51.100.1", 0))


def endless_head():
    """A broker that goes on reading would be filled up."""
    with way_out() as link:
        for _ in range(1024):
            link.sendall(b"GET http://api.example.com/ HTTP/1.1\r\nx: " + b"y" * 4096)
    return "it was read to its end"


# E: secrets


@probe("E01 variables of the host")
def variables(target):
    if target["host_variable"] in os.environ:
        return target["host_variable"]
    raise OSError(errno.ENOENT, "none")


@probe("E02 arguments of a process hold the token")
def arguments(target):
    token = os.environ["NEXUS_TOKEN"].encode()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if token in open(f"/proc/{name}/cmdline", "rb").read():
                    return name
            except OSError:
                continue
    raise OSError(errno.ENOENT, "none")


@probe("E02 dump core")
def dump_core(target):
    if resource.getrlimit(resource.RLIMIT_CORE) == (0, 0):
        raise OSError(errno.EPERM, "no core may be dumped")


@probe("E02 the secrets of another in shared memory")
def secrets_in_memory(target):
    for name in os.listdir("/dev/shm"):
        if b"flag" in open(f"/dev/shm/{name}", "rb").read(64):
            return name
    raise OSError(errno.ENOENT, "none")


# What an agent needs: these must be allowed

NEEDED = {
    "need: write at home": lambda target: touch(os.environ["HOME"] + "/mine"),
    "need: write temporary files": lambda target: touch(os.path.join(os.environ["TMPDIR"], "mine")),
    "need: read its source": lambda target: read(os.environ["NEXUS_SOURCE"] + "/agent.py"),
    "need: shared memory": lambda target: __import__("multiprocessing.shared_memory").shared_memory.SharedMemory(
        create=True, size=8
    ),
    "need: a subprocess": lambda target: __import__("subprocess").run([sys.executable, "-S", "-c", "pass"], check=True),
    "need: a shell": lambda target: __import__("subprocess").run(["/bin/sh", "-c", "exit 0"], check=True),
    "need: threads": lambda target: __import__("threading").Thread(target=int).start(),
    "need: random numbers": lambda target: read("/dev/urandom"),
    "need: a loopback of its own": lambda target: loopback(),
    "need: certificates": lambda target: os.listdir("/etc/ssl"),
    "need: its user's name": lambda target: __import__("pwd").getpwuid(os.getuid()).pw_name,
    "need: /dev/stdout": lambda target: open("/dev/stdout", "a").close(),
    "need: processors": lambda target: read("/sys/devices/system/cpu/online"),
    "need: memory figures": lambda target: read("/proc/meminfo"),
    "need: a FIFO": lambda target: os.mkfifo(os.environ["HOME"] + "/fifo"),
    "need: a netlink route socket": lambda target: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close(),
}
PROBES.update(NEEDED)


def loopback():
    with socket.create_server(("127.0.0.1", 0)) as server:
        connect(socket.AF_INET, server.getsockname())


def plant():
    """What a neighbour leaves lying about; kept until the process ends."""
    for path in (os.environ["HOME"] + "/flag", "/tmp/neighbours-flag", "/dev/shm/neighbours-flag"):
        try:
            with open(path, "w") as file:
                file.write("flag")
        except OSError:
            continue
    abstract = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        abstract.bind("\0neighbours-flag")
        abstract.listen()
    except OSError:
        pass
    port = socket.create_server(("127.0.0.1", 0))
    key = 0x6E657875
    LIBC.shmget(key, 4096, 0o1666)
    plant.kept = (abstract, port)
    return {
        "home": os.environ["HOME"],
        "source": os.environ["NEXUS_SOURCE"],
        "socket": os.environ["NEXUS_SOCKET"],
        "port": port.getsockname()[1],
        "key": key,
    }


def attempt(name, target):
    """`(verdict, what was said)` of one probe in a child, which may die of it."""
    heard, said = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(heard)
        signal.alarm(PATIENCE_S)
        try:
            answer = "allowed", repr(PROBES[name](target))[:200]
        except OSError as error:
            answer = "denied", errno.errorcode.get(error.errno or 0, str(error)) + f": {error.strerror}"
        except BaseException as error:
            answer = "denied", f"{type(error).__name__}: {error}"
        os.write(said, json.dumps(answer).encode())
        os._exit(0)
    os.close(said)
    with os.fdopen(heard, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if answer:
        return tuple(json.loads(answer))
    return "denied", f"killed by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "it ended"


def linger():
    """C10: a daemon that has left everything behind and hears no signal."""
    if os.fork() == 0:
        os.closerange(3, 1024)
        os.setsid()
        if os.fork() == 0:
            for number in range(1, 65):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    continue
            while True:
                signal.pause()
        os._exit(0)
    os.wait()


def run(given):
    if given["do"] == "plant":
        return plant()
    if given["do"] == "linger":
        return linger()
    found = {}
    for name in PROBES:
        verdict, said = attempt(name, given["target"])
        print(json.dumps({"message": json.dumps({"probe": name, "verdict": verdict, "said": said})}), flush=True)
        found[name] = [verdict, said]
    return found
