"""The whole host by its own commands: up, status, doctor, a second up, down."""

import json
import subprocess
import sys

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
