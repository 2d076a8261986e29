"""The host's own figures, and its throughput beside plain uvicorn and the AgentCore SDK's server. A table, and JSON on request.

    python benchmarks/host/run.py [--json FILE] [--only start,deploy,memory,recovery,load,agentcore] [--seconds 3] [--rounds 3]

Uses a home and a port of its own; the host on this machine is not touched. Nothing is asserted: read the table.
"""

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import agentcore
import load
import psutil

from nexus.kit import home as homes
from nexus.wire import archive

ECHO = "def agent(input):\n    return input\n"
PARTS = ("start", "deploy", "memory", "recovery", "load", "agentcore")
REQUIREMENT = "idna>=3\n"


class Host:
    """One host under measurement."""

    def __init__(self, folder: Path) -> None:
        self.home = homes.Home(folder / "home")
        self.folder = folder
        self.port = free_port()
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("NEXUS_")}
        self.environment["NEXUS_HOME"] = str(self.home.root)
        self.version = 0

    def nexus(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "nexus.cli.main", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def must(self, *arguments: str) -> str:
        result = self.nexus(*arguments)
        if result.returncode:
            raise SystemExit(f"nexus {' '.join(arguments)} failed:\n{result.stdout}{result.stderr}")
        return result.stdout

    def up(self) -> None:
        self.must("up", "-d", "--port", str(self.port))

    def down(self) -> None:
        self.must("down")

    def ask(self, method: str, path: str, body: object = None, timeout_s: float = 5.0) -> int:
        """The status, or 0 when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        headers = {"Authorization": f"Bearer {self.key()}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def key(self) -> str:
        try:
            return self.home.admin_key.read_text().strip()
        except OSError:
            return ""

    def runs(self, agent: str) -> bool:
        return self.ask("POST", f"/agents/{agent}/run", {"input": "hello"}) == 200

    def make(self, agent: str, requirements: str = "", *, isolation: str = "session") -> Path:
        """The project of an echo agent whose content is new each time. With the isolation `instance` one process serves all."""
        folder = self.folder / "agents" / agent
        folder.mkdir(parents=True, exist_ok=True)
        self.version += 1
        (folder / "config.yaml").write_text(f"name: {agent}\nentrypoint: agent:agent\nhosting:\n  isolation: {isolation}\n")
        (folder / "agent.py").write_text(f"# {self.version}\n{ECHO}")
        (folder / "requirements.txt").write_text(requirements)
        return folder

    def deploy(self, agent: str, requirements: str = "", *, isolation: str = "session") -> None:
        project = self.make(agent, requirements, isolation=isolation)
        self.must("ai", "agent", "deploy", "--path", str(project), "--env", "development", "--json")

    def processes(self) -> dict[str, int]:
        """Process id by name, the keeper and one worker of each agent included."""
        status = json.loads(self.must("status", "--json"))
        return {entry["name"]: entry["pid"] for entry in status["processes"]}

    def worker(self) -> int:
        supervisor = psutil.Process(self.processes()["supervisor"])
        workers = [child.pid for child in supervisor.children(recursive=True) if "boot.py" in " ".join(child.cmdline())]
        return workers[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], *, limit_s: float = 60.0, pause_s: float = 0.005) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > limit_s:
            return float("nan")
        time.sleep(pause_s)
    return time.monotonic() - began


def measure_start(host: Host, figures: dict[str, Any]) -> None:
    times = []
    for _ in range(7):
        began = time.monotonic()
        host.must("--help")
        times.append(time.monotonic() - began)
    figures["nexus --help"] = row(statistics.median(times) * 1000, "ms", "<= 120")
    host.down()
    began = time.monotonic()
    starting = subprocess.Popen(
        [sys.executable, "-m", "nexus.cli.main", "up", "-d", "--port", str(host.port)],
        env=host.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: host.ask("GET", "/health") == 200)
    figures["nexus up, warm, to /health"] = row(time.monotonic() - began, "s", "")
    until(lambda: host.ask("GET", "/v1/agents") == 200)
    figures["nexus up, warm, to first answer of the API"] = row(time.monotonic() - began, "s", "<= 1.5")
    until(lambda: host.runs("hello"))
    figures["nexus up, warm, to first answer of an agent"] = row(time.monotonic() - began, "s", "")
    starting.wait(timeout=60)


def measure_deploy(host: Host, figures: dict[str, Any]) -> None:
    for title, agent, requirements, floor in (
        ("hello-world deploy to first answer, new environment", "cold", REQUIREMENT, "<= 15"),
        ("hello-world deploy to first answer, cached environment", "cold", REQUIREMENT, "<= 2"),
        ("hello-world without requirements, deploy to first answer", "bare", "", "<= 2"),
    ):
        folder = host.make(agent, requirements)
        archive.pack(folder)
        began = time.monotonic()
        host.must("ai", "agent", "deploy", "--path", str(folder), "--env", "development", "--json")
        until(lambda agent=agent: host.runs(agent))
        figures[title] = row(time.monotonic() - began, "s", floor)
    for agent in ("cold", "bare"):
        host.must("ai", "agent", "delete", agent, "--yes")


def measure_memory(host: Host, figures: dict[str, Any]) -> None:
    found: dict[str, int] = {}
    for name, pid in host.processes().items():
        family = [psutil.Process(pid)] if name == "keeper" else family_of(pid)
        found[name] = sum(pss(process) for process in family)
    figures["idle memory, two agents, PSS"] = row(sum(found.values()) / 2**20, "MiB", "<= 250")
    for name, size in found.items():
        figures[f"  of which {name}"] = row(size / 2**20, "MiB", "")


def family_of(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def measure_recovery(host: Host, figures: dict[str, Any]) -> None:
    """From the kill until the thing itself serves again: runs for all, the API for control and its database."""

    def api() -> bool:
        return host.ask("GET", "/v1/agents") == 200

    def runs() -> bool:
        return all(host.runs("hello") for _ in range(3))

    for name, serves in (
        ("worker", runs), ("gateway-0", runs), ("control", api), ("postgres", api), ("supervisor", runs), ("keeper", runs),
    ):  # fmt: skip
        pid = host.worker() if name == "worker" else host.processes()[name]
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: not alive(pid), limit_s=10, pause_s=0.001)
        figures[f"kill -9 {name}, serving again"] = row(until(serves), "s", "<= 1")
        back = until(lambda name=name, pid=pid: is_back(host, name, pid), pause_s=0.05)
        figures[f"  {name} itself replaced"] = row(back, "s", "")


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_back(host: Host, name: str, old: int) -> bool:
    try:
        pid = host.worker() if name == "worker" else host.processes()[name]
    except (SystemExit, KeyError, IndexError, psutil.Error):
        return False
    return pid != old and alive(pid)


def measure_load(host: Host, figures: dict[str, Any], *, seconds: float, rounds: int, connections: int) -> None:
    body = json.dumps({"input": "x" * 100}).encode()
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "plain:app", "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    server = subprocess.Popen([*command, "--no-access-log"], cwd=Path(__file__).parent)
    try:
        until(lambda: reachable(port))
        ours, plain = [], []
        for _ in range(rounds):
            ours.append(load.drive("127.0.0.1", host.port, request(host, body), connections=connections, seconds=seconds))
            plain.append(load.drive("127.0.0.1", port, request(host, body), connections=connections, seconds=seconds))
    finally:
        server.terminate()
        server.wait(timeout=10)
    mine = statistics.median(one.per_second for one in ours)
    other = statistics.median(one.per_second for one in plain)
    figures["echo agent through the whole host"] = row(mine, "requests/s", ">= 15000 with wrk")
    figures["the same answer from uvicorn alone"] = row(other, "requests/s", "")
    figures["ratio"] = row(mine / other, "×", "")
    figures["  latency through the host, p50"] = row(statistics.median(one.percentile(0.5) for one in ours), "ms", "")
    figures["  latency through the host, p99"] = row(statistics.median(one.percentile(0.99) for one in ours), "ms", "")
    figures["  errors through the host"] = row(sum(one.errors for one in ours), "", "0")


def measure_agentcore(host: Host, figures: dict[str, Any], *, seconds: float, rounds: int, connections: int) -> None:
    """The same echo under the AgentCore SDK's server and under the whole host, in turn."""
    port = free_port()
    host.deploy("boxed", isolation="session")
    server = agentcore.start(host.folder, port)
    try:
        until(lambda: reachable(port), limit_s=60)
        found = agentcore.compare(
            host.folder,
            port=host.port,
            key=host.key(),
            shared="/agents/quick/run",
            boxed="/agents/boxed/run",
            theirs=port,
            rounds=rounds,
            seconds=seconds,
            connections=connections,
        )
    finally:
        agentcore.wait_until_gone(server)
    other = found["agentcore"]
    figures["echo agent through the whole host, wrk"] = row(statistics.median(found["shared"]), "requests/s", ">= 15000")
    figures["the same echo under the AgentCore SDK's server"] = row(statistics.median(other), "requests/s", "")
    figures["ratio to the AgentCore SDK's server"] = row(agentcore.ratio(found["shared"], other), "×", ">= 4")
    if found["boxed"]:
        name = f"the echo in {agentcore.SESSIONS} sessions with boxes of their own"
        figures[name] = row(statistics.median(found["boxed"]), "requests/s", "")
        figures["  its ratio to the AgentCore SDK's server"] = row(agentcore.ratio(found["boxed"], other), "×", "")


def request(host: Host, body: bytes) -> bytes:
    head = (
        f"POST /agents/quick/run HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {host.key()}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def reachable(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def row(value: float, unit: str, floor: str) -> dict[str, Any]:
    return {"value": round(value, 3), "unit": unit, "floor": floor}


def show(figures: dict[str, Any]) -> None:
    width = max(len(name) for name in figures)
    print(f"\n{'figure':{width}}  {'measured':>12}  unit        floor")
    for name, entry in figures.items():
        print(f"{name:{width}}  {entry['value']:>12,.2f}  {entry['unit']:10}  {entry['floor']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--only", default=",".join(PARTS), help="some of " + ",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a round of load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    wanted = set(options.only.split(","))
    if unknown := wanted - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="nexus-bench-") as folder:
        host = Host(Path(folder))
        host.up()
        try:
            for agent in ("hello", "second"):
                host.deploy(agent)
            if "start" in wanted:
                measure_start(host, figures)
            if "memory" in wanted:
                measure_memory(host, figures)
            if "deploy" in wanted:
                measure_deploy(host, figures)
            if wanted & {"load", "agentcore"}:
                host.deploy("quick", isolation="instance")  # many runs that name no session, and need none
            if "load" in wanted:
                measure_load(host, figures, seconds=options.seconds, rounds=options.rounds, connections=options.connections)
            if "agentcore" in wanted:
                measure_agentcore(host, figures, seconds=options.seconds, rounds=options.rounds, connections=options.connections)
            if "recovery" in wanted:
                measure_recovery(host, figures)
        finally:
            host.nexus("down", "--force")
    show(figures)
    machine = {"cores": os.cpu_count(), "python": sys.version.split()[0], "kernel": os.uname().release}
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
