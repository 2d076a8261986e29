"""The keeper over small servers: it restarts what is killed, is replaced when killed itself, and leaves nothing when it stops."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from nexus.apps import host as verbs
from nexus.apps import keeper_record


def test_a_killed_process_is_started_again_and_the_others_stay(rig):
    rig.start(NEXUS_DISPATCHERS="1")
    before = {entry.name: entry.pid for entry in rig.wait_ready().processes}
    assert set(before) == {"control", "supervisor", "dispatcher-0", "gateway-0", "gateway-1"}
    for name in ("supervisor", "control", "dispatcher-0", "gateway-1"):
        os.kill(before[name], signal.SIGKILL)
        again = rig.wait_for(
            lambda name=name: (entry := rig.process(name)) and entry.pid != before[name] and entry, f"another {name}"
        )
        assert again.restarts == 1
        if name != "gateway-1":
            rig.wait_for(lambda name=name, pid=again.pid: rig.answers(name) == pid, f"{name} to answer")
    assert rig.process("gateway-0").pid == before["gateway-0"]


def test_ctrl_c_stops_every_process_in_order_and_removes_the_record(rig):
    process = rig.start()
    record = rig.wait_ready()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Nexus" in output
    assert record.origin in output
    assert not any(keeper_record.is_alive(entry) for entry in record.processes)
    assert not rig.home.host_record.exists()
    ended = [line.split("|")[0].strip() for line in output.splitlines() if "ended in order" in line]
    assert ended[-2:] == ["control", "supervisor"]
    assert set(ended[:-2]) == {"gateway-0", "gateway-1"}


def test_a_killed_keeper_is_replaced_by_one_that_adopts_what_runs(rig):
    rig.start("--detached")
    first = rig.wait_ready()
    pids = {entry.name: entry.pid for entry in first.processes}
    os.kill(first.pid, signal.SIGKILL)
    second = rig.wait_for(lambda: (found := rig.wait_ready()).pid != first.pid and found, "another keeper")
    assert {entry.name: entry.pid for entry in second.processes} == pids
    assert (second.origin, second.started_at) == (first.origin, first.started_at)
    # the adopted ones are watched like its own
    os.kill(pids["supervisor"], signal.SIGKILL)
    rig.wait_for(lambda: (entry := rig.process("supervisor")) and entry.pid != pids["supervisor"], "another supervisor")
    assert verbs.stop(rig.home, force=False, environ=rig.environment(), say=lambda line: None)
    assert not any(keeper_record.is_alive(entry) for entry in second.processes)
    assert not rig.home.host_record.exists()


def test_a_keeper_that_comes_too_late_leaves_the_host_to_others(rig):
    """Control starts one when it sees its keeper die; meanwhile that may have been replaced, and its successor as well."""
    rig.start("--detached")
    first = rig.wait_ready()
    control = rig.process("control")
    os.kill(control.pid, signal.SIGSTOP)  # a guardian that cannot act
    os.kill(first.pid, signal.SIGKILL)
    rig.wait_for(lambda: not keeper_record.is_alive(first), "the keeper to be gone")
    late = rig.start("--adopt", str(control.pid))
    assert late.wait(timeout=30) == 0
    assert keeper_record.read(rig.home).pid == first.pid
    os.kill(control.pid, signal.SIGCONT)  # now it does
    second = rig.wait_for(lambda: (found := rig.wait_ready()).pid != first.pid and found, "another keeper")
    later = rig.start("--adopt", str(first.pid))
    assert later.wait(timeout=30) == 0
    assert rig.wait_ready() == second


def test_a_host_that_is_taken_over_gets_the_dispatchers_that_are_asked_for(rig):
    rig.start("--detached", NEXUS_DISPATCHERS="2")
    first = rig.wait_ready()
    pids = {entry.name: entry.pid for entry in first.processes}
    gone = next(entry for entry in first.processes if entry.name == "dispatcher-1")
    assert rig.home.logs.joinpath("dispatcher-1.log").exists()
    rig.start("--replace", NEXUS_DISPATCHERS="1")
    second = rig.wait_for(lambda: (found := rig.wait_ready()).pid != first.pid and found, "another keeper")
    rig.wait_for(lambda: not keeper_record.is_alive(gone), "the end of a dispatcher that nobody wants any more")
    rig.wait_for(lambda: rig.process("dispatcher-0").pid != pids["dispatcher-0"], "the other one to begin again")
    assert (second.dispatchers, rig.process("supervisor").pid) == (1, pids["supervisor"])
    third = rig.start("--replace")
    rig.wait_for(lambda: keeper_record.read(rig.home).pid == third.pid and rig.wait_ready(), "a third keeper")
    assert keeper_record.read(rig.home).dispatchers == 1


def test_down_stops_what_runs_when_keeper_and_guardian_are_both_gone(rig):
    rig.start("--detached")
    record = rig.wait_ready()
    control = next(entry for entry in record.processes if entry.name == "control")
    os.kill(control.pid, signal.SIGSTOP)  # a guardian that cannot act
    os.kill(record.pid, signal.SIGKILL)
    os.kill(control.pid, signal.SIGKILL)
    rig.wait_for(lambda: not keeper_record.is_alive(record), "the keeper to be gone")
    assert verbs.stop(rig.home, force=False, environ=rig.environment(), say=lambda line: None)
    assert not any(keeper_record.is_alive(entry) for entry in record.processes)
    assert not verbs.stop(rig.home, force=False, environ=rig.environment(), say=lambda line: None)


def test_a_second_start_on_the_same_home_is_refused_and_changes_nothing(rig):
    rig.start()
    record = rig.wait_ready()
    second = rig.start()
    output, _ = second.communicate(timeout=30)
    assert second.returncode == 6
    assert "host.running" in output
    assert record.origin in output
    assert str(record.pid) in output
    assert rig.wait_ready() == record


def test_a_port_that_somebody_has_is_refused_by_name(rig):
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        process = rig.start(NEXUS_PORT=str(port))
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 6
    assert "host.port_in_use" in output
    assert str(port) in output
    assert "--port" in output


def test_a_process_that_cannot_start_ends_the_start_with_its_own_words(rig):
    process = rig.start(NEXUS_SMALL_FAIL="supervisor")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 9
    assert "host.start_failed" in output
    assert "supervisor cannot find its thing" in output
    assert not rig.home.host_record.exists()


def test_a_process_that_ignores_the_stop_is_killed(rig):
    process = rig.start(NEXUS_SMALL_DEAF="gateway-1")
    record = rig.wait_ready()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert "gateway-1 did not end" in output
    assert not any(keeper_record.is_alive(entry) for entry in record.processes)


def test_a_forced_stop_ends_agents_that_their_supervisor_left(rig):
    rig.start("--detached")
    record = rig.wait_ready()
    agent = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env={"NEXUS_SOCKET": str(rig.home.instance_socket("ins_1"))},
        start_new_session=True,
    )
    other = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env={"NEXUS_SOCKET": "/somewhere/else/i/ins_1.sock"}
    )
    try:
        assert verbs.stop(rig.home, force=True, environ=rig.environment(), say=lambda line: None)
        assert agent.wait(timeout=20) == -signal.SIGKILL
        assert other.poll() is None
        assert not any(keeper_record.is_alive(entry) for entry in record.processes)
    finally:
        agent.kill()
        other.kill()
        agent.wait()
        other.wait()


def test_a_host_whose_home_was_deleted_stops_by_itself(rig):
    process = rig.start()
    record = rig.wait_ready()
    shutil.rmtree(rig.home.root)
    output, _ = process.communicate(timeout=60)
    assert "is gone" in output
    assert not any(keeper_record.is_alive(entry) for entry in record.processes)


def test_a_detached_start_reports_its_outcome_through_the_pipe(rig):
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    process = subprocess.run(
        [sys.executable, rig_small(rig), "--detached", "--ready-fd", str(writing)],
        env=rig.environment(),
        pass_fds=(writing,),
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert process.returncode == 0
    with open(reading) as pipe:
        outcome = json.loads(pipe.readline())
    assert outcome["ok"]
    assert outcome["origin"] == rig.wait_ready().origin
    assert any("everything" in line for line in outcome["lines"])  # what the node says is missing is shown


def test_a_host_under_a_very_deep_path_puts_its_sockets_elsewhere(rig, home):
    deep = type(home)(home.root / ("x" * 60) / ("y" * 60))
    rig.home = deep
    process = rig.start()
    rig.wait_ready()
    assert len(str(deep.control_socket)) < 108
    assert deep.run.stat().st_mode & 0o777 == 0o700
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert not deep.run.exists()


@pytest.mark.parametrize(("name", "value"), [("NEXUS_PORT", "99999"), ("NEXUS_PORT", "http"), ("NEXUS_GATEWAYS", "0")])
def test_a_wrong_setting_is_named_with_what_is_expected(rig, name, value):
    process = rig.start(**{name: value})
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert name in output
    assert "expected" in output


def rig_small(rig) -> str:
    from pathlib import Path

    return str(Path(__file__).with_name("small_host.py"))


def test_a_host_is_handed_to_another_keeper_and_a_successor_that_fails_changes_nothing(rig):
    old = rig.start()
    record = rig.wait_ready()
    rig.start("--detached", "--replace", NEXUS_SMALL_FAIL="gateway-1")
    output, _ = old.communicate(timeout=30)
    assert old.returncode == 0
    assert "what runs goes on" in output
    now = rig.wait_for(lambda: (found := rig.wait_ready()).pid != record.pid and found, "another keeper")
    before = {entry.name: entry.pid for entry in record.processes}
    rig.wait_for(lambda: "gateway-1 goes on as it is" in rig.home.logs.joinpath("host.log").read_text(), "the failure to be said")
    assert rig.process("gateway-1").pid == before["gateway-1"]
    assert rig.process("supervisor").pid == before["supervisor"]
    assert rig.process("control").pid != before["control"]
    # small gateways do not end when they are replaced: the older one is kept in sight, by the keeper after the next one too
    older = rig.wait_for(lambda: rig.process("gateway-0-before"), "the older gateway in the record")
    assert older.pid == before["gateway-0"]
    os.kill(now.pid, signal.SIGKILL)
    last = rig.wait_for(lambda: (found := rig.wait_ready()).pid not in (record.pid, now.pid) and found, "a third keeper")
    assert rig.process("gateway-0-before") == older
    assert verbs.stop(rig.home, force=True, environ=rig.environment(), say=lambda line: None)
    assert not any(keeper_record.is_alive(entry) for entry in last.processes)
    assert not keeper_record.is_alive(older)
