"""Tasks through a whole host: submit, run by an echo agent, finish; rates, start latency, and CPU of a task by process.

`python -m benchmarks.tasks.through_host`. The host has a home and a port of its own.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import psycopg
from tests.e2e.conftest import Host, start_host, write_agent

from nexus.kit import home as homes
from nexus.stores import embedded

ECHO = """
import time

async def agent(input):
    return time.time()
"""
CLIENTS = 32
BATCH = 1000


class Processes:
    """CPU seconds used so far by each program of one host."""

    def __init__(self, host: Host) -> None:
        self._root = str(host.home)
        status = host.cli("status", "--json").json
        self._server = next(each["pid"] for each in status["processes"] if each["name"] in ("postgres", "database"))
        self._known: dict[int, tuple[str, float]] = {}

    def read(self) -> dict[str, float]:
        for process in psutil.process_iter():
            try:
                name = self._name(process)
                if name:
                    times = process.cpu_times()
                    self._known[process.pid] = (name, times.user + times.system)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        total: dict[str, float] = {}
        for name, seconds in self._known.values():
            total[name] = total.get(name, 0.0) + seconds
        return total

    def _name(self, process: psutil.Process) -> str | None:
        if process.name() == "postgres":
            return "postgres" if self._server in (process.pid, process.ppid()) else None
        try:
            mine = process.environ().get("NEXUS_HOME") == self._root or self._root in " ".join(process.environ().values())
        except (psutil.Error, OSError):
            return None
        line = process.cmdline()
        if not mine or not line:
            return None
        for name in ("control", "dispatcher", "gateway", "supervisor"):
            if any(part.startswith(f"nexus.apps.{name}") for part in line):
                return name
        return "agent" if any("nexus.worker" in part or part.endswith("zygote") for part in line) else "other"


def database_of(host: Host) -> str:
    return embedded.locate(homes.Home(host.home)).uri


async def _post(host: Host, path: str, bodies: "list[bytes]", clients: int) -> list[Any]:
    """Post all of them over `clients` kept connections; the parsed answers in any order."""
    waiting = list(reversed(bodies))
    answers: list[Any] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
        while waiting:
            body = waiting.pop()
            answers.append(await exchange(reader, writer, host, path, body))
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: Host, path: str, body: bytes) -> Any:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {host.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    if "content-length: " in answer:
        text = await reader.readexactly(int(answer.split("content-length: ")[1].split("\r\n")[0]))
    else:
        text = b""
        while (size := int((await reader.readline()).strip(), 16)) > 0:
            text += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    if " 202 " not in answer.splitlines()[0]:
        raise SystemExit(f"a submission was answered {answer.splitlines()[0]}: {text[:300]!r}")
    return json.loads(text)


def _finished(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT count(*) FROM tasks WHERE finished_at IS NOT NULL").fetchone()
    return int(row[0]) if row else 0


def measure(host: Host, what: str, bodies: "list[bytes]", count: int, path: str, clients: int) -> None:
    processes = Processes(host)
    with psycopg.connect(database_of(host), autocommit=True) as connection:
        before, base = processes.read(), _finished(connection)
        began = time.perf_counter()
        asyncio.run(_post(host, path, bodies, clients))
        accepted = time.perf_counter() - began
        while (done := _finished(connection) - base) < count and time.perf_counter() - began < 300:
            time.sleep(0.02)
        took = time.perf_counter() - began
        after = processes.read()
        failed = connection.execute("SELECT count(*) FROM tasks WHERE phase <> 'completed'").fetchone()
    cpu = {name: (after[name] - before.get(name, 0.0)) / count * 1e6 for name in sorted(after)}
    shown = ", ".join(f"{name} {spent:.0f}" for name, spent in cpu.items() if spent >= 1)
    print(f"{what:36} {count / accepted:8.0f}/s accepted {done / took:8.0f}/s to the end")
    print(f"    CPU us of a task: {shown} = {sum(cpu.values()):.0f}")
    if failed is not None and failed[0]:
        print(f"  not completed: {failed[0]}")


async def _paced(host: Host, rate: float, seconds: float) -> list[tuple[str, float]]:
    """Submit at that rate, open loop. (Task, when its 202 was there)."""
    accepted: list[tuple[str, float]] = []
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def one() -> None:
        reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", host.port)
        view = await exchange(reader, writer, host, "/agents/echo/tasks", b'{"input": 1}')
        accepted.append((view["task_id"], time.time()))
        idle.append((reader, writer))

    began, count = time.perf_counter(), int(rate * seconds)
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            group.create_task(one())
    return accepted


def latency(host: Host, rate: float, seconds: float) -> None:
    accepted = asyncio.run(_paced(host, rate, seconds))
    with psycopg.connect(database_of(host), autocommit=True) as connection:
        while True:
            rows = connection.execute(
                "SELECT id, created_at, output, error FROM tasks WHERE id = ANY(%s) AND finished_at IS NOT NULL",
                [[task for task, _ in accepted]],
            ).fetchall()
            if len(rows) == len(accepted):
                break
            time.sleep(0.05)
    if broken := [row[3] for row in rows if row[2] is None]:
        raise SystemExit(f"{len(broken)} of {len(rows)} tasks failed: {broken[0]}")
    known = {row[0]: (row[1], float(row[2])) for row in rows}
    stored = sorted((known[task][1] - known[task][0]) * 1000 for task, _ in accepted)
    heard = sorted((known[task][1] - at) * 1000 for task, at in accepted)
    for what, values in (("stored to started", stored), ("202 seen to started", heard)):
        print(f"{what} at {rate:g}/s: p50 {statistics.median(values):.2f} ms, p99 {values[int(len(values) * 0.99)]:.2f} ms")


def main(arguments: "list[str] | None" = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=6000)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--dispatchers", type=int, default=0, help="processes that run tasks; 0: control does it")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="nxbench-") as name:
        host = start_host(Path(name) / "home", NEXUS_DISPATCHERS=str(given.dispatchers))
        try:
            host.ok(
                "ai",
                "agent",
                "deploy",
                "echo",
                "--env",
                "production",
                cwd=write_agent(Path(name), "echo", ECHO, config="hosting: {isolation: instance}\n"),
            )
            host.run("echo", 1)
            latency(host, given.rate, 5.0)
            single = [b'{"input": 1}'] * given.tasks
            measure(host, f"one by one, {CLIENTS} clients", single, given.tasks, "/agents/echo/tasks", CLIENTS)
            entries = json.dumps({"tasks": [{"input": 1}] * BATCH}).encode()
            measure(
                host, f"in batches of {BATCH}", [entries] * (given.tasks // BATCH), given.tasks, "/agents/echo/tasks:batch", 2
            )
        finally:
            host.cli("down", "--force", timeout=60)


if __name__ == "__main__":
    main(sys.argv[1:])
