"""The same work done by procrastinate and by DBOS, each in an environment of its own that is kept in the user's cache."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Each script prints one JSON line: rates by the names of `queue_alone`, and sorted latencies in ms at 200/s.
PROCRASTINATE = """
import asyncio, json, sys, time
import procrastinate

async def main(url, count, clients, batch):
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, min_size=4, max_size=16))
    done, begun, accepted = 0, {}, {}

    @app.task(name="noop")
    async def noop(n):
        nonlocal done
        done += 1
        begun[n] = time.perf_counter()

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        began = time.perf_counter()
        async def submit(numbers):
            for n in numbers:
                await noop.defer_async(n=n)
        await asyncio.gather(*(submit(range(start, count // 4, clients)) for start in range(clients)))
        single = count // 4 / (time.perf_counter() - began)
        began = time.perf_counter()
        for start in range(0, count, batch):
            await noop.batch_defer_async(*({"n": n} for n in range(start, min(start + batch, count))))
        batched = count / (time.perf_counter() - began)
        began = time.perf_counter()
        await app.run_worker_async(wait=False, concurrency=64, install_signal_handlers=False, delete_jobs="never")
        ran = done / (time.perf_counter() - began)
        begun.clear()
        worker = asyncio.create_task(app.run_worker_async(concurrency=64, install_signal_handlers=False))
        await asyncio.sleep(1)
        began = time.perf_counter()
        async def one(n):
            await noop.defer_async(n=n)
            accepted[n] = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for n in range(600):
                await asyncio.sleep(max(0, began + n / 200 - time.perf_counter()))
                group.create_task(one(n))
        while len(begun) < 600:
            await asyncio.sleep(0.05)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
    print(json.dumps({
        "accepted, one commit each": single, "accepted in batches": batched, "run to the end": ran,
        "latencies": sorted(max(0, begun[n] - at) * 1000 for n, at in accepted.items()),
    }))

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
"""
DBOS = """
import asyncio, json, sys, time
from dbos import DBOS, DBOSClient

def main(url, count, clients, batch):
    begun, accepted = {}, {}
    DBOS(config={"name": "bench", "system_database_url": url, "sys_db_pool_size": 20, "log_level": "ERROR"})

    @DBOS.workflow(name="noop")
    async def noop(n):
        begun[n] = time.perf_counter()

    async def accept(client, numbers):
        for n in numbers:
            await client.enqueue_async({"workflow_name": "noop", "queue_name": "bench"}, n)

    async def run():
        DBOS.launch()
        client = DBOSClient(system_database_url=url)
        few = count // 4
        began = time.perf_counter()
        await asyncio.gather(*(accept(client, range(start, few, clients)) for start in range(clients)))
        single = few / (time.perf_counter() - began)
        began = time.perf_counter()
        await DBOS.register_queue_async("bench", polling_interval_sec=0.05)
        deadline = began + 120
        while len(begun) < few and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)
        ran = len(begun) / (time.perf_counter() - began)
        while len(begun) < few:
            await asyncio.sleep(0.1)
        begun.clear()
        began = time.perf_counter()
        async def one(n):
            await client.enqueue_async({"workflow_name": "noop", "queue_name": "bench"}, n)
            accepted[n] = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for n in range(600):
                await asyncio.sleep(max(0, began + n / 200 - time.perf_counter()))
                group.create_task(one(n))
        deadline = time.perf_counter() + 120
        while len(begun) < 600 and time.perf_counter() < deadline:
            await asyncio.sleep(0.05)
        print(json.dumps({
            "accepted, one commit each": single, "run to the end": ran,
            "latencies": sorted(max(0, begun[n] - at) * 1000 for n, at in accepted.items() if n in begun),
        }))
        client.destroy()
    asyncio.run(run())
    DBOS.destroy()

main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
"""


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    packages: tuple[str, ...]
    script: str


PEERS = (
    Peer("procrastinate", ("procrastinate", "psycopg[binary,pool]"), PROCRASTINATE),
    Peer("dbos", ("dbos", "psycopg[binary]"), DBOS),
)


def install(peer: Peer) -> Path | None:
    """The peer's Python; made once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nexus-agent-hosting" / "bench"
    venv = cache / f"{peer.name}-{sys.version_info.major}.{sys.version_info.minor}"
    python = venv / "bin" / "python"
    if (venv / "ready").exists():
        return python
    uv = [sys.executable, "-m", "uv"]
    venv.parent.mkdir(parents=True, exist_ok=True)
    for command in (
        [*uv, "venv", "-q", "--clear", "--python", sys.executable, str(venv)],
        [*uv, "pip", "install", "-q", "--python", str(python), *peer.packages],
    ):
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            print(f"{peer.name} could not be installed: {made.stderr.strip()[-200:]}")
            return None
    (venv / "ready").touch()
    return python


def measure(peer: Peer, python: Path, url: str, *, count: int, clients: int, batch: int) -> dict[str, object] | None:
    arguments = [str(python), "-c", peer.script, url, str(count), str(clients), str(batch)]
    try:
        ran = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        print(f"{peer.name} did not end within 600 s")
        return None
    lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    if not lines:
        print(f"{peer.name} did not run: {ran.stderr.strip()[-600:]}")
        return None
    found: dict[str, object] = json.loads(lines[-1])
    return found
