"""One session floods, its neighbours are timed: memory, processes, descriptors, inodes, disk, output, CPU.

    .venv/bin/python -m benchmarks.sessions.neighbours [--seconds 5] [--neighbours 8] [--json FILE]

Prints the neighbours' latencies alone and beside each flood, and what became of the session that flooded.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.sessions.run import Host, spread

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
FLOODS = ("memory", "processes", "descriptors", "inodes", "disk", "output", "cpu")


def reply(host: Host, session: str) -> float:
    began = time.perf_counter()
    status, told = host.ask("POST", "/agents/flood/run", {"input": {"do": "hello"}}, session)
    if status != 200:
        raise SystemExit(f"a neighbour's run failed: {status} {told}")
    return (time.perf_counter() - began) * 1000


def watch(host: Host, names: list[str], seconds: float) -> dict[str, float]:
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        times.extend(reply(host, name) for name in names)
        time.sleep(0.005)
    return spread(times)


def flood(host: Host, kind: str, told: dict[str, Any]) -> None:
    other = Host(host.folder)
    other.port = host.port
    status, body = other.ask("POST", "/agents/flood/run", {"input": {"do": kind}}, f"flood-{kind}")
    told[kind] = f"{status} {body.get('code') or ''}: {body.get('cause') or body.get('detail') or ''}"[:160]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--neighbours", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ends: dict[str, Any] = {}
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="nexus-bench-") as name:
        os.chmod(name, 0o755)
        host = Host(Path(name))
        host.up()
        try:
            project = host.folder / "flood"
            project.mkdir()
            (project / "config.yaml").write_text(CONFIG.format(seconds=int(options.seconds) + 5))
            (project / "agent.py").write_text(AGENT)
            host.nexus("ai", "agent", "deploy", "--path", str(project), "--env", "production", "--json")
            names = [f"neighbour-{number}" for number in range(options.neighbours)]
            watch(host, names, 1.0)
            alone = watch(host, names, options.seconds)
            print(f"{'alone':12} p50 {alone['p50_ms']} ms, p99 {alone['p99_ms']} ms", flush=True)
            for kind in FLOODS:
                thread = threading.Thread(target=flood, args=(host, kind, ends))
                thread.start()
                beside = watch(host, names, options.seconds)
                host.ask("POST", f"/v1/agents/flood/sessions/flood-{kind}/kill")
                thread.join()
                ratio = round(beside["p99_ms"] / alone["p99_ms"], 2)
                told[kind] = beside | {"p99_ratio": ratio, "end": ends.get(kind)}
                print(f"{kind:12} p50 {beside['p50_ms']} ms, p99 {beside['p99_ms']} ms ({ratio} x)  {ends.get(kind)}", flush=True)
        finally:
            host.nexus("down", "--force")
    if options.json:
        options.json.write_text(json.dumps({"alone": alone, "floods": told}, indent=2))


if __name__ == "__main__":
    main()
