"""The embedded PostgreSQL as a real process: data survive kill -9, leftovers are cleared, and only the password opens it."""

import json
import os
import shutil
import signal
import subprocess
import sys

import psycopg
import pytest

from nexus.core import errors
from nexus.kit.home import Home
from nexus.stores import embedded, embedded_binaries, embedded_leftovers

pytestmark = pytest.mark.xdist_group("embedded-postgres")


@pytest.fixture
def server(rig, home):
    """Starts the database process; each call starts it again."""
    started = []

    def start() -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "nexus.apps.host_postgres"],
            env=rig.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=20)


def connect(rig, home: Home) -> "psycopg.Connection[tuple[object, ...]]":
    def ask():
        try:
            return psycopg.connect(embedded.locate(home).uri, connect_timeout=2, autocommit=True)
        except psycopg.OperationalError:
            return None

    return rig.wait_for(ask, "the database")


def test_data_survive_a_kill_of_the_server_with_backends_at_work(rig, home, server):
    first = server()
    with connect(rig, home) as connection:
        connection.execute("create table kept (word text)")
        connection.execute("insert into kept values ('committed')")
        busy = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import psycopg\npsycopg.connect({embedded.locate(home).uri!r}).execute('select pg_sleep(60)')",
            ],
            stderr=subprocess.DEVNULL,
        )
        rig.wait_for(
            lambda: connection.execute("select 1 from pg_stat_activity where query like '%pg_sleep(60)%' and pid <> "
                                       "pg_backend_pid()").fetchone(), "a busy backend")  # fmt: skip
        first.kill()
        first.wait()
    second = server()
    with connect(rig, home) as connection:
        assert connection.execute("select word from kept").fetchall() == [("committed",)]
    busy.wait(timeout=20)
    second.send_signal(signal.SIGINT)
    assert second.wait(timeout=20) == 0


def test_an_orphaned_server_is_taken_over_not_fought_with(rig, home, server):
    orphan = server()
    connect(rig, home).close()
    second = server()
    assert orphan.wait(timeout=30) == 0
    with connect(rig, home) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    assert second.poll() is None


def test_a_stale_lock_file_that_names_a_living_stranger_is_no_obstacle(rig, home, server):
    process = server()
    connect(rig, home).close()
    process.kill()
    process.wait()
    data = embedded.locate(home).data
    lock = data / "postmaster.pid"
    lines = lock.read_text().splitlines()
    lock.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    server()
    connect(rig, home).close()


def test_without_the_password_nobody_gets_in(rig, home, server):
    server()
    connect(rig, home).close()
    place = embedded.locate(home)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(host=str(place.sockets), user="nexus", dbname="nexus", password="guess")
    assert (home.root / "postgres.json").stat().st_mode & 0o777 == 0o600
    assert place.sockets.stat().st_mode & 0o777 == 0o700
    assert place.data.stat().st_mode & 0o777 == 0o700


def test_it_listens_on_no_network_address_and_has_the_vector_extension(rig, home, server):
    server()
    with connect(rig, home) as connection:
        assert connection.execute("show listen_addresses").fetchone() == ("",)
        assert connection.execute("show fsync").fetchone() == ("on",)
        assert connection.execute("select 1 from pg_available_extensions where name = 'vector'").fetchone() == (1,)


def test_a_half_made_cluster_is_made_again(rig, home, server):
    place = embedded.locate(home)
    place.data.parent.mkdir(parents=True, exist_ok=True)
    half = place.data.with_name("postgres.new")
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    server()
    connect(rig, home).close()


def test_data_of_a_version_that_is_not_installed_are_left_alone_with_an_explanation(rig, home, server):
    place = embedded.locate(home)
    place.data.mkdir(parents=True)
    (place.data / "PG_VERSION").write_text("9\n")
    process = server()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 70
    assert "database.version" in output
    assert (place.data / "PG_VERSION").read_text() == "9\n"


def test_a_discarded_cluster_is_gone_and_the_next_one_is_new(rig, home, server):
    first = server()
    with connect(rig, home) as connection:
        connection.execute("create table gone (word text)")
    place = embedded.locate(home)
    embedded.discard(home)
    assert first.wait(timeout=20) == 0
    assert not place.data.exists()
    assert not place.sockets.exists()
    server()
    with connect(rig, home) as connection:
        assert connection.execute("select to_regclass('gone')").fetchone() == (None,)
    assert embedded.locate(home).password != place.password


