"""What the worker adds to an agent's own imports: processor time until it is ready, and memory, for each framework's example.

`make bench-frameworks [ONLY="langgraph agno"] [BENCH_ARGS="--rounds 7"]`. For each example, in the environment its own
requirements make, two kinds of process are started in turn: a plain interpreter that imports the example (and the modules that
its framework imports at the first run), and the worker with the same example, with its doors. Both are read from outside once
they are ready: /proc/<pid>/task/*/schedstat for time on the processor (not the clock, so other programs matter little),
/proc/<pid>/statm for resident memory. Time is the least of all rounds, because noise only adds to it; memory the median. The
first row has no framework: there the worker's event loop and server are nearly all there is, so it is shown and not judged.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nexus.drivers.process import environment_plans, environments, indexes
from nexus.worker import bundle

EXAMPLES = Path(__file__).parents[2] / "examples"
MOST_MS, MOST_BYTES = 60.0, 10 * 1024**2
_PAGE = os.sysconf("SC_PAGE_SIZE")
_READY_S = 120.0
_NONE = "no framework"
PLAIN = """
import importlib, os, sys
sys.path[:] = [os.environ["LIB"], os.getcwd(), *sys.path]
module, _, attribute = sys.argv[1].partition(":")
getattr(importlib.import_module(module), attribute)
for name in sys.argv[2:]:
    importlib.import_module(name)
if "openai" in sys.modules:
    importlib.import_module("openai.resources.chat")
open(os.environ["READY"], "w").write("ready")
sys.stdin.read()
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """`also` is what the framework itself imports when it is run for the first time: the worker does so before it is ready.
    `before` keeps an example from starting its own server."""

    folder: str
    entrypoint: str = "agent:agent"
    also: tuple[str, ...] = ()
    before: str = ""


CASES = {
    _NONE: Case(folder="echo", entrypoint="agent:run", also=("asyncio",)),
    "langgraph": Case(folder="langgraph-agent", entrypoint="agent:graph", also=("langgraph.checkpoint.memory",)),
    "openai-agents": Case(folder="openai-agents"),
    "google-adk": Case(
        folder="google-adk",
        also=(
            "google.adk.runners",
            "google.adk.sessions",
            "google.adk.artifacts",
            "google.adk.memory",
            "google.adk.workflow._workflow",
            "litellm.llms.openai.openai",
            "litellm.responses.mcp.chat_completions_handler",
        ),
    ),
    "crewai": Case(folder="crewai", also=("crewai.events.stream_context",)),
    "claude-agent": Case(folder="claude-agent"),
    "anthropic": Case(folder="anthropic"),
    "pydantic-ai": Case(folder="pydantic-ai", also=("pydantic_ai.messages",)),
    "strands": Case(folder="strands"),
    "agno": Case(folder="agno"),
    "agent-framework": Case(folder="agent-framework"),
    "llama-index": Case(folder="llama-index"),
    "smolagents": Case(folder="smolagents"),
    "asgi": Case(folder="asgi", entrypoint="agent:app"),
    "agentcore": Case(folder="agentcore", entrypoint="agent:app"),
    "foundry": Case(folder="foundry", entrypoint="agent:app", before="import asyncio; asyncio.run = lambda work: work.close()"),
}


@dataclass(frozen=True)
class Reading:
    cpu_ms: float
    resident: int


