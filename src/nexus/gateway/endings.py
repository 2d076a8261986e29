"""How a run ended, as far as its worker's answer tells: read from headers and from a stream's last event as they pass."""

import re

_TERMINAL_EVENT = re.compile(rb"^event: run\.(failed|cancelled)\r?$", re.MULTILINE)
_EVENT_CODE = re.compile(rb'"code": ?"([a-z0-9_.]{1,80})"')
_EVENT_CPU = re.compile(rb'"cpu_s": ?(\d{1,9}(?:\.\d{1,9})?)')
_CODE = re.compile(rb"[a-z0-9_.]{1,80}")
_USAGE = re.compile(rb"cpu_s=(\d{1,9}(?:\.\d{1,9})?)")


def read_usage(value: bytes) -> float | None:
    """The seconds of CPU in a worker's `Nexus-Usage`; None when it says something else."""
    found = _USAGE.fullmatch(value)
    return None if found is None else float(found[1])


class Ending:
    """`outcome` is `failed` or `cancelled` where a stream said so, else empty; `code` of its problem; `cpu_s` that it used."""

    __slots__ = ("code", "cpu_s", "outcome")

    def __init__(self) -> None:
        self.outcome = self.code = ""
        self.cpu_s: float | None = None

    def read_header(self, name: bytes, value: bytes) -> None:
        if name == b"nexus-error-code" and _CODE.fullmatch(value):
            self.code = value.decode("ascii")
        elif name == b"nexus-usage" and (used := read_usage(value)) is not None:
            self.cpu_s = used

    def read_problem(self, part: bytes) -> None:
        """A part of a problem's body."""
        if not self.code and (code := _EVENT_CODE.search(part)) is not None:
            self.code = code[1].decode("ascii")

    def read_events(self, part: bytes) -> None:
        """A part of a stream. It ends in one terminal event; one that is not `run.completed` is how the run ended."""
        if b"event: run." not in part:
            return
        found = _TERMINAL_EVENT.search(part)
        if found is not None:
            self.outcome = found[1].decode("ascii")
            code = _EVENT_CODE.search(part, found.end())
            self.code = code[1].decode("ascii") if code is not None else f"run.{self.outcome}"
        elif (at := part.rfind(b"event: run.completed")) >= 0 and (told := _EVENT_CPU.findall(part, at)):
            self.cpu_s = float(told[-1])
