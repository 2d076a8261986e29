"""What a new session costs whatever else the machine does: CPU by process, page faults, and the memory that is its own.

    .venv/bin/python -m benchmarks.sessions.cost [--count 40] [--json FILE]

A host of its own, one LangGraph agent with `isolation: session`. Each session is new and answers one graph run; the same is asked
of a session that lives, so that the difference is what a start adds. Needs Linux, and root to see into the sessions.
"""

import argparse
import collections
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.sessions import run as sessions

_ROLES = ("gateway", "control", "supervisor", "postgres", "session_boot")
_PAUSE_S = 0.15


def children(pid: int) -> list[int]:
    try:
        files = list(Path(f"/proc/{pid}/task").glob("*/children"))
        return [int(one) for file in files for one in file.read_text().split()]
    except OSError:
        return []


def below(pid: int) -> Iterator[int]:
    for child in children(pid):
        yield child
        yield from below(child)


def role_of(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return "gone"
    return next((role for role in _ROLES if role in command), "other")


def cpu_ms(pid: int) -> float:
    try:
        threads = list(Path(f"/proc/{pid}/task").glob("*/schedstat"))
        return sum(int(file.read_text().split()[0]) for file in threads) / 1e6
    except OSError:
        return 0.0


def faults(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


def private_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty:", "Private_Clean:")))


class Watch:
    """The processes of one host. A session's are a keeper, whose parent is a zygote, and its worker."""

    def __init__(self, root: int) -> None:
        self._root = root

    def boxes(self) -> list[tuple[int, int]]:
        zygotes = [pid for pid in below(self._root) if role_of(pid) == "session_boot" and self._is_zygote(pid)]
        keepers = [(keeper, children(keeper)) for zygote in zygotes for keeper in children(zygote)]
        return [(keeper, workers[0]) for keeper, workers in keepers if workers]

    def _is_zygote(self, pid: int) -> bool:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return role_of(parent) != "session_boot"

    def used(self) -> dict[str, float]:
        """CPU ms so far of what is there all the time: the host's own processes and zygotes."""
        told: dict[str, float] = collections.defaultdict(float)
        sessions_ = {pid for box in self.boxes() for pid in box}
        for pid in set(below(self._root)) - sessions_:
            told[role_of(pid).replace("session_boot", "zygote")] += cpu_ms(pid)
        return told


def measure(host: sessions.Host, watch: Watch, *, count: int, how: str) -> dict[str, Any]:
    """The mean CPU of one request by process, above what the host uses without any; `how` is `fork`, `spare` or `live`."""
    before, began = watch.used(), time.monotonic()
    time.sleep(count * _PAUSE_S)
    idle, idle_s = minus(watch.used(), before), time.monotonic() - began
    known = watch.boxes()
    at_first = [inside(box) for box in known]
    before, began = watch.used(), time.monotonic()
    for _ in range(count):
        host.reply("first") if how == "live" else host.new()
        time.sleep(_PAUSE_S)
    used, took_s = minus(watch.used(), before), time.monotonic() - began
    told: dict[str, Any] = {role: round((used[role] - idle.get(role, 0.0) * took_s / idle_s) / count, 2) for role in sorted(used)}
    if how == "fork":
        new = [box for box in watch.boxes() if box not in known]
        middle = statistics.median
        return told | {
            "keeper": round(middle(cpu_ms(keeper) for keeper, _ in new), 2),
            "worker": round(middle(cpu_ms(worker) for _, worker in new), 2),
            "keeper_faults": middle(faults(keeper) for keeper, _ in new),
            "worker_faults": middle(faults(worker) for _, worker in new),
            "keeper_MiB": round(middle(private_kib(keeper) for keeper, _ in new) / 1024, 2),
            "worker_MiB": round(middle(private_kib(worker) for _, worker in new) / 1024, 2),
        }
    spent = [(cpu - cpu0, faulted - faulted0) for box, (cpu0, faulted0) in zip(known, at_first, strict=True)
             for cpu, faulted in [inside(box)]]  # fmt: skip
    return told | {
        "session": round(sum(cpu for cpu, _ in spent) / count, 2),
        "session_faults": round(sum(faulted for _, faulted in spent) / count),
    }


def minus(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {role: value - before.get(role, 0.0) for role, value in after.items()}


def inside(box: tuple[int, int]) -> tuple[float, int]:
    """CPU and page faults of a box so far."""
    return sum(cpu_ms(pid) for pid in box), sum(faults(pid) for pid in box)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    told: dict[str, Any] = {}
    with sessions.running(sessions.Host) as host:
        watch = Watch(int(json.loads((host.home.root / "host.json").read_text())["pid"]))
        for how, warm in (("fork", 0), ("live", 0), ("spare", options.count)):
            if how != "live":
                host.deploy(warm=warm, freeze="1h")
                host.reply("first")
                time.sleep(2.0 + 0.1 * warm)
            told[how] = measure(host, watch, count=options.count, how=how)
            print(f"{how:6} CPU ms a request: {told[how]}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
