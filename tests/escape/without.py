"""`python without.py LAYER -- COMMAND…`: run a command on a machine that refuses one layer, played by a filter of its own."""

import os
import struct
import sys

from nexus.drivers.process import box_calls, box_filter

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
_ENOSYS = 0x50000 | 38
UNSHARE, SECCOMP = {"x86_64": (272, 317), "aarch64": (97, 277)}[box_calls.machine]
# the call, and the one value of its first argument that is refused (None: every)
REFUSED = {
    "namespaces": (UNSHARE, None),
    "user": (UNSHARE, _NEW_USER),
    "network": (UNSHARE, _NEW_NET),
    "landlock": (444, None),
    "seccomp": (SECCOMP, None),
}


def build(layer: str) -> bytes:
    number, argument = REFUSED[layer]
    code = [(0x20, 0, 0, 0), (0x15, 0, 1 if argument is None else 3, number)]
    if argument is not None:
        code += [(0x20, 0, 0, 16), (0x15, 0, 1, argument)]
    code += [(0x06, 0, 0, _ENOSYS), (0x06, 0, 0, 0x7FFF0000)]
    return b"".join(struct.pack("=HBBI", *part) for part in code)


def main() -> None:
    assert box_calls.machine in box_filter.ARCHES
    box_calls.set_filter(build(sys.argv[1]))
    command = sys.argv[sys.argv.index("--") + 1 :]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
