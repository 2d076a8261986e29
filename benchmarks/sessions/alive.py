"""What grows with the number of sessions alive: a start, the supervisor's longest silence, the CPU of a second without requests.

    .venv/bin/python -m benchmarks.sessions.alive [--steps 50,500,2000] [--starts 100] [--seconds 10] [--json FILE]

At each step so many sessions live. The supervisor is asked for its health every five milliseconds: how long the answer takes
tells how long anything waits for it. CPU is counted for each kind of process, and for the kernel's monitor of memory (`kdamond`)
where it runs, whose work grows with the processes that share a page.
"""

import argparse
import json
import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.sessions.run import Host, running, spread

_KINDS = ("postgres", "control", "supervisor", "gateway", "dispatcher", "session_boot", "keeper")


def tree(top: int) -> Iterator[int]:
    """A process and all below it."""
    yield top
    for thread in Path(f"/proc/{top}/task").iterdir():
        for child in (thread / "children").read_text().split():
            yield from tree(int(child))


def cpu_s(pid: int) -> float:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def kind_of(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    return next((kind for kind in _KINDS if kind in words), "other")


def look(top: int) -> dict[int, tuple[str, float]]:
    """Kind and CPU seconds of each process of the host, and of the kernel's monitor."""
    found: dict[int, tuple[str, float]] = {}
    monitors = [int(name) for name in os.listdir("/proc") if name.isdigit() and _name(name).startswith("kdamond")]
    for pid in [*tree(top), *monitors]:
        try:
            found[pid] = ("kdamond" if pid in monitors else kind_of(pid), cpu_s(pid))
        except OSError:
            continue
    return found


def _name(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def spent(before: dict[int, tuple[str, float]], after: dict[int, tuple[str, float]], per: float) -> dict[str, float]:
    """Milliseconds of CPU for each kind; processes that were not there before count whole."""
    told: defaultdict[str, float] = defaultdict(float)
    for pid, (kind, used) in after.items():
        told[kind] += (used - before.get(pid, (kind, 0.0))[1]) * 1000 / per
    return {kind: round(used, 2) for kind, used in sorted(told.items()) if used >= 0.05}


def ask_supervisor(host: Host) -> float:
    """Milliseconds until it has told its health."""
    began = time.perf_counter()
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(host.home.supervisor_socket))
        asking.sendall(b"GET /health HTTP/1.1\r\nHost: supervisor\r\nConnection: close\r\n\r\n")
        while asking.recv(4096):
            pass
    return (time.perf_counter() - began) * 1000


def listen_for_silence(host: Host, seconds: float) -> dict[str, float]:
    """Milliseconds until the supervisor answers."""
    times = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        times.append(ask_supervisor(host))
        time.sleep(0.005)
    return spread(times) | {"longest_ms": round(max(times), 2)}


def measure(host: Host, top: int, *, starts: int, seconds: float) -> dict[str, Any]:
    time.sleep(2.0)
    before = look(top)
    time.sleep(seconds)
    idle = spent(before, look(top), seconds)
    answers = listen_for_silence(host, seconds)
    before = look(top)
    times = [host.new() for _ in range(starts)]
    return {
        "start": spread(times),
        "supervisor_answers": answers,
        "cpu_ms_of_an_idle_second": idle,
        "cpu_ms_of_a_start": spent(before, look(top), starts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=lambda text: [int(one) for one in text.split(",")], default=[50, 500, 2000])
    parser.add_argument("--starts", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    told: dict[int, Any] = {}
    with running(Host) as host:
        top = int(json.loads((host.home.root / "host.json").read_text())["pid"])
        host.deploy(warm=0, freeze="1h")
        alive = 0
        for step in options.steps:
            while alive < step:
                host.new()
                alive += 1
            told[step] = measure(host, top, starts=options.starts, seconds=options.seconds)
            alive += options.starts
            print(f"{step} alive", flush=True)
            for what, value in told[step].items():
                print(f"  {what:26} {', '.join(f'{key} {one}' for key, one in value.items())}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
