"""Streams: a task's event log is read through the gateway, the connection cut behind each event, gateways killed meanwhile.

Promised: by `Last-Event-ID` each event comes once and in order, or an explicit error says that there is a gap.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.e2e.conftest import Host, start_host, write_agent

AGENT = """
async def agent(input):
    for number in range(input):
        yield f"piece {number} "
"""
PATIENCE_S = 600.0


class Violation(Exception):
    """What was promised did not hold."""


class Drill:
    def __init__(self, host: Host, task_id: str, seed: int) -> None:
        self.host, self.task_id = host, task_id
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self._lines = b""

    async def read_one(self, after: int) -> tuple[int, str, bytes]:
        """The number, name and bytes of the first event behind `after`; the connection is cut somewhere behind it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.host.port)
        try:
            writer.write(
                f"GET /tasks/{self.task_id}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.host.key}\r\n"
                f"Last-Event-ID: {after}\r\n\r\n".encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n")[0]:
                raise ConnectionError(head.split(b"\r\n")[0].decode())
            text = b""
            while b"\n\n" not in text.replace(b": waiting\n\n", b""):
                size = int((await reader.readline()).strip() or b"0", 16)
                if size == 0:
                    raise ConnectionError("the stream ended early")
                text += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.read(self.random.choice((1, 10, 100)))
        finally:
            writer.transport.abort()
        event = text.replace(b": waiting\n\n", b"").split(b"\n\n")[0]
        fields = dict(line.split(b": ", 1) for line in event.split(b"\n"))
        return int(fields[b"id"]), fields[b"event"].decode(), event

    async def at(self, after: int) -> tuple[str, bytes]:
        """The event behind `after`, however often it takes to get it."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            try:
                number, name, event = await self.read_one(after)
            except (OSError, asyncio.IncompleteReadError, ValueError):
                self.counts["connections that broke"] += 1
                await asyncio.sleep(0.02)
                continue
            if number != after + 1:
                raise Violation(f"behind event {after} came event {number}")
            return name, event
        raise Violation(f"event {after + 1} never came")

    async def walk(self, start: int, end: int, kill: float) -> list[str]:
        names = []
        for after in range(start, end):
            if self.random.random() < kill:
                await asyncio.to_thread(self.kill)
            name, _ = await self.at(after)
            names.append(name)
        return names

    def kill(self) -> None:
        """One gateway, at once and for good; the keeper starts another."""
        status = self.host.cli("status", "--json")
        try:
            known = [each["pid"] for each in json.loads(status.out)["processes"] if each["name"].startswith("gateway")]
            os.kill(self.random.choice(known), signal.SIGKILL)
        except (ValueError, KeyError, IndexError, TypeError, ProcessLookupError):
            return
        self.counts["gateways killed"] += 1


async def _drill(host: Host, given: argparse.Namespace) -> tuple[Counter[str], list[str]]:
    _, view, _ = await asyncio.to_thread(
        host.call, "POST", "/agents/talker/tasks", {"input": given.events - 2, "max_attempts": 1}
    )
    made = Drill(host, view["task_id"], given.seed)
    share = -(-given.events // given.readers)
    walks = [made.walk(start, min(start + share, given.events), given.kill / 100) for start in range(0, given.events, share)]
    try:
        names = [name for part in await asyncio.gather(*walks) for name in part]
    except Violation as violation:
        return made.counts, [str(violation)]
    wanted = ["run.started", *["message.delta"] * (given.events - 2), "run.completed"]
    found = [
        f"event {place + 1} is {name}" for place, (name, right) in enumerate(zip(names, wanted, strict=True)) if name != right
    ]
    return made.counts, found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="streams")
    parser.add_argument("--events", type=int, default=10_000, help="how many, each of them a place where the connection is cut")
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--kill", type=float, default=1.0, help="at so many in a hundred places a gateway is killed")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="nexus-streams-") as folder:
        host = start_host(Path(folder) / "home")
        try:
            host.ok(
                "ai",
                "agent",
                "deploy",
                "talker",
                "--env",
                "production",
                cwd=write_agent(Path(folder), "talker", AGENT, config="hosting: {isolation: instance}\n"),
            )
            began = time.monotonic()
            counts, found = asyncio.run(_drill(host, given))
            took = time.monotonic() - began
        finally:
            host.cli("down", "--force", timeout=60)
    for line in found[:10]:
        print(f"  {line}")
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())) + f"; {took:.0f} s")
    print(f"streams: {len(found)} of {given.events} events lost, doubled or out of order (seed {given.seed})")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