class Bench:
    def __init__(self, folder: Path, home: Path) -> None:
        self._folder = folder
        self._copy = bundle.build_worker_copy(folder / "copies")
        variables = indexes.plan_environ(os.environ, indexes.read_pip_files(indexes.pip_files(os.environ)))
        home.mkdir(parents=True, exist_ok=True)
        self._builder = environments.Environments(home, environ=variables, timeout_s=1800)

    async def python(self, case: Case) -> Path:
        source = EXAMPLES / case.folder
        plan = environment_plans.plan_environment(
            source, package_digest=str(source), host_python=environments.host_python(), python=None
        )
        return await self._builder.ensure(plan, lambda step, detail: None) / "bin" / "python"

    def measure(self, python: Path, case: Case, rounds: int) -> list[tuple[Reading, Reading]]:
        """Pairs of (plain, worker), after one of each that fills the caches."""
        pairs = [(self._plain(python, case), self._worker(python, case)) for _ in range(rounds + 1)]
        return pairs[1:]

    def _plain(self, python: Path, case: Case) -> Reading:
        mark = self._folder / "ready"
        mark.unlink(missing_ok=True)
        command = [str(python), "-P", "-c", case.before + PLAIN, case.entrypoint, *case.also]
        variables = {"READY": str(mark), "LIB": str(self._copy / "lib")}
        return self._read(command, case, variables, lambda: mark.exists() and mark.stat().st_size > 0)

    def _worker(self, python: Path, case: Case) -> Reading:
        status = self._folder / "status.json"
        status.unlink(missing_ok=True)
        variables = {
            "NEXUS_SOURCE": str(EXAMPLES / case.folder),
            "NEXUS_ENTRYPOINT": case.entrypoint,
            "NEXUS_SOCKET": str(self._folder / "w.sock"),
            "NEXUS_STATUS_FILE": str(status),
            "NEXUS_DOOR": str(self._folder / "door.sock"),
            "NEXUS_TOKEN": "nxi_bench",
            "NEXUS_AGENT": "bench",
            "NEXUS_AGENT_VERSION": "1.0.0",
        }

        def ready() -> bool:
            return status.exists() and json.loads(status.read_text())["phase"] == "ready"

        return self._read([str(python), "-P", str(self._copy / "boot.py")], case, variables, ready)

    def _read(self, command: list[str], case: Case, variables: dict[str, str], ready: Callable[[], bool]) -> Reading:
        common = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "OPENAI_API_KEY": "sk-bench",
            "ANTHROPIC_API_KEY": "sk-bench",
            "AGNO_TELEMETRY": "false",
            "CREWAI_DISABLE_TELEMETRY": "true",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "PYTHONDONTWRITEBYTECODE": "",
        }
        with (self._folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=EXAMPLES / case.folder, env=common | variables, stdin=subprocess.PIPE, stdout=log, stderr=log
            )
            try:
                end = time.monotonic() + _READY_S
                while not ready():
                    if process.poll() is not None or time.monotonic() > end:
                        raise SystemExit((self._folder / "log").read_text()[-4000:])
                    time.sleep(0.005)
                time.sleep(0.05)
                return _reading(process.pid)
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()


def _reading(pid: int) -> Reading:
    tasks = (path.read_text().split()[0] for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return Reading(sum(int(spent) for spent in tasks) / 1e6, resident)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=os.environ.get("ONLY", "").split(), help="these frameworks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--home", type=Path, help="where environments are kept between runs")
    arguments = parser.parse_args()
    home = arguments.home or Path(
        os.environ.get("NEXUS_FRAMEWORKS_HOME") or Path(tempfile.gettempdir(), f"nexus-frameworks-{os.getuid()}")
    )
    folder = Path(tempfile.mkdtemp(prefix="nxb-", dir="/tmp"))
    worst_ms, worst_bytes = 0.0, 0
    print(f"{'framework':<16} {'own import':>12} {'worker adds':>12} {'own memory':>12} {'worker adds':>12}")
    try:
        bench = Bench(folder, home)
        for name in arguments.only or CASES:
            case = CASES[name]
            pairs = bench.measure(asyncio.run(bench.python(case)), case, arguments.rounds)
            own_ms = min(plain.cpu_ms for plain, _ in pairs)
            own = statistics.median(plain.resident for plain, _ in pairs)
            added_ms = min(worker.cpu_ms for _, worker in pairs) - own_ms
            added = int(statistics.median(worker.resident - plain.resident for plain, worker in pairs))
            if name != _NONE:
                worst_ms, worst_bytes = max(worst_ms, added_ms), max(worst_bytes, added)
            memory = f"{own / 1024**2:>8.1f} MiB {added / 1024**2:>8.1f} MiB"
            print(f"{name:<16} {own_ms:>9.0f} ms {added_ms:>9.1f} ms {memory}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"most: {worst_ms:.1f} ms (floor {MOST_MS:.0f}), {worst_bytes / 1024**2:.1f} MiB (floor {MOST_BYTES / 1024**2:.0f})")
    return 0 if worst_ms <= MOST_MS and worst_bytes <= MOST_BYTES else 1


if __name__ == "__main__":
    raise SystemExit(main())
