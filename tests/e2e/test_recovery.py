"""Every process is killed with SIGKILL in turn; the host serves again and nothing acknowledged is lost."""

import contextlib
import json
import os
import signal
import threading
from pathlib import Path

import pytest

from tests.e2e.conftest import Host, until, write_agent

CODE = """
import asyncio

async def agent(input):
    if isinstance(input, dict):
        await asyncio.sleep(input["sleep"])
    return f"echo {input}"
"""


def processes(host: Host) -> dict[str, int]:
    """Name → pid of every process of the host, as `nexus status` reports them."""
    status = host.ok("status", "--json").json
    return {entry["name"]: entry["pid"] for entry in status["processes"]}


@pytest.mark.parametrize("own_host", [{"NEXUS_DISPATCHERS": "1"}], indirect=True, ids=["dispatcher"])
def test_kill_each_process_and_serve_again(own_host: Host, tmp_path: Path) -> None:
    folder = write_agent(tmp_path, "echo", CODE)
    own_host.ok("ai", "agent", "deploy", "echo", "--env", "development", cwd=folder)
    names = list(processes(own_host))
    assert {"keeper", "postgres", "control", "supervisor", "dispatcher-0"} <= set(names)
    for name in names:
        pid = processes(own_host)[name]
        accepted = own_host.call("POST", "/agents/echo/tasks", {"input": {"sleep": 0.3}})
        assert accepted[0] == 202, accepted
        os.kill(pid, signal.SIGKILL)

        def serves() -> bool:
            try:
                return own_host.run("echo", "hello", Nexus_Environment="development")[0] == 200
            except OSError:
                return False

        def finished(task: str = accepted[1]["task_id"]) -> bool:
            try:
                status, seen, _ = own_host.call("GET", f"/tasks/{task}")
                return status == 200 and seen["status"] == "completed"
            except OSError:
                return False

        def replaced(name: str = name, pid: int = pid) -> bool:
            return processes(own_host).get(name, pid) != pid

        until(serves, timeout=20, what=f"serving after {name} was killed")
        until(finished, timeout=60, what=f"the task accepted before {name} was killed")
        until(replaced, timeout=20, what=f"a new {name}")
    until(lambda: "\nnexus_dispatchers 1.0\n" in own_host.call("GET", "/metrics")[1], what="one dispatcher, the dead ones buried")
    own_host.ok("down", timeout=60)
    assert left_of(own_host) == []


def left_of(host: Host) -> list[str]:
    """Command lines of processes that were started for this host."""
    mark, found = f"NEXUS_HOME={host.home}\0".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().decode(errors="replace"))
    return found


def test_an_agent_that_is_killed_comes_back(host: Host, tmp_path: Path) -> None:
    folder = write_agent(tmp_path, "mortal", CODE)
    host.ok("ai", "agent", "deploy", "mortal", "--env", "development", cwd=folder)
    (instance,) = host.ok("ai", "agent", "show", "mortal", "--json").json["deployments"][0]["instances"]
    os.kill(instance["pid"], signal.SIGKILL)
    until(lambda: host.run("mortal", "again")[0] == 200, timeout=20, what="the agent")
    host.ok("ai", "agent", "delete", "mortal", "--yes")


def test_a_rolling_update_fails_no_request(host: Host, tmp_path: Path) -> None:
    folder = write_agent(tmp_path, "rolling", "def agent(input): return 'one'\n")
    host.ok("ai", "agent", "deploy", "rolling", "--env", "production", cwd=folder)
    stop, answers = threading.Event(), []

    def load() -> None:
        while not stop.is_set():
            answers.append(host.run("rolling", "x"))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        (folder / "agent.py").write_text("def agent(input): return 'two'\n")
        (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("1.0.0", "2.0.0"))
        host.ok("ai", "agent", "deploy", "rolling", "--env", "production", cwd=folder)
        until(lambda: answers[-1][1].get("output") == "two", what="an answer of the new version")
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert {status for status, _ in answers} == {200}
    assert {body["output"] for _, body in answers} == {"one", "two"}


@pytest.mark.parametrize("question", ["status", "doctor"])
def test_status_and_doctor_speak_json(host: Host, question: str) -> None:
    result = host.cli(question, "--json")
    assert result.code in (0, 1)
    assert json.loads(result.out)
