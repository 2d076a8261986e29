"""Sessions come and go: thousands are made and ended, a tenth of them killed at a random stage.

Promised: no process, control group, mount, namespace, socket, descriptor or directory of theirs remains, and the memory of the
supervisor is flat. `--count 10000` is the whole drill; the seed repeats it.
"""

import argparse
import asyncio
import collections
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration" / "drivers"))
import session_rig
import supervisor_rig

from nexus.core import errors

STAGES = ("before", "starting", "bound", "running", "frozen", "stopping")
_SETTLE_S = 30.0


class Drill:
    def __init__(self, rig: session_rig.SessionRig, *, count: int, at_once: int, seed: int) -> None:
        self.rig, self.count, self.at_once = rig, count, at_once
        self.random = random.Random(seed)
        self.ended: collections.Counter[str] = collections.Counter()

    async def run(self) -> None:
        places = asyncio.Queue[int]()
        for number in range(self.count):
            places.put_nowait(number)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self.at_once):
                tasks.create_task(self._work(places))

    async def _work(self, places: "asyncio.Queue[int]") -> None:
        while True:
            try:
                number = places.get_nowait()
            except asyncio.QueueEmpty:
                return
            stage = self.random.choice(STAGES) if self.random.random() < 0.1 else None
            try:
                await self._one(f"drill-{number}", stage)
            except (errors.NexusError, ConnectionError, OSError, TimeoutError) as error:
                self.ended[f"refused: {getattr(error, 'code', type(error).__name__)}"] += 1
                with contextlib.suppress(errors.NexusError):
                    await self.rig.order(f"drill-{number}", "kill")

    async def _one(self, name: str, stage: str | None) -> None:
        """One session from its first run to its end; `stage` is where its processes are killed from outside."""
        if stage in ("before", "starting"):
            placing = asyncio.create_task(self.rig.place(name))
            if stage == "starting":
                await asyncio.sleep(self.random.random() * 0.02)
            with contextlib.suppress(errors.NexusError):
                await self.rig.order(name, "kill")
            with contextlib.suppress(errors.NexusError):
                await placing
        else:
            assert await self.rig.run(name, ["echo", name]) == name
            await self._kill_at(name, stage)
        with contextlib.suppress(errors.NotFound):
            await self.rig.order(name, "kill")
        self.ended[f"killed: {stage}" if stage else "ended"] += 1

    async def _kill_at(self, name: str, stage: str | None) -> None:
        if stage is None:
            return
        if stage == "frozen":
            await self.rig.order(name, "freeze")
        pids = [pid for pid in ((await self.rig.status(name)).pid,) if pid]
        stopping = asyncio.create_task(self.rig.order(name, "stop")) if stage == "stopping" else None
        running = asyncio.create_task(self.rig.run(name, ["list", "~"])) if stage == "running" else None
        await asyncio.sleep(self.random.random() * 0.005)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for task in (stopping, running):
            if task is not None:
                with contextlib.suppress(errors.NexusError, ConnectionError, OSError):
                    await task


def look(supervisor: supervisor_rig.SupervisorRig) -> dict[str, int]:
    """What the supervisor holds, and what of sessions is left on the machine."""
    assert supervisor.process is not None
    pid = supervisor.process.pid
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    left = session_rig.leavings(supervisor)
    return {
        "memory_kib": int(status["VmRSS"].split()[0]),
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "mounts": len(Path(f"/proc/{pid}/mounts").read_text().splitlines()),
        "namespaces": count_namespaces(),
        "processes": sum(item.startswith("process") for item in left),
        "other": sum(not item.startswith("process") for item in left),
    }


def count_namespaces() -> int:
    """Process namespaces that some process of this machine stands in."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{name}/ns/pid"))
    return len(found)


async def drill(count: int, at_once: int, seed: int, *, memory_kib: int) -> list[str]:
    """What did not hold; nothing when all did."""
    async with session_rig.supervisor() as supervisor:
        rig = await session_rig.ready(supervisor, session={"persist": False, "warm": 2})
        warm = Drill(rig, count=max(50, count // 10), at_once=at_once, seed=seed + 1)
        await warm.run()
        before = await settled(supervisor, lambda _: True)
        began = time.monotonic()
        runs = Drill(rig, count=count, at_once=at_once, seed=seed)
        await runs.run()
        took = time.monotonic() - began
        after = await settled(supervisor, lambda seen: seen["processes"] <= before["processes"])
        print(f"{count} sessions in {took:.0f} s ({count / took:.0f}/s), seed {seed}: {dict(runs.ended)}")
        print(f"before {before}\nafter  {after}")
        wrong = [
            f"{name}: {before[name]} before, {after[name]} after"
            for name in ("descriptors", "mounts", "processes", "other")
            if after[name] > before[name]
        ]
        if after["memory_kib"] > before["memory_kib"] + memory_kib:
            wrong.append(f"memory grew from {before['memory_kib']} to {after['memory_kib']} KiB")
        if restarts := (await supervisor.status(rig.spec.id)).restarts:
            wrong.append(f"the zygote, which nobody killed, ended {restarts} times")
        refused = sum(number for name, number in runs.ended.items() if name.startswith("refused"))
        if refused > count // 20:
            wrong.append(f"{refused} sessions were refused")
        if wrong:
            for path in supervisor.home.logs.rglob("*.jsonl"):
                told = [line for line in path.read_text().splitlines() if "worker ended" not in line]
                print("\n".join(told[-20:]))
        await supervisor.driver.stop(rig.spec.id, grace_s=5)
        async with asyncio.timeout(_SETTLE_S):
            while await supervisor.driver.statuses():
                await asyncio.sleep(0.05)
        wrong += [f"left at the end: {item}" for item in session_rig.leavings(supervisor)]
    return wrong


async def settled(supervisor: supervisor_rig.SupervisorRig, ready: Callable[[dict[str, int]], bool]) -> dict[str, int]:
    """A look when everything that was asked has been done, as far as it ever will be."""
    deadline = time.monotonic() + _SETTLE_S
    previous: dict[str, int] = {}
    while time.monotonic() < deadline:
        await asyncio.sleep(1.0)
        seen = look(supervisor)
        if ready(seen) and {**seen, "memory_kib": 0, "namespaces": 0} == {**previous, "memory_kib": 0, "namespaces": 0}:
            return seen
        previous = seen
    return previous


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make drill NAME=sessions", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--memory-kib", type=int, default=8 * 1024, help="what the supervisor may grow by")
    asked = parser.parse_args(arguments)
    wrong = asyncio.run(drill(asked.count, asked.at_once, asked.seed, memory_kib=asked.memory_kib))
    for line in wrong:
        print(f"DOES NOT HOLD: {line}")
    return 1 if wrong else 0
