"""Storage faults: fsync errors, a full disk, PostgreSQL killed, and at last a standby promoted, while tasks are accepted and run.

Promised: no task was acknowledged whose commit failed, so every acknowledged one is there and ends once; what was known to be
finished stays finished. PostgreSQL runs with a library in front of its system calls that fails them on command.
"""

import argparse
import asyncio
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psycopg
from benchmarks.tasks import queue_alone

from nexus.core import errors, ids
from nexus.kit import clock, guard
from nexus.ports import task_store as port
from nexus.stores.postgres import engine as engines
from nexus.stores.postgres import migrate, task_listener, task_store
from nexus.tasks import dispatcher, door, grouping, intake
from tests import conftest as servers

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>
static int faulty(const char *kind) {
  const char *folder = getenv("NEXUS_DRILL_FAULTS");
  char path[512];
  if (!folder) return 0;
  char *to = path;
  while (*folder && to < path + 400) *to++ = *folder++;
  *to++ = '/';
  while (*kind) *to++ = *kind++;
  *to = 0;
  return access(path, F_OK) == 0;
}
#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define FAIL(kind, number) do { int kept = errno; if (faulty(kind)) { errno = number; return -1; } errno = kept; } while (0)
int fsync(int fd) { REAL(fsync); FAIL("fsync", EIO); return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); FAIL("fsync", EIO); return real(fd); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { REAL(pwrite); FAIL("full", ENOSPC); return real(fd, b, n, o); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { REAL(pwrite64); FAIL("full", ENOSPC); return real(fd, b, n, o); }
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t o) { REAL(pwritev); FAIL("full", ENOSPC); return real(fd, v, n, o); }
ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t o) {
  REAL(pwritev64); FAIL("full", ENOSPC); return real(fd, v, n, o);
}
"""
KINDS = ("fsync", "full", "kill", "stop")
_HANGS_S = 5.0
TERMINAL = ("run.completed", "run.failed", "run.cancelled")


class Server:
    """One PostgreSQL under faults; it is started again whenever it has gone."""

    def __init__(self, folder: Path, data: Path, socket: Path, shim: Path, **settings: str) -> None:
        self.data, self.socket, self._faults = data, socket, folder / "faults"
        self._who, self._log = servers._as_ordinary_user(), folder / f"{data.name}.log"
        self._environment = {
            "PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": str(folder),
            "LD_PRELOAD": str(shim), "NEXUS_DRILL_FAULTS": str(self._faults),
        }  # fmt: skip
        self._settings = {"listen_addresses": "", "unix_socket_directories": str(socket), "max_connections": "60", **settings}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql:///drill?host={self.socket}&user=nexus&connect_timeout=5"

    def start(self) -> None:
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        command = [servers._binaries() / "postgres", "-D", self.data, *options]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._environment, cwd=self.data.parent, start_new_session=True, **self._who
            )

    def keep(self) -> None:
        if self.process is None or self.process.poll() is not None:
            self.start()

    def wait(self, database: str = "postgres", patience_s: float = 60.0) -> None:
        """Start it again where it has gone, or hangs between life and death, as an init system would."""
        began = given_up = time.monotonic()
        while True:
            self.keep()
            if time.monotonic() - given_up > _HANGS_S:
                self.end()
                given_up = time.monotonic()
                continue
            with suppress(psycopg.OperationalError):
                psycopg.connect(self.url.replace("/drill?", f"/{database}?")).close()
                return
            if time.monotonic() - began > patience_s:
                raise SystemExit(f"PostgreSQL does not come back:\n{self.told()}")
            time.sleep(0.05)

    def told(self) -> str:
        """The last words of its log, without those of connections that came too early."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if " mode" not in line and "starting up" not in line][-15:])

    def fault(self, kind: str, seconds: float) -> None:
        """Let it go wrong for that long."""
        if kind in ("fsync", "full"):
            (self._faults / kind).touch()
            time.sleep(seconds)
            (self._faults / kind).unlink()
        elif kind == "kill":
            self.end()
        elif self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(30)
        self.keep()

    def end(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)


