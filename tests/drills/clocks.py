"""Clock: the wall clock of PostgreSQL and of each dispatcher is set an hour and a day forwards and back, while tasks run.

Promised: leases are unaffected (nothing runs twice, nothing is taken back), no schedule's time fires twice or is passed over in
silence. The clocks are libfaketime's (Debian: faketime); the kernel's monotonic clock goes on, as it does when a clock is set.
"""

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from benchmarks.tasks import queue_alone

from nexus.core import ids
from nexus.ports import schedule_store
from nexus.stores.postgres import engine as engines
from nexus.stores.postgres import migrate, task_schedule_store, task_store
from tests import conftest as servers

JUMPS = (3600, -3600, 86400, -86400)
LIBRARIES = ("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1")


def library() -> Path | None:
    return next((Path(each) for each in LIBRARIES if Path(each).exists()), None)


class Clocked:
    """The clock of one process; `set` moves it by so many seconds from the true time."""

    def __init__(self, folder: Path, name: str, preload: Path) -> None:
        self.name, self._file = name, folder / f"{name}.clock"
        self.set(0)
        self._file.chmod(0o644)
        self.environment = {
            **{key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ},
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "LC_ALL": "C",
            "LD_PRELOAD": str(preload),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: int) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.chmod(0o644)
        fresh.rename(self._file)


@contextmanager
def postgres(folder: Path, clock: Clocked) -> Iterator[str]:
    who, data = servers._as_ordinary_user(), folder / "data"
    for each in (folder,):
        if who:
            os.chown(each, 65534, 65534)
    initdb = [servers._binaries() / "initdb", "-D", data, "-U", "nexus", "--auth=trust", "--encoding=UTF8", "--no-locale"]
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": str(folder)}
    subprocess.run(initdb, check=True, capture_output=True, env=environment, cwd=folder, **who)
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [servers._binaries() / "postgres", "-D", data, *options],
            stdout=log, stderr=log, env={**clock.environment, "HOME": str(folder)}, cwd=folder, **who,
        )  # fmt: skip
    url = f"postgresql:///{{}}?host={folder}&user=nexus"
    try:
        servers._wait(url.format("postgres"), server, folder / "log")
        yield url
    finally:
        server.terminate()
        server.wait(30)


class Drill:
    def __init__(self, url: str, seed: int) -> None:
        self.url, self.random = url, random.Random(seed)
        self.submitted: list[str] = []
        self.counts: Counter[str] = Counter()

    async def run(self, folder: Path, clocks: "list[Clocked]", seconds: float) -> list[str]:
        socket = folder / "door.sock"
        gateway = await asyncio.get_running_loop().create_unix_server(lambda: _Slow(self.random), str(socket))
        async with engines.open_engine(self.url) as engine:
            timetables = task_schedule_store.PostgresScheduleStore(engine)
            began = await timetables.now()
            first = began - began % 60 + 60
            await timetables.create(_minutely(first, began))
            processes = [
                subprocess.Popen(
                    [sys.executable, "-m", "tests.drills.clocked", self.url, str(socket), ids.new_id("own")],
                    env=clock.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                )
                for clock in clocks[1:]
            ]  # fmt: skip
            try:
                for process in processes:
                    if process.stdout is None or await asyncio.to_thread(process.stdout.readline) != b"ready\n":
                        raise SystemExit("a dispatcher did not start")
                submitting = asyncio.create_task(self.submit(task_store.PostgresTaskStore(engine)))
                for clock in clocks:
                    for jump in JUMPS:
                        clock.set(jump)
                        await asyncio.sleep(seconds)
                        clock.set(0)
                        await asyncio.sleep(seconds / 2)
                        self.counts["times set"] += 2
                submitting.cancel()
                await asyncio.gather(submitting, return_exceptions=True)
                await self.drained()
                return self.problems(first, next_at=await _next_at(timetables))
            finally:
                for process in processes:
                    process.kill()
                    process.wait(30)
                gateway.close()

    async def submit(self, store: task_store.PostgresTaskStore) -> None:
        while True:
            entry = queue_alone.submission()
            await store.submit([entry])
            self.submitted.append(entry.id)
            await asyncio.sleep(0.05)

    async def drained(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with psycopg.connect(self.url) as connection:
                if connection.execute("SELECT count(*) FROM tasks WHERE finished_at IS NULL").fetchone() == (0,):
                    return
            await asyncio.sleep(0.2)

    def problems(self, first: float, *, next_at: "tuple[float, int, int]") -> list[str]:
        with psycopg.connect(self.url) as connection:
            tasks = connection.execute("SELECT id, phase, attempt, origin, idempotency_key FROM tasks").fetchall()
        found = [
            f"{task} is {phase} after attempt {attempt}"
            for task, phase, attempt, *_ in tasks
            if (phase, attempt) != ("completed", 1)
        ]
        if lost := set(self.submitted) - {task for task, *_ in tasks}:
            found.append(f"{len(lost)} are lost")
        keys = [key for *_, origin, key in tasks if origin is not None]
        due, fired, missed = next_at
        self.counts["times of the schedule fired"], self.counts["counted as missed"] = fired, missed
        if len(set(keys)) != len(keys) or len(keys) != fired:
            found.append(f"the schedule fired {fired} times and made {len(keys)} tasks")
        if round((due - first) / 60) != fired + missed:
            found.append(f"of {round((due - first) / 60)} times {fired} fired and {missed} were counted as missed")
        return found


class _Slow(queue_alone._Gateway):
    """Answers after up to two seconds, so that runs are in hand whenever a clock is set."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__({})
        self._dice = dice

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(self._dice.random() * 2, super().data_received, data)


def _minutely(first: float, now: float) -> schedule_store.Schedule:
    return schedule_store.Schedule(
        id=ids.new_id("sch"), lane=queue_alone.LANE, name="minutely", principal="key", cron="* * * * *", timezone="UTC",
        catch_up="last", template=b"{}", active=True, next_at=first, created_at=now,
    )  # fmt: skip


async def _next_at(timetables: task_schedule_store.PostgresScheduleStore) -> tuple[float, int, int]:
    found = await timetables.fetch("bench", "minutely")
    if found is None or found.next_at is None:
        raise SystemExit("the schedule has gone")
    return found.next_at, found.fired, found.missed


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="clock")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long a clock stays wrong")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    given = parser.parse_args(arguments)
    preload = library()
    if preload is None:
        print("clock: libfaketime is not there; on Debian: apt-get install faketime")
        return 2
    with tempfile.TemporaryDirectory(prefix="nexus-clock-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        clocks = [Clocked(folder, each, preload) for each in ("postgres", "first", "second")]
        place = folder / "pg"
        place.mkdir()
        with postgres(place, clocks[0]) as url:
            with psycopg.connect(url.format("postgres"), autocommit=True) as connection:
                connection.execute("CREATE DATABASE drill")
            asyncio.run(migrate.upgrade(url.format("drill")))
            made = Drill(url.format("drill"), given.seed)
            found = asyncio.run(made.run(folder, clocks, given.seconds))
    for line in found[:10]:
        print(f"  {line}")
    print(", ".join(f"{count} {what}" for what, count in made.counts.items()))
    print(f"clock: {len(found)} promises broken over {len(made.submitted)} tasks (seed {given.seed})")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
