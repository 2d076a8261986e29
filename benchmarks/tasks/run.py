"""The task queue beside procrastinate's, on one PostgreSQL that really commits: `make bench-tasks`.

Both take no-op jobs: accepted one by one and as batches, then run to their end. Procrastinate is installed into a scratch
virtual environment of its own. Prints one table; nothing is asserted.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from tests import conftest as servers

from nexus.core import ids
from nexus.core.phases import RunPhase
from nexus.ports import task_store as port
from nexus.stores.postgres import engine as engines
from nexus.stores.postgres import migrate, task_store
from nexus.tasks import grouping

LANE = port.Lane(tenant="bench", agent="echo", environment="production")
CLIENTS = 32
THEIRS = """
import asyncio, json, sys, time
import procrastinate

async def main(url, count, clients, batch):
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, min_size=4, max_size=16))
    done = 0

    @app.task(name="noop")
    async def noop(n):
        nonlocal done
        done += 1

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        began = time.perf_counter()
        async def submit(numbers):
            for n in numbers:
                await noop.defer_async(n=n)
        await asyncio.gather(*(submit(range(start, count, clients)) for start in range(clients)))
        single = time.perf_counter() - began
        began = time.perf_counter()
        for start in range(0, count, batch):
            await noop.batch_defer_async(*({"n": n} for n in range(start, min(start + batch, count))))
        batched = time.perf_counter() - began
        began = time.perf_counter()
        await app.run_worker_async(wait=False, concurrency=64, install_signal_handlers=False, delete_jobs="never")
        ran = time.perf_counter() - began
    rates = {"accepted one by one": count / single, "accepted in batches": count / batched, "run to the end": done / ran}
    print(json.dumps(rates))

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
"""


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A server with its ordinary, durable settings. Yields the URI of a database by format."""
    binaries, who = servers._binaries(), servers._as_ordinary_user()
    if who:
        os.chown(folder, 65534, 65534)
    data, environment = folder / "data", {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": str(folder)}
    initdb = [binaries / "initdb", "-D", data, "-U", "nexus", "--auth=trust", "--encoding=UTF8", "--no-locale"]
    subprocess.run(initdb, check=True, capture_output=True, env=environment, cwd=folder, **who)
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "shared_buffers=128MB"]
    with (folder / "log").open("wb") as log:
        command = [binaries / "postgres", "-D", data, *options]
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder, **who)
    url = f"postgresql:///{{}}?host={folder}&user=nexus"
    try:
        servers._wait(url.format("postgres"), server, folder / "log")
        yield url
    finally:
        server.terminate()
        server.wait(30)


def submission() -> port.Submission:
    return port.Submission(id=ids.new_id(ids.TASK), lane=LANE, principal="key", body=b'{"input":1,"context":{}}', digest="d")


async def ours(url: str, count: int, batch: int) -> dict[str, float]:
    await migrate.upgrade(url)
    async with engines.open_engine(url, pool_size=16) as engine:
        store = task_store.PostgresTaskStore(engine)
        found = {"one commit each": await _one_commit_each(store, count // 4)}
        inbox: grouping.Grouped[port.Submission, tuple[port.Task, bool]] = grouping.Grouped(store.submit, patient=False)
        running = asyncio.create_task(inbox.run())
        began = time.perf_counter()
        await asyncio.gather(*(_submit(inbox, count // CLIENTS) for _ in range(CLIENTS)))
        found["accepted one by one"] = (count // CLIENTS * CLIENTS) / (time.perf_counter() - began)
        running.cancel()
        began = time.perf_counter()
        for start in range(0, count, batch):
            await store.submit([submission() for _ in range(min(batch, count - start))])
        found["accepted in batches"] = count / (time.perf_counter() - began)
        await _analyze(url)
        await store.enlist("bench")
        began = time.perf_counter()
        done = await _drain(store)
        found["run to the end"] = done / (time.perf_counter() - began)
        found["p50 accepted to claimed (ms)"] = await _latency(store)
        return found


async def _submit(inbox: "grouping.Grouped[port.Submission, tuple[port.Task, bool]]", count: int) -> None:
    for _ in range(count):
        await inbox.put(submission())


async def _one_commit_each(store: task_store.PostgresTaskStore, count: int) -> float:
    async def client(share: int) -> None:
        for _ in range(share):
            await store.submit([submission()])

    began = time.perf_counter()
    await asyncio.gather(*(client(count // 16) for _ in range(16)))
    return (count // 16 * 16) / (time.perf_counter() - began)


async def _drain(store: task_store.PostgresTaskStore) -> int:
    done = 0
    while claims := await store.claim("bench", limit=500, per_lane=500, paused=()):
        await store.write([_finish(claim) for claim in claims])
        done += len(claims)
    return done


async def _latency(store: task_store.PostgresTaskStore) -> float:
    took = []
    for _ in range(200):
        await store.submit([submission()])
        began = time.perf_counter()
        (claim,) = await store.claim("bench", limit=1, per_lane=500, paused=())
        took.append(time.perf_counter() - began)
        await store.write([_finish(claim)])
    return statistics.median(took) * 1000


def _finish(claim: port.Claim) -> port.Finish:
    event = port.TaskEvent(seq=claim.last_seq + 1, name="run.completed", data="{}")
    return port.Finish(task_id=claim.id, fence=claim.fence, phase=RunPhase.COMPLETED, event=event, output="1", metadata="{}")


async def _analyze(url: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("ANALYZE")


def theirs(url: str, count: int, batch: int, folder: Path) -> dict[str, float] | None:
    venv = folder / "venv"
    uv = [sys.executable, "-m", "uv"]
    made = subprocess.run([*uv, "venv", "-q", "--python", sys.executable, str(venv)], capture_output=True, text=True)
    python = str(venv / "bin" / "python")
    packages = ["procrastinate", "psycopg[binary,pool]"]
    put = subprocess.run([*uv, "pip", "install", "-q", "--python", python, *packages], capture_output=True, text=True)
    if made.returncode or put.returncode:
        print(f"procrastinate could not be installed: {(made.stderr + put.stderr).strip()[-200:]}")
        return None
    script = folder / "theirs.py"
    script.write_text(THEIRS)
    ran = subprocess.run([python, str(script), url, str(count), str(CLIENTS), str(batch)], capture_output=True, text=True)
    if ran.returncode:
        print(f"procrastinate did not run: {ran.stderr.strip()[-400:]}")
        return None
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--alone", action="store_true", help="do not install and run procrastinate")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nxbench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        scratch = folder / "scratch"
        scratch.mkdir()
        server = folder / "pg"
        server.mkdir()
        with postgres(server) as url:
            for database in ("ours", "theirs"):
                with psycopg.connect(url.format("postgres"), autocommit=True) as connection:
                    connection.execute(f"CREATE DATABASE {database}")
            mine = asyncio.run(ours(url.format("ours"), given.tasks, given.batch))
            other = None if given.alone else theirs(url.format("theirs"), given.tasks, given.batch, scratch)
    print(f"{'tasks a second':32} {'nexus':>10} {'procrastinate':>14} {'ratio':>7}")
    for what, rate in mine.items():
        beside = (other or {}).get(what)
        ratio = f"{rate / beside:7.1f}" if beside else f"{'-':>7}"
        print(f"{what:32} {rate:10.1f} {f'{beside:14.1f}' if beside else f'{chr(45):>14}'} {ratio}")


if __name__ == "__main__":
    main()