class Drill:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.accepted: set[str] = set()
        self.refused = 0
        self.known_finished: set[str] = set()
        self.faults: Counter[str] = Counter()

    def build(self) -> Server:
        who = servers._as_ordinary_user()
        (self.folder / "faults").mkdir()
        source, shim = self.folder / "shim.c", self.folder / "shim.so"
        source.write_text(SHIM)
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", shim, source, "-ldl"], check=True)
        sockets = self.folder / "first"
        sockets.mkdir()
        for each in (self.folder, self.folder / "faults", sockets):
            if who:
                os.chown(each, 65534, 65534)
            each.chmod(0o755)
        data = self.folder / "primary"
        initdb = [servers._binaries() / "initdb", "-D", data, "-U", "nexus", "--auth=trust", "--encoding=UTF8", "--no-locale"]
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": str(self.folder)}
        subprocess.run(initdb, check=True, capture_output=True, env=environment, cwd=self.folder, **who)
        made = Server(self.folder, data, sockets, shim)
        made.wait()
        with psycopg.connect(made.url.replace("/drill?", "/postgres?"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE drill")
        return made

    @asynccontextmanager
    async def load(self, url: str) -> AsyncIterator[None]:
        """Clients that submit, and a dispatcher that runs what they submit on a gateway that answers at once."""
        socket = Path(tempfile.mkdtemp(prefix="nxf-")) / "door.sock"
        async with engines.open_engine(url) as engine, guard.Loops() as loops:
            gateway = await asyncio.get_running_loop().create_unix_server(lambda: queue_alone._Gateway({}), str(socket))
            store, owner = task_store.PostgresTaskStore(engine), ids.new_id("own")
            runner = dispatcher.Dispatcher(
                store=store,
                door=door.GatewayDoor(sockets=lambda: [socket], token="drill"),
                owner=owner,
                clock=clock.SystemClock(),
            )
            ears = task_listener.Listener(
                url=url, channels=[task_listener.CHANNEL_QUEUE], receive=lambda *_: runner.wake(), owner=owner
            )
            loops.start("ears", ears.run)
            inlet = intake.Intake(store=store, submitted=runner.wake, runner=runner)
            inbox: grouping.Grouped[port.Submission, intake.Made] = grouping.Grouped(inlet.store, patient=False)
            loops.start("inbox", inbox.run)
            async with runner:
                for number in range(8):
                    loops.start(f"client {number}", lambda: self._client(inbox))
                loops.start("observer", lambda: self._observe(store))
                yield
            gateway.close()
        shutil.rmtree(socket.parent, ignore_errors=True)

    async def _client(self, inbox: "grouping.Grouped[port.Submission, intake.Made]") -> None:
        while True:
            entry = queue_alone.submission()
            try:
                await inbox.put(entry)
                self.accepted.add(entry.id)
            except errors.NexusError:
                self.refused += 1
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.002)

    async def _observe(self, store: task_store.PostgresTaskStore) -> None:
        """What a reader was told to be finished."""
        while True:
            with suppress(errors.NexusError):
                tasks = await store.page("bench", agents=None, environment=None, phase=None, before=None, limit=200)
                self.known_finished |= {task.id for task in tasks if task.finished_at is not None}
            await asyncio.sleep(0.1)

    async def storm(self, server: Server, rounds: int, kinds: "tuple[str, ...]" = KINDS) -> None:
        async with self.load(server.url):
            for _ in range(rounds):
                await asyncio.sleep(self.random.uniform(0.3, 1.2))
                kind = self.random.choice(kinds)
                self.faults[kind] += 1
                await asyncio.to_thread(server.fault, kind, self.random.uniform(0.02, 0.5))
                await asyncio.to_thread(server.wait, "drill")
            await asyncio.sleep(0.5)

    async def promote(self, primary: Server) -> Server:
        """A standby that every commit waits for takes over from a primary that is killed under load."""
        who, sockets, data = servers._as_ordinary_user(), self.folder / "second", self.folder / "standby"
        sockets.mkdir()
        if who:
            os.chown(sockets, 65534, 65534)
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": str(self.folder)}
        program = servers._binaries() / "pg_basebackup"
        copy = [program, "-D", data, "-h", primary.socket, "-U", "nexus", "-R", "-c", "fast", "-X", "stream"]
        subprocess.run(copy, check=True, capture_output=True, env=environment, cwd=self.folder, **who)
        standby = Server(self.folder, data, sockets, self.folder / "shim.so", hot_standby="on")
        standby.wait("drill")
        with psycopg.connect(primary.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
            while connection.execute("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'").fetchone() != (1,):
                time.sleep(0.05)
        async with self.load(primary.url):
            await asyncio.sleep(2.0)
            await asyncio.to_thread(primary.end)
            await asyncio.sleep(0.5)
        self.faults["promotion"] += 1
        with psycopg.connect(standby.url.replace("/drill?", "/postgres?"), autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
            connection.execute("SELECT pg_reload_conf()")
        return standby

    async def drain(self, server: Server) -> list[str]:
        """Run what is left on a database that is well again; what does not hold of the promises."""
        missing = self._missing(server)
        await self._finish_all(server)
        found = [f"{task} was acknowledged and is not there" for task in missing]
        with psycopg.connect(server.url) as connection:
            ends = connection.execute(
                "SELECT t.id, t.phase, count(e.seq) FILTER (WHERE e.name = ANY(%s)), max(e.seq) = count(e.seq) FROM tasks t"
                " LEFT JOIN task_events e ON e.task_id = t.id GROUP BY 1, 2",
                [list(TERMINAL)],
            ).fetchall()
        for task, phase, count, whole in ends:
            if task in self.accepted and (phase != "completed" or count != 1 or not whole):
                found.append(f"{task} is {phase} with {count} ends, events whole: {whole}")
        return found

    def _missing(self, server: Server) -> list[str]:
        with psycopg.connect(server.url) as connection:
            there = dict(connection.execute("SELECT id, finished_at FROM tasks").fetchall())
        undone = [task for task in self.known_finished if there.get(task) is None]
        return [task for task in self.accepted if task not in there] + undone

    async def _finish_all(self, server: Server) -> None:
        accepting, self._client = self._client, _rest  # type: ignore[method-assign]
        async with self.load(server.url):
            until = time.monotonic() + 60
            while time.monotonic() < until:
                with psycopg.connect(server.url) as connection:
                    if connection.execute("SELECT count(*) FROM tasks WHERE finished_at IS NULL").fetchone() == (0,):
                        break
                await asyncio.sleep(0.2)
        self._client = accepting  # type: ignore[method-assign]


async def _rest(inbox: object) -> None:
    await asyncio.Event().wait()


async def _drill(folder: Path, given: argparse.Namespace) -> tuple[Drill, list[str]]:
    made = Drill(folder, given.seed)
    server = made.build()
    standby: Server | None = None
    try:
        await migrate.upgrade(server.url)
        await made.storm(server, given.rounds)
        found = await made.drain(server)
        if given.promote:
            standby = await made.promote(server)
            found += await made.drain(standby)
        return made, found
    finally:
        for each in (server, standby):
            if each is not None:
                each.end()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="storage-faults")
    parser.add_argument("--rounds", type=int, default=30, help="how many faults")
    parser.add_argument("--no-promotion", dest="promote", action="store_false")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    given = parser.parse_args(arguments)
    logging.disable(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="nexus-faults-", ignore_cleanup_errors=True) as name:
        made, found = asyncio.run(_drill(Path(name), given))
    for line in found[:10]:
        print(f"  {line}")
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(made.faults.items()))
    print(f"faults: {told}; {made.refused} submissions refused, {len(made.known_finished)} tasks seen finished")
    print(f"storage-faults: {len(found)} of {len(made.accepted)} acknowledged tasks broke a promise (seed {given.seed})")
    return 1 if found or not made.accepted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
