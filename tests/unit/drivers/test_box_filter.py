"""The seccomp program, run by a small BPF machine: no kernel needed, so both architectures are judged everywhere."""

import struct

import pytest

from nexus.drivers.process import box_filter

ALLOW, KILL = 0x7FFF0000, 0x80000000
CALLS = {
    "x86_64": {"read": 0, "clone": 56, "clone3": 435, "socket": 41, "socketpair": 53, "ioctl": 16, "personality": 135, "mknod": 133},  # noqa: E501
    "aarch64": {"read": 63, "clone": 220, "clone3": 435, "socket": 198, "socketpair": 199, "ioctl": 29, "personality": 92, "mknod": 33},  # noqa: E501
}  # fmt: skip


def judge(machine: str, number: int, *args: int, restricted: bool = True, arch: int | None = None) -> int:
    """What the kernel would answer: an errno, `ALLOW` or `KILL`."""
    program = box_filter.build(machine, restricted=restricted)
    given = [*args, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, box_filter.ARCHES[machine] if arch is None else arch, 0, *given)
    at, value = 0, 0
    while True:
        code, yes, no, operand = struct.unpack_from("=HBBI", program, at * 8)
        at += 1
        if code == 0x20:
            value = struct.unpack_from("=I", data, operand)[0]
        elif code == 0x06:
            return operand & 0xFFFF if operand & 0xFFFF0000 == 0x50000 else operand
        else:
            holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
            at += yes if holds else no


MACHINES = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


@MACHINES
def test_every_listed_call_is_refused_and_baseline_gives_only_its_own_back(machine: str) -> None:
    column = 0 if machine == "x86_64" else 1
    for name, numbers in box_filter.ALWAYS.items():
        if numbers[column] is not None:
            assert judge(machine, numbers[column]) == 1, name
            assert judge(machine, numbers[column], restricted=False) == 1, name
    for name, numbers in box_filter.RESTRICTED.items():
        assert judge(machine, numbers[column]) == 1, name
        assert judge(machine, numbers[column], restricted=False) == ALLOW, name


@MACHINES
def test_ordinary_calls_pass_and_unknown_ones_do_not_exist(machine: str) -> None:
    calls = CALLS[machine]
    assert judge(machine, calls["read"]) == ALLOW
    assert judge(machine, calls["mknod"]) == ALLOW
    for number in (470, 1000, 0x7FFFFFFF, 0xFFFFFFFF, 0x40000000 + calls["read"], 0x40000000 + 101):
        assert judge(machine, number) == 38


@MACHINES
def test_another_architectures_calls_are_fatal(machine: str) -> None:
    for arch in (0x40000003, 0xC000003E, 0xC00000B7, 0x40000028, 0):
        if arch != box_filter.ARCHES[machine]:
            assert judge(machine, CALLS[machine]["read"], arch=arch) == KILL


@MACHINES
def test_only_three_socket_families_and_routes(machine: str) -> None:
    for call in ("socket", "socketpair"):
        allowed = [family for family in range(64) if judge(machine, CALLS[machine][call], family, 1, 0) == ALLOW]
        assert allowed == [1, 2, 10, 16]
        assert judge(machine, CALLS[machine][call], 16, 3, 9) == 97
        assert judge(machine, CALLS[machine][call], (1 << 32) | 40, 1, 0) == 97
        assert judge(machine, CALLS[machine][call], 0xFFFFFFFF, 1, 0) == 97


@MACHINES
def test_threads_and_forks_pass_but_no_new_namespace(machine: str) -> None:
    clone = CALLS[machine]["clone"]
    assert judge(machine, clone, 17) == ALLOW
    assert judge(machine, clone, 0x3D0F00) == ALLOW  # what glibc's pthread_create asks for
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert judge(machine, clone, flag | 17) == 1
        assert judge(machine, clone, flag | 17, restricted=False) == ALLOW
    assert judge(machine, CALLS[machine]["clone3"]) == 38
    assert judge(machine, CALLS[machine]["clone3"], restricted=False) == 38


@MACHINES
def test_nobody_types_into_a_terminal_or_changes_personality(machine: str) -> None:
    calls = CALLS[machine]
    assert judge(machine, calls["ioctl"], 0, 0x5401) == ALLOW
    for command in (0x5412, 0x541C, 0xFFFFFFFF00005412):
        assert judge(machine, calls["ioctl"], 0, command) == 1
    assert judge(machine, calls["personality"], 0xFFFFFFFF) == ALLOW
    assert judge(machine, calls["personality"], 0x0400000) == 1


def test_a_machine_it_is_not_written_for_has_no_program() -> None:
    with pytest.raises(KeyError):
        box_filter.build("riscv64", restricted=True)
