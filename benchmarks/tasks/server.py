"""A PostgreSQL that really commits, for measurements; and the CPU seconds that it and this process used."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
from tests import conftest as servers


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A server with its ordinary, durable settings. Yields the URI of a database by format."""
    binaries, who = servers._binaries(), servers._as_ordinary_user()
    if who:
        os.chown(folder, 65534, 65534)
    data, environment = folder / "data", {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": str(folder)}
    initdb = [binaries / "initdb", "-D", data, "-U", "nexus", "--auth=trust", "--encoding=UTF8", "--no-locale"]
    subprocess.run(initdb, check=True, capture_output=True, env=environment, cwd=folder, **who)
    settings = {
        "listen_addresses": "", "unix_socket_directories": str(folder), "shared_buffers": "128MB", "jit": "off",
        "max_wal_size": "2GB", "max_connections": "200",
    }  # fmt: skip
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
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


def create_database(url: str, name: str) -> str:
    with psycopg.connect(url.format("postgres"), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}"')
        connection.execute(f'CREATE DATABASE "{name}"')
    return url.format(name)


class Cpu:
    """CPU seconds of this process and of the server's connections, which must last as long as what is measured."""

    def __init__(self, url: str) -> None:
        with psycopg.connect(url) as connection:
            self._server = psutil.Process(psutil.Process(connection.info.backend_pid).ppid())
        self._began = self._read()

    def spent(self) -> tuple[float, float]:
        """(this process, the server)."""
        own, server = self._read()
        return own - self._began[0], server - self._began[1]

    def _read(self) -> tuple[float, float]:
        """Of the server only what its connections do: a vacuum or a checkpoint comes when it wants to."""
        usage, server = resource.getrusage(resource.RUSAGE_SELF), 0.0
        for child in self._server.children():
            try:
                if "[local]" in " ".join(child.cmdline()):
                    times = child.cpu_times()
                    server += times.user + times.system
            except psutil.NoSuchProcess:
                continue
        return usage.ru_utime + usage.ru_stime, server
