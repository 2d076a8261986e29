"""The host's record: read back as written, distrusted when torn or old, and a process named beyond doubt."""

import json
import os
import subprocess
import sys

import pytest

from nexus.apps import keeper_record
from nexus.core import errors
from nexus.kit.home import Home


def make(**more):
    values = {
        "origin": "http://127.0.0.1:1",
        "pid": os.getpid(),
        "ticks": keeper_record.ticks_of(os.getpid()),
        "started_at": 1.0,
        "host": "127.0.0.1",
        "port": 1,
        "gateways": 1,
        "database": "embedded",
        "boot": keeper_record.boot_id(),
        "version": "1",
        "processes": (keeper_record.ProcessRecord(name="control", pid=1, ticks=2, started_at=3.0),),
    }
    return keeper_record.HostRecord(**{**values, **more})


def test_a_record_is_read_as_it_was_written_and_private(tmp_path):
    home = Home(tmp_path)
    keeper_record.write(home, make())
    assert keeper_record.read(home) == make()
    assert home.host_record.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["host.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"pid": 1}', '{"processes": [1]}', "\udcff"])
def test_a_torn_or_foreign_record_counts_as_none(tmp_path, text):
    home = Home(tmp_path)
    home.host_record.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert keeper_record.read(home) is None


def test_a_record_from_before_a_reboot_counts_as_none(tmp_path):
    home = Home(tmp_path)
    keeper_record.write(home, make(boot="another"))
    assert keeper_record.read(home) is None


def test_a_process_id_given_to_another_process_is_not_taken_for_the_first(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        ticks = keeper_record.ticks_of(process.pid)
        handle = keeper_record.open_process(process.pid, ticks)
        assert handle is not None
        os.close(handle)
        assert keeper_record.open_process(process.pid, ticks + 1) is None
    finally:
        process.kill()
        process.communicate()
    assert keeper_record.ticks_of(process.pid) is None
    assert keeper_record.open_process(process.pid, ticks) is None


def test_a_zombie_is_not_alive():
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert keeper_record.ticks_of(process.pid) is None
    process.wait()


def test_the_lock_is_held_by_one_and_the_other_is_told_by_whom(tmp_path):
    home = Home(tmp_path)
    keeper_record.write(home, make())
    assert not keeper_record.is_locked(home)
    with keeper_record.hold_lock(home):
        assert keeper_record.is_locked(home)
        with pytest.raises(errors.Conflict) as caught, keeper_record.hold_lock(home):
            pass
        assert caught.value.code == "host.running"
        assert "http://127.0.0.1:1" in caught.value.message
    assert not keeper_record.is_locked(home)


def test_the_record_has_what_other_programs_read(tmp_path):
    home = Home(tmp_path)
    keeper_record.write(home, make())
    value = json.loads(home.host_record.read_text())
    assert {"origin", "pid", "started_at", "processes"} <= set(value)
