"""What a session of its own costs: its start beside `bwrap` + import and `runc`, with many alive, its memory, its freezing.

    .venv/bin/python -m benchmarks.sessions.run [--alive 500] [--many 2000] [--rounds 15] [--only start,spare,alive,freeze,others,
                                                replies]
                                                [--json FILE]

A host of its own on a port of its own, one LangGraph agent with `isolation: session`. Every session is new to the host and
answers one graph run through the gateway, as a client sees it. Nothing is asserted: read the table.
"""

import argparse
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.sessions import others, replies

from nexus.kit import home as homes

AGENT = """
from langgraph.graph import END, START, StateGraph
from typing import Any, TypedDict

class State(TypedDict, total=False):
    input: Any
    output: Any

graph = StateGraph(State)
graph.add_node("echo", lambda state: {"output": "hello"})
graph.add_edge(START, "echo")
graph.add_edge("echo", END)
agent = graph.compile()
agent.invoke({"input": "warm"})
"""
CONFIG = """name: graph
version: 1.0.0
entrypoint: agent:agent
hosting:
  isolation: session
  memory: 512Mi
  session: {{freeze_after: {freeze}, stop_after: 2h, most: 20000, warm: {warm}}}
"""
PARTS = ("others", "start", "spare", "alive", "many", "freeze", "replies")


class Host:
    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, homes.Home(folder / "home")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("NEXUS_")}
        self.environment["NEXUS_HOME"] = str(self.home.root)
        self.port = 0
        self.count = 0
        self._connection: http.client.HTTPConnection | None = None

    def nexus(self, *arguments: str) -> Any:
        command = [sys.executable, "-m", "nexus.cli.main", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"nexus {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def up(self) -> None:
        self.nexus("up", "-d", "--port", "0")
        origin = json.loads((self.home.root / "host.json").read_text())["origin"]
        self.port = int(origin.rpartition(":")[2])

    def deploy(self, *, warm: int, freeze: str) -> None:
        project = self.folder / "graph"
        project.mkdir(exist_ok=True)
        self.count += 1
        (project / "config.yaml").write_text(CONFIG.format(warm=warm, freeze=freeze).replace("1.0.0", f"1.0.{self.count}"))
        (project / "agent.py").write_text(AGENT)
        (project / "requirements.txt").write_text("langgraph\n")
        self.nexus("ai", "agent", "deploy", "--path", str(project), "--env", "production", "--json")

    def python(self) -> Path:
        """The interpreter of the agent's own environment."""
        return next(path for path in self.home.environments.glob("*/bin/python"))

    def ask(self, method: str, path: str, body: object = None, session: str = "") -> tuple[int, Any]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        key = self.home.admin_key.read_text().strip()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        if session:
            headers["Nexus-Session-Id"] = session
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")

    def reply(self, session: str) -> float:
        """Milliseconds until the session's graph has answered."""
        began = time.perf_counter()
        status, told = self.ask("POST", "/agents/graph/run", {"input": {"input": "hello"}}, session)
        took = (time.perf_counter() - began) * 1000
        if status != 200:
            raise SystemExit(f"a run failed: {status} {told}")
        return took

    def new(self) -> float:
        self.count += 1
        return self.reply(f"bench-{os.getpid()}-{self.count}")

    def kill_all(self) -> None:
        self.ask("POST", "/v1/agents/graph/sessions:kill")

    def phases(self) -> dict[str, int]:
        told: dict[str, int] = {}
        _, page = self.ask("GET", "/v1/agents/graph/sessions?limit=10000")
        for one in page["items"]:
            told[one["phase"]] = told.get(one["phase"], 0) + 1
        return told


H = TypeVar("H", bound=Host)


@contextlib.contextmanager
def running(kind: type[H]) -> Iterator[H]:
    """A host of its own, gone with its folder afterwards. Agents run as other users, who pass through that folder."""
    with tempfile.TemporaryDirectory(prefix="nexus-bench-") as name:
        os.chmod(name, 0o755)
        host = kind(Path(name))
        host.up()
        try:
            yield host
        finally:
            host.nexus("down", "--force")


def available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50_ms": round(statistics.median(ordered), 2),
        "p99_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 2),
        "n": len(ordered),
    }


def fill(host: Host, count: int, *, measured: int) -> tuple[dict[str, float], float]:
    """`count` sessions alive; the times of the last `measured` of them, and the bytes each took of the memory that was free."""
    before = available_bytes()
    times = [host.new() for _ in range(count)]
    time.sleep(1.0)
    return spread(times[-measured:]), (before - available_bytes()) / count


def measure(host: Host, options: argparse.Namespace, say: Callable[[str, Any], None]) -> None:
    parts = options.only
    host.deploy(warm=0, freeze="1h")
    python = host.python()
    if "others" in parts:
        for name, able, run in (
            ("a plain process + import", True, lambda: others.in_nothing(python)),
            ("bwrap + import", others.has("bwrap"), lambda: others.in_bubblewrap(python)),
            ("runc + import", others.has("runc"), lambda: others.in_runc(python, host.folder / "bundle")),
        ):
            if not able:
                say(name, "not installed here")
                continue
            try:
                say(name, spread([run() for _ in range(options.rounds)]))
            except RuntimeError as error:
                say(name, str(error))
    host.reply("first")
    if "start" in parts:
        say("new session, forked for it", spread([host.new() for _ in range(options.rounds * 7)]))
        host.kill_all()
    if "alive" in parts:
        told, each = fill(host, options.alive, measured=100)
        say(f"new session, {options.alive} alive", told | {"MiB_each": round(each / 2**20, 2)})
        host.kill_all()
    if "many" in parts and options.many:
        told, each = fill(host, options.many, measured=200)
        say(f"new session, {options.many} alive", told | {"MiB_each": round(each / 2**20, 2)})
        host.kill_all()
    if "freeze" in parts:
        host.deploy(warm=0, freeze="1s")
        names = [f"ice-{number}" for number in range(30)]
        for name in names:
            host.reply(name)
        live = [host.reply(name) for name in names]
        deadline = time.monotonic() + 60
        while host.phases().get("frozen", 0) < len(names) and time.monotonic() < deadline:
            time.sleep(0.2)
        say("sessions frozen", host.phases())
        woken = [host.reply(name) for name in names]
        say("reply of a live session", spread(live))
        say("reply of a frozen session", spread(woken))
        host.kill_all()
    if "replies" in parts:
        for name, code in replies.sources(AGENT).items():
            host.nexus(
                "ai", "agent", "deploy", "--path", str(replies.write(host.folder, name, code)), "--env", "production", "--json"
            )
        replies.measure(host.ask, host.home, say, runs=options.rounds * 20)
    if "spare" in parts:
        host.deploy(warm=8, freeze="1h")
        host.reply("first-spare")
        times = []
        for _ in range(options.rounds * 3):
            time.sleep(0.25)
            times.append(host.new())
        say("new session from the spare pool", spread(times))
        host.kill_all()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alive", type=int, default=500)
    parser.add_argument("--many", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    told: dict[str, Any] = {}

    def say(name: str, value: Any) -> None:
        told[name] = value
        shown = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else value
        print(f"{name:36} {shown}", flush=True)

    with running(Host) as host:
        measure(host, options, say)
    if options.json:
        options.json.write_text(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
