"""Where the time of a live session's reply goes: a plain echo, a graph without memory, a graph with the platform's, in turn.

Each has one session that is alive and warm. CPU is that of the host's processes, from `/proc`, divided by the runs; on a busy
machine it says more than the times, and `least` more than the median.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nexus.kit import home as homes

CONFIG = """name: {name}
version: 1.0.0
entrypoint: agent:agent
hosting:
  isolation: session
  memory: 512Mi
  session: {{freeze_after: 1h, stop_after: 2h}}
"""
ECHO = "async def agent(input):\n    return {'output': 'hello'}\n"
_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
_WARM = 30
_KINDS = ("echo", "graph-alone", "graph-memory")
Ask = Callable[[str, str, Any, str], tuple[int, Any]]


def sources(graph: str) -> dict[str, str]:
    """The agents' code by name; `graph` is that of the bench."""
    alone = graph.replace("graph.compile()", "graph.compile(checkpointer=False)")
    return dict(zip(_KINDS, (ECHO, alone, graph), strict=True))


def write(folder: Path, name: str, code: str) -> Path:
    """A project to deploy."""
    project = folder / name
    project.mkdir()
    (project / "config.yaml").write_text(CONFIG.format(name=name))
    (project / "agent.py").write_text(code)
    (project / "requirements.txt").write_text("" if code is ECHO else "langgraph\n")
    return project


def measure(ask: Ask, home: homes.Home, say: Callable[[str, Any], None], *, runs: int) -> None:
    """Agents of these names are deployed."""
    times: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    used: dict[str, dict[str, float]] = {kind: {} for kind in _KINDS}
    for kind in _KINDS:
        for _ in range(_WARM):
            _reply(ask, kind)
    for _ in range(5):  # in turn, so that what else the machine does hits all of them
        for kind in _KINDS:
            before = cpu_ms(home)
            times[kind] += [_reply(ask, kind) for _ in range(runs // 5)]
            for process, spent in cpu_ms(home).items():
                used[kind][process] = used[kind].get(process, 0.0) + spent - before.get(process, 0.0)
    for kind in _KINDS:
        ordered = sorted(times[kind])
        told = {
            "p50_ms": round(statistics.median(ordered), 2),
            "p99_ms": round(ordered[int(len(ordered) * 0.99)], 2),
            "least_ms": round(ordered[0], 2),
        }
        each = {f"cpu_{process}_ms": round(used[kind][process] / len(ordered), 2) for process in sorted(used[kind])}
        say(f"reply: {kind}", told | {name: value for name, value in each.items() if value > 0})


def cpu_ms(home: homes.Home) -> dict[str, float]:
    """Milliseconds of CPU so far of the host's processes: gateway, control, postgres, worker."""
    found = dict.fromkeys(("control", "gateway", "postgres", "worker"), 0.0)
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            kind = _kind(folder, home)
            if kind:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                found[kind] += (int(fields[11]) + int(fields[12])) * _TICK_MS
        except (OSError, IndexError):
            continue  # it has ended
    return found


def _kind(folder: Path, home: homes.Home) -> str:
    command = (folder / "cmdline").read_bytes()
    if command.startswith(b"postgres:"):
        works_at = (folder / "cwd").resolve()
        return "postgres" if any(works_at.is_relative_to(place) for place in _places(home)) else ""
    root = bytes(home.root)
    if root not in command and b"NEXUS_HOME=" + root not in (folder / "environ").read_bytes():
        return ""
    kinds = {b"nexus.apps.control": "control", b"nexus.apps.gateway": "gateway", b"/environments/": "worker"}
    return next((kind for sign, kind in kinds.items() if sign in command), "")


def _places(home: homes.Home) -> list[Path]:
    """Where this home's PostgreSQL works: below it, or outside when root has it."""
    told = home.root / "postgres.json"
    outside = json.loads(told.read_text()).get("outside") if told.exists() else ""
    return [home.root, *([Path(outside)] if outside else [])]


def _reply(ask: Ask, kind: str) -> float:
    began = time.perf_counter()
    status, told = ask("POST", f"/agents/{kind}/run", {"input": {"input": "hello"}}, "live")
    took = (time.perf_counter() - began) * 1000
    if status != 200:
        raise SystemExit(f"a run failed: {status} {told}")
    return took
