"""One session floods, its neighbours are timed: memory, processes, descriptors, inodes, disk, output, short lines, CPU.

    .venv/bin/python -m benchmarks.sessions.neighbours [--seconds 5] [--rounds 3] [--neighbours 8] [--only cpu] [--json FILE]

Each flood has rounds of two windows: the neighbours alone, and then beside a session that begins to flood. Prints the latencies
of both, their ratio, the supervisor's longest silence meanwhile, and what became of the session that flooded.
"""

import argparse
import json
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.sessions.alive import ask_supervisor
from benchmarks.sessions.run import Host, running, spread

AGENT = """
import os, sys, time

def agent(input):
    do = input["do"]
    if do == "memory":
        held = []
        while True:
            held.append(os.urandom(1 << 20) * 32)
    if do == "processes":
        while True:
            if os.fork() == 0:
                time.sleep(600)
    if do == "descriptors":
        held = []
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    if do == "inodes":
        for number in range(10**9):
            open(f"/tmp/{number}", "w").close()
    if do == "disk":
        with open(os.path.expanduser("~/flood"), "wb", buffering=0) as file:
            while True:
                file.write(b"x" * (1 << 20))
    if do == "output":
        while True:
            print("x" * 4000)
    if do == "lines":
        while True:
            os.write(1, b"x\\n" * 2000)
    if do == "cpu":
        while True:
            pass
    return "hello"
"""
CONFIG = """name: flood
version: 1.0.0
entrypoint: agent:agent
hosting:
  isolation: session
  memory: 256Mi
  cpu: 500m
  timeout: {seconds}s
  session: {{freeze_after: 1h, stop_after: 2h}}
"""
FLOODS = ("memory", "processes", "descriptors", "inodes", "disk", "output", "lines", "cpu")


def reply(host: Host, session: str) -> float:
    began = time.perf_counter()
    status, told = host.ask("POST", "/agents/flood/run", {"input": {"do": "hello"}}, session)
    if status != 200:
        raise SystemExit(f"a neighbour's run failed: {status} {told}")
    return (time.perf_counter() - began) * 1000


def watch(host: Host, names: list[str], seconds: float) -> list[float]:
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        times.extend(reply(host, name) for name in names)
        time.sleep(0.005)
    return times


class Flood:
    """One session that floods, from `start` to `end`, and how long the supervisor kept others waiting meanwhile."""

    def __init__(self, host: Host, kind: str, number: int) -> None:
        self._host, self._kind, self._session = host, kind, f"flood-{kind}-{number}"
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._run, self._listen)]
        self.told = ""
        self.longest_ms = 0.0

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._over.set()
        self._host.ask("POST", f"/v1/agents/flood/sessions/{self._session}/kill")
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        other = Host(self._host.folder)
        other.port = self._host.port
        status, body = other.ask("POST", "/agents/flood/run", {"input": {"do": self._kind}}, self._session)
        self.told = f"{status} {body.get('code') or ''}: {body.get('cause') or body.get('detail') or ''}"[:120]

    def _listen(self) -> None:
        while not self._over.is_set():
            self.longest_ms = max(self.longest_ms, ask_supervisor(self._host))
            time.sleep(0.01)


def measure(host: Host, names: list[str], kind: str, options: argparse.Namespace) -> dict[str, Any]:
    alone: list[float] = []
    beside: list[float] = []
    longest, told = 0.0, ""
    for number in range(options.rounds):
        alone += watch(host, names, options.seconds)
        flood = Flood(host, kind, number)
        flood.start()
        beside += watch(host, names, options.seconds)
        flood.end()
        longest, told = max(longest, flood.longest_ms), flood.told
    one, other = spread(alone), spread(beside)
    ratios = {f"{part}_ratio": round(other[f"{part}_ms"] / one[f"{part}_ms"], 2) for part in ("p50", "p99")}
    return {"alone": one, "beside": other, **ratios, "supervisor_longest_ms": round(longest, 1), "end": told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--neighbours", type=int, default=8)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(FLOODS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    told: dict[str, Any] = {}
    with running(Host) as host:
        project = host.folder / "flood"
        project.mkdir()
        (project / "config.yaml").write_text(CONFIG.format(seconds=int(options.seconds) + 5))
        (project / "agent.py").write_text(AGENT)
        host.nexus("ai", "agent", "deploy", "--path", str(project), "--env", "production", "--json")
        names = [f"neighbour-{number}" for number in range(options.neighbours)]
        watch(host, names, 1.0)
        print("flood         alone p50  p99 ms beside p50  p99 ms ratio p50   p99  silence")
        for kind in options.only:
            one = told[kind] = measure(host, names, kind, options)
            alone, beside = one["alone"], one["beside"]
            print(
                f"{kind:12} {alone['p50_ms']:10.2f} {alone['p99_ms']:7.2f} {beside['p50_ms']:10.2f} {beside['p99_ms']:7.2f}"
                f" {one['p50_ratio']:9.2f} {one['p99_ratio']:5.2f} {one['supervisor_longest_ms']:8.1f}  {one['end']}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
