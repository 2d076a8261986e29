"""The seccomp filter of the box as a BPF program, assembled here: pure. x86-64 and aarch64.

A deny-list over the whole table, in two strengths; argument checks for `socket`, `clone`, `ioctl` and `personality`. `clone3`
passes its flags in memory that a filter cannot read, so it is answered ENOSYS and every C library falls back to `clone`.
Numbers newer than this file are answered ENOSYS: what nobody has judged does not exist.
Source: linux/filter.h, linux/seccomp.h, asm/unistd_64.h and asm-generic/unistd.h of Linux 6.18.
"""

import struct

_LD_W_ABS, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NR, _ARCH, _ARG0_LOW, _ARG1_LOW, _ARG2_LOW = 0, 4, 16, 24, 32
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
_LATEST = 469  # file_setattr
_X32 = 0x40000000
ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6; AF_NETLINK only for routes
_AF_NETLINK, _NETLINK_ROUTE = 16, 0
_NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag that clone takes
_TERMINAL_INJECTION = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX

# name: (x86-64, aarch64); None where the architecture has no such call
ALWAYS = {
    "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280), "clock_adjtime": (305, 266),
    "clock_settime": (227, 112), "create_module": (174, None), "delete_module": (176, 106), "fanotify_init": (300, 262),
    "finit_module": (313, 273), "get_kernel_syms": (177, None), "init_module": (175, 105), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "io_uring_setup": (425, 425), "ioperm": (173, None), "iopl": (172, None),
    "kexec_file_load": (320, 294), "kexec_load": (246, 104), "keyctl": (250, 219), "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None), "move_pages": (279, 239), "name_to_handle_at": (303, 264), "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265), "perf_event_open": (298, 241), "query_module": (178, None), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "reboot": (169, 142), "request_key": (249, 218), "setdomainname": (171, 162),
    "sethostname": (170, 161), "settimeofday": (164, 170), "swapoff": (168, 225), "swapon": (167, 224), "syslog": (103, 116),
    "_sysctl": (156, None), "uselib": (134, None), "userfaultfd": (323, 282), "ustat": (136, None), "vhangup": (153, 58),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "setns": (308, 268), "lsm_set_self_attr": (460, 460),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "open_tree_attr": (467, 467), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41),
}  # fmt: skip
RESTRICTED = {
    "chroot": (161, 51), "kcmp": (312, 272), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "ptrace": (101, 117), "unshare": (272, 97),
}  # fmt: skip
FURNISHING = frozenset({"mount", "open_tree", "move_mount", "mount_setattr", "sethostname", "unshare"})
_CLONE3, _CLONE, _SOCKET = 435, (56, 220), (41, 198)
_SOCKETPAIR, _IOCTL, _PERSONALITY = (53, 199), (16, 29), (135, 92)


def build(machine: str, *, restricted: bool, furnishes: bool = False) -> bytes:
    """The program for this machine; KeyError for one it is not written for.

    `furnishes`: for a zygote, whose children mount what is a session's own in namespaces of their own.
    """
    column = 0 if machine == "x86_64" else 1
    denied = {**ALWAYS, **(RESTRICTED if restricted else {})}
    if furnishes:
        denied = {name: numbers for name, numbers in denied.items() if name not in FURNISHING}
    code = [
        _op(_LD_W_ABS, _ARCH),
        _op(_JEQ, ARCHES[machine], 1, 0),
        _op(_RET, _KILL),
        _op(_LD_W_ABS, _NR),
        *_unless(_JGE, _LATEST + 1, _op(_RET, _ERRNO | _ENOSYS)),  # the x32 calls are above it too
        *_unless(_JEQ, _CLONE3, _op(_RET, _ERRNO | _ENOSYS)),
    ]
    for numbers in denied.values():
        if (number := numbers[column]) is not None:
            code += _unless(_JEQ, number, _op(_RET, _ERRNO | _EPERM))
    if restricted:
        code += _for(_CLONE[column], [_op(_LD_W_ABS, _ARG0_LOW), *_when(_JSET, _NEW_NAMESPACES, _EPERM), _op(_RET, _ALLOW)])
    code += _for(_SOCKET[column], _families())
    code += _for(_SOCKETPAIR[column], _families())
    injection = [part for number in _TERMINAL_INJECTION for part in _when(_JEQ, number, _EPERM)]
    code += _for(_IOCTL[column], [_op(_LD_W_ABS, _ARG1_LOW), *injection, _op(_RET, _ALLOW)])
    if restricted:
        usual = [part for value in (0, 0xFFFFFFFF) for part in (_op(_JEQ, value, 0, 1), _op(_RET, _ALLOW))]
        code += _for(_PERSONALITY[column], [_op(_LD_W_ABS, _ARG0_LOW), *usual, _op(_RET, _ERRNO | _EPERM)])
    return b"".join([*code, _op(_RET, _ALLOW)])


def _families() -> list[bytes]:
    code = [_op(_LD_W_ABS, _ARG0_LOW)]
    for family in FAMILIES:
        code += [_op(_JEQ, family, 0, 1), _op(_RET, _ALLOW)]
    code += [_op(_JEQ, _AF_NETLINK, 1, 0), _op(_RET, _ERRNO | _EAFNOSUPPORT)]
    return [
        *code,
        _op(_LD_W_ABS, _ARG2_LOW),
        _op(_JEQ, _NETLINK_ROUTE, 1, 0),
        _op(_RET, _ERRNO | _EAFNOSUPPORT),
        _op(_RET, _ALLOW),
    ]


def _op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _unless(test: int, value: int, action: bytes) -> list[bytes]:
    return [_op(test, value, 0, 1), action]


def _when(test: int, value: int, number: int) -> list[bytes]:
    return _unless(test, value, _op(_RET, _ERRNO | number))


def _for(number: int, block: list[bytes]) -> list[bytes]:
    """`block` when this is the call; each block ends by returning, so the accumulator still holds the number after it."""
    return [_op(_JEQ, number, 0, len(block)), *block]
