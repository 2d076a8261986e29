"""Kill storm: tasks are accepted while every process of the host, PostgreSQL and the agent too, is killed at random.

Promised: every acknowledged task has exactly one terminal result, a task that ran again shows it by its attempt number, and
the queue is drained a minute after the last kill.
"""

import argparse
import collections
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import urllib.error
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Host, start_host, write_agent

AGENT = """
import asyncio

async def agent(input):
    await asyncio.sleep(input % 10 * SPREAD)
    return input
"""
LONGEST_S, AT_ONCE = 2.0, 64  # of a run; runs of one agent, as the dispatcher's settings have it
AGENTS = {"echo": "instance", "apart": "session"}
"""Each with its isolation. Most tasks go to the one whose worker serves them all; a zygote and its sessions have the rest."""
APART = 20
DONE = {"completed", "failed", "cancelled"}
TERMINAL = {"run.completed", "run.failed", "run.cancelled"}


class Storm:
    def __init__(self, host: Host, *, tasks: int, seed: int) -> None:
        self.host, self.tasks = host, tasks
        self.random = random.Random(seed)
        self.accepted: dict[str, int] = {}
        self.killed: collections.Counter[str] = collections.Counter()
        self.over = threading.Event()

    def submit(self, seconds: float) -> None:
        """In batches over the whole storm, each until it is acknowledged; the same key makes a repeated batch the same one."""
        size = max(1, min(1000, self.tasks // 20))
        for begin in range(0, self.tasks, size):
            numbers = range(begin, min(begin + size, self.tasks))
            apart = [number for number in numbers if number % 10 == 0][:APART]
            self._hand_over("apart", apart)
            self._hand_over("echo", [number for number in numbers if number not in set(apart)])
            time.sleep(seconds * size / self.tasks)

    def _hand_over(self, agent: str, numbers: list[int]) -> None:
        body = {"tasks": [{"input": number, "max_attempts": 50} for number in numbers]}
        while numbers:
            key = {"Idempotency-Key": f"batch-{agent}-{numbers[0]}"}
            try:
                status, answer, _ = self.host.call("POST", f"/agents/{agent}/tasks:batch", body, headers=key)
            except (OSError, urllib.error.URLError, ValueError):
                status, answer = 0, None
            if status == 202:
                self.accepted |= {view["task_id"]: number for view, number in zip(answer["items"], numbers, strict=True)}
                return
            if 400 <= status < 500 and status not in (404, 429):
                raise SystemExit(f"a batch was refused: {answer}")
            time.sleep(0.1)

    def victims(self) -> dict[str, int]:
        found = self.host.cli("status", "--json")
        try:
            known = {entry["name"]: entry["pid"] for entry in json.loads(found.out)["processes"] if entry.get("pid")}
        except (ValueError, KeyError):
            known = {}
        try:
            for agent, name in (("echo", "worker"), ("apart", "zygote")):
                _, answer, _ = self.host.call("GET", f"/v1/agents/{agent}", timeout=3)
                for number, instance in enumerate(answer["deployments"][0]["instances"]):
                    known |= {f"{name}-{number}": instance["pid"]} if instance.get("pid") else {}
            _, answer, _ = self.host.call("GET", "/v1/agents/apart/sessions?limit=50", timeout=3)
            pids = [one["pid"] for one in answer["items"] if one.get("pid")]
            known |= {"session": self.random.choice(pids)} if pids else {}
        except (OSError, KeyError, IndexError, TypeError, ValueError):
            pass
        return known

    def rage(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self.random.uniform(0.5, 3.0))
            if not (known := self.victims()):
                continue
            name = self.random.choice(sorted(known))
            try:
                os.kill(known[name], signal.SIGKILL)
            except ProcessLookupError:
                continue
            self.killed[name] += 1

    def states(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        cursor = ""
        while True:
            _, page, _ = self.host.call("GET", f"/tasks?limit=500{cursor}")
            found |= {view["task_id"]: view for view in page["items"]}
            if not page.get("next"):
                return found
            cursor = f"&cursor={page['next']}"

    def open_ones(self) -> int:
        """How many are not over, as far as three small questions tell; 1 while they cannot be asked."""
        try:
            pages = [self.host.call("GET", f"/tasks?limit=1&status={status}")[1] for status in ("pending", "running", "waiting")]
            return sum(len(page["items"]) for page in pages)
        except (OSError, TypeError, KeyError, ValueError):
            return 1

    def drain(self, limit_s: float) -> tuple[float, dict[str, dict[str, Any]]]:
        began = time.monotonic()
        while self.open_ones() and time.monotonic() - began < limit_s:
            time.sleep(0.25)
        took = time.monotonic() - began
        for _ in range(20):
            try:
                return took, self.states()
            except (OSError, TypeError, KeyError, ValueError):
                time.sleep(0.5)
        return took, {}

    def endings(self, task_id: str) -> int:
        """How many terminal events the task's log has."""
        _, text, _ = self.host.call("GET", f"/tasks/{task_id}/events")
        return sum(line.removeprefix("event: ") in TERMINAL for line in str(text).splitlines() if line.startswith("event: "))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="kill-storm")
    parser.add_argument("--tasks", type=int, default=2000, help="how many tasks (full size: 100000)")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long processes are killed (full size: 600)")
    parser.add_argument("--dispatchers", type=int, default=2, help="processes that run the tasks; 0: control does it")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="nexus-storm-") as folder:
        host = start_host(Path(folder) / "home", NEXUS_DISPATCHERS=str(given.dispatchers))
        try:
            return _drill(host, Path(folder), given)
        finally:
            host.cli("down", timeout=60)


def _spread(given: argparse.Namespace) -> float:
    """Seconds between the nine lengths of runs, so that half the storm's time is enough for all of them."""
    mean = given.seconds * 0.5 * AT_ONCE / given.tasks
    return float(min(LONGEST_S / 9, mean / 4.5))


def _drill(host: Host, folder: Path, given: argparse.Namespace) -> int:
    for agent, isolation in AGENTS.items():
        project = write_agent(
            folder, agent, AGENT.replace("SPREAD", f"{_spread(given):.4f}"), config=f"hosting: {{isolation: {isolation}}}\n"
        )
        host.ok("ai", "agent", "deploy", agent, "--env", "production", cwd=project)
    storm = Storm(host, tasks=given.tasks, seed=given.seed)
    submitting = threading.Thread(target=storm.submit, args=(given.seconds,))
    submitting.start()
    storm.rage(given.seconds)
    submitting.join()
    took, found = storm.drain(120.0)
    lost = [task_id for task_id in storm.accepted if task_id not in found]
    open_ones = [task_id for task_id, view in found.items() if view["status"] not in DONE]
    wrong = [task for task, number in storm.accepted.items() if task in found and found[task].get("output") != number]
    again = [task_id for task_id, view in found.items() if view["attempt"] > 1]
    looked_at = [*again, *list(found)[:200]]
    double = [task_id for task_id in looked_at if storm.endings(task_id) != 1]
    extra = len(found) - len(storm.accepted)
    good = not (lost or open_ones or wrong or double or extra) and took <= 60
    print(f"kills: {dict(storm.killed)}")
    print(f"tasks: {len(storm.accepted)} accepted, {len(again)} ran more than once, {extra} never asked for")
    print(f"open: {len(open_ones)}, other results: {len(wrong)}, not exactly one end: {len(double)}, drained in {took:.1f} s")
    for task_id in (open_ones + wrong)[:5]:
        print(f"  {task_id}: {json.dumps({k: found[task_id].get(k) for k in ('status', 'attempt', 'message', 'error')})}")
    print(f"kill-storm: {len(lost)} of {len(storm.accepted)} lost after {sum(storm.killed.values())} kills (seed {given.seed})")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
