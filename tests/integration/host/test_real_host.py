"""The whole host by its own commands: up, status, doctor, a second up, a kill of each process, down."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from nexus.apps import keeper_record, keeper_sweep
from nexus.stores import embedded, embedded_leftovers

pytestmark = pytest.mark.xdist_group("real-host")


@pytest.fixture
def nexus(rig):
    def run(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-P", "-m", "nexus.cli.main", *arguments],
            env=rig.environment(**more),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    yield run
    run("down", "--force")


def api(rig, path: str) -> int:
    record = keeper_record.read(rig.home)
    key = rig.home.admin_key.read_text().strip()
    question = urllib.request.Request(f"{record.origin}{path}", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(question, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_host_from_up_to_down(rig, nexus):
    started = nexus("up", "-d", "--json")
    assert started.returncode == 0, started.stderr + rig.logs()
    outcome = json.loads(started.stdout)
    assert outcome["ok"]
    assert not outcome["origin"].endswith(":0")

    found = json.loads(nexus("status", "--json").stdout)
    assert found["running"]
    assert found["gateway"] == "answers"
    assert found["deployments"] == []
    assert {entry["name"] for entry in found["processes"]} == {
        "keeper", "postgres", "control", "supervisor", "gateway-0", "gateway-1"}  # fmt: skip
    assert all(entry["alive"] and entry["memory_bytes"] > 1_000_000 for entry in found["processes"])

    second = nexus("up", "-d")
    assert second.returncode == 6
    assert outcome["origin"] in second.stderr

    findings = {entry["name"]: entry for entry in json.loads(nexus("doctor", "--json").stdout)["findings"]}
    assert outcome["origin"] in findings["port"]["detail"]

    # A file that others may read holds no password, and no process shows one in its command line.
    password = embedded.locate(rig.home).password
    for entry in found["processes"]:
        with open(f"/proc/{entry['pid']}/cmdline", "rb") as file:
            assert password.encode() not in file.read()

    assert nexus("up", "--json").returncode == 2  # JSON of a host in the foreground would never end
    assert nexus("down").returncode == 0
    assert not any(keeper_record.ticks_of(entry["pid"]) for entry in found["processes"])
    assert embedded_leftovers.processes_in(embedded.locate(rig.home).data) == []
    assert keeper_sweep.find_agents(rig.home) == []
    assert nexus("status").returncode == 9
    assert nexus("down").returncode == 0


def test_each_process_is_killed_and_the_host_answers_again(rig, nexus):
    assert nexus("up", "-d").returncode == 0, rig.logs()
    for name in ("gateway-1", "supervisor", "postgres", "control", "keeper"):
        before = keeper_record.read(rig.home)
        entry = before if name == "keeper" else rig.process(name)
        os.kill(entry.pid, signal.SIGKILL)

        def replaced(name: str = name, pid: int = entry.pid) -> bool:
            now = keeper_record.read(rig.home) if name == "keeper" else rig.process(name)
            return now is not None and now.pid != pid and keeper_record.is_alive(now)

        rig.wait_for(replaced, f"another {name}")
        rig.wait_for(lambda: api(rig, "/health") == 200 and api(rig, "/v1/agents") == 200, f"answers after {name} was killed")
    assert nexus("down").returncode == 0
    assert not rig.home.host_record.exists()
