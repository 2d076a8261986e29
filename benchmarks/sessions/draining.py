"""What an old version costs while its sessions go on there, and what it takes to wake it for one of them.

    .venv/bin/python -m benchmarks.sessions.draining [--sessions 20] [--wakes 5]

A host of its own, one LangGraph agent with `isolation: session`. Nothing is asserted: read the table.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.sessions import run as sessions

_PATIENCE_S = 60.0


def instances(host: sessions.Host, version: str) -> list[dict[str, Any]]:
    _, agent = host.ask("GET", "/v1/agents/graph")
    return [one for entry in agent["deployments"] for one in entry["instances"] if one["version"] == version]


def wait_gone(host: sessions.Host, version: str) -> float:
    """Seconds until no instance of the version is left."""
    began = time.perf_counter()
    while instances(host, version):
        if time.perf_counter() - began > _PATIENCE_S:
            raise SystemExit(f"an instance of {version} is still there after {_PATIENCE_S:g} s")
        time.sleep(0.05)
    return time.perf_counter() - began


def stop(host: sessions.Host, names: list[str]) -> None:
    for name in names:
        host.ask("POST", f"/v1/agents/graph/sessions/{name}/stop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--wakes", type=int, default=5)
    options = parser.parse_args()
    with sessions.running(sessions.Host) as host:
        host.deploy(warm=0, freeze="1h")
        old = [f"old-{number}" for number in range(options.sessions)]
        first = [host.reply(name) for name in old]
        alone = [host.reply(name) for name in old for _ in range(5)]
        _, shown = host.ask("GET", f"/v1/agents/graph/sessions/{old[0]}")
        version = shown["version"]
        began = time.perf_counter()
        host.deploy(warm=0, freeze="1h")
        rolled = time.perf_counter() - began
        drained = [host.reply(name) for name in old for _ in range(5)]
        drainers = instances(host, version)
        _say("sessions on the old version", f"{len(old)}, first reply {_ms(first)}")
        _say("the deploy that replaced it", f"{rolled:.1f} s; of it are left: {', '.join(one['phase'] for one in drainers)}")
        _say("reply of a session before", _ms(alone))
        _say("reply of the same session while it drains", _ms(drained))
        memory = sum(one["memory_bytes"] for one in drainers)
        _say("memory of what drains, with its sessions", f"{memory / 2**20:.0f} MiB")
        stop(host, old)
        _say("from its last session's end to its own", f"{wait_gone(host, version):.1f} s")
        left = [one["pid"] for one in drainers if Path(f"/proc/{one['pid']}").exists()]
        _say("processes of it that are left", str(len(left)))
        wakes = []
        for name in old[: options.wakes]:
            wakes.append(host.reply(name))
            stop(host, [name])
            wait_gone(host, version)
        _say(f"reply that wakes the old version ({len(wakes)} times)", _ms(wakes))


def _ms(times: list[float]) -> str:
    return f"p50 {statistics.median(times):.1f} ms, most {max(times):.1f} ms"


def _say(what: str, value: str) -> None:
    print(f"{what:<52} {value}", flush=True)


if __name__ == "__main__":
    main()