def test_the_place_is_decided_once_and_two_askers_agree(home):
    first = embedded.locate(home)
    assert embedded.locate(home) == first
    assert embedded.locate(Home(home.root)) == first


def test_a_torn_record_is_an_error_and_not_a_new_password(home):
    embedded.locate(home)
    (home.root / "postgres.json").write_text("{")
    with pytest.raises(errors.Unavailable) as caught:
        embedded.locate(home)
    assert caught.value.code == "database.unreadable"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's homes keep their data outside")
def test_a_copied_home_of_root_does_not_share_the_data_kept_outside(home, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    original = Home(closed / "home")
    place = embedded.locate(original)
    assert place.data.parent != original.root
    try:
        embedded.claim(original)
        shutil.copytree(original.root, closed / "copy")
        with pytest.raises(errors.Conflict) as caught:
            embedded.claim(Home(closed / "copy"))
        assert caught.value.code == "database.shared"
        original.root.rename(closed / "moved")
        embedded.claim(Home(closed / "moved"))
        embedded.discard(Home(closed / "moved"))
        assert not place.data.parent.exists()
    finally:
        shutil.rmtree(place.data.parent, ignore_errors=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's homes keep their data outside")
def test_the_folder_outside_is_open_to_the_server_whatever_the_umask(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "OUTSIDE", tmp_path / "var" / "outside")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    before = os.umask(0o077)
    try:
        embedded.claim(Home(closed / "home"))
    finally:
        os.umask(before)
    assert embedded.locate(Home(closed / "home")).data.parent.parent == embedded.OUTSIDE
    assert embedded.OUTSIDE.stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's homes keep their data outside")
def test_data_of_a_temporary_home_go_when_the_home_is_gone_and_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "OUTSIDE", tmp_path / "outside")
    for name, home in (("temporary", tmp_path / "gone"), ("mounted", "/mnt/not-mounted/home"), ("alive", tmp_path / "alive")):
        (tmp_path / "outside" / name / "postgres").mkdir(parents=True)
        (tmp_path / "outside" / name / "home").write_text(str(home))
    (tmp_path / "alive").mkdir()
    (tmp_path / "alive" / "postgres.json").write_text("{}")
    embedded.remove_abandoned()
    assert sorted(entry.name for entry in (tmp_path / "outside").iterdir()) == ["alive", "mounted"]
    assert [folder.name for folder, _ in embedded.find_abandoned()] == ["mounted"]


def test_a_closed_checkout_is_copied_once_to_where_the_server_can_read_it(tmp_path):
    found = embedded_binaries.find_all()[0]
    if found.origin != "wheel":
        pytest.skip("no wheel here")
    tmp_path.chmod(0o700)
    package = found.directory.parents[1]
    closed = tmp_path / "site"
    shutil.copytree(found.directory.parent, closed / package.name / found.directory.parent.name, symlinks=True)
    copy = embedded_binaries.Binaries(
        directory=closed / package.name / found.directory.parent.name / "bin", origin="wheel", major=found.major
    )
    copy.postgres.chmod(0o700)
    reached = embedded_binaries.make_reachable(copy, shelf=tmp_path / "shelf")
    assert reached.directory != copy.directory
    assert reached.postgres.stat().st_mode & 0o777 == 0o755
    answer = subprocess.run([reached.postgres, "--version"], capture_output=True, text=True, check=True)
    assert "PostgreSQL" in answer.stdout
    assert embedded_binaries.make_reachable(copy, shelf=tmp_path / "shelf") == reached
    assert len(list((tmp_path / "shelf").iterdir())) == 1


def test_the_record_holds_a_random_password(home, tmp_path):
    other = Home(tmp_path / "other")
    passwords = {json.loads((place.root / "postgres.json").read_text())["password"] for place in _located(home, other)}
    assert len(passwords) == 2
    assert min(map(len, passwords)) >= 40


def _located(*homes: Home) -> tuple[Home, ...]:
    for home in homes:
        embedded.locate(home)
    return homes


def test_clearing_an_unused_directory_ends_nobody(tmp_path):
    assert embedded_leftovers.clear(tmp_path) == []
