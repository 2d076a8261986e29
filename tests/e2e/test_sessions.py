"""Sessions with a box of their own on a real host: apart, kept, streamed, looked at, killed, restored."""

import json
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from nexus.cli import exits
from tests.e2e.conftest import Host, start_host, until, write_agent

AGENT = """
    import os, random, time
    from pathlib import Path
    from nexus.ai.agents import Agent

    IMPORTED_BY = os.getpid()
    FOLDER = Path(os.environ["HOME"])

    class Mine(Agent):
        async def process(self, input):
            do = input["do"]
            if do == "count":
                self.state["n"] = self.state.get("n", 0) + 1
                return self.state["n"]
            if do == "write":
                (FOLDER / "note.txt").write_text(input["text"])
                (Path("/tmp") / "scratch").write_text(input["text"])
                return "written"
            if do == "look":
                found = sorted(path.name for path in FOLDER.iterdir() if path.name == "note.txt")
                return {"files": found, "scratch": Path("/tmp/scratch").exists(),
                        "processes": len([name for name in os.listdir("/proc") if name.isdigit()])}
            if do == "random":
                return random.random()
            if do == "burn":
                end = time.process_time() + input["s"]
                while time.process_time() < end:
                    pass
                return "burnt"
            if do == "hang":
                time.sleep(600)
            if do == "print":
                print(input["text"])
                return "printed"
            if do == "bomb":
                held = bytearray()
                while True:
                    held += bytearray(os.urandom(1 << 20) * 64)

    agent = Mine
"""
CONFIG = """
hosting:
  isolation: session
  memory: 256Mi
  session:
    freeze_after: 5s
"""
pytestmark = pytest.mark.xdist_group("sessions")


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with agent `apart`, whose sessions have a box of their own each."""
    running = start_host(tmp_path_factory.mktemp("home"))
    try:
        project = write_agent(tmp_path_factory.mktemp("agents"), "apart", AGENT, config=CONFIG)
        running.ok("ai", "agent", "deploy", cwd=project)
        yield running
    finally:
        running.cli("down", timeout=60)


def run(host: Host, session: str, **wanted: object) -> tuple[int, object]:
    status, body = host.run("apart", wanted, Nexus_Session_Id=session)
    return status, body["output"] if status == 200 else body


def shown(host: Host, session: str) -> dict[str, object]:
    return dict(host.ok("ai", "agent", "sessions", "show", "apart", session, "--json").json)


def alive(host: Host) -> set[str]:
    listed = host.ok("ai", "agent", "sessions", "list", "apart", "--json").json
    return {one["session_id"] for one in listed if one["phase"] in ("starting", "live", "frozen")}


def test_two_sessions_share_nothing(apart: Host) -> None:
    assert run(apart, "anna", do="write", text="secret")[1] == "written"
    assert run(apart, "anna", do="look")[1] == {"files": ["note.txt"], "scratch": True, "processes": pytest.approx(2, abs=3)}
    found = run(apart, "ben", do="look")[1]
    assert isinstance(found, dict)
    assert (found["files"], found["scratch"]) == ([], False)
    assert run(apart, "anna", do="random")[1] != run(apart, "ben", do="random")[1]
    one, two = shown(apart, "anna"), shown(apart, "ben")
    assert one["phase"] == two["phase"] == "live"
    assert one["pid"] != two["pid"]


def test_a_session_keeps_its_state_and_its_files_when_it_is_stopped(apart: Host) -> None:
    assert [run(apart, "carl", do="count")[1] for _ in range(2)] == [1, 2]
    run(apart, "carl", do="write", text="kept")
    before = shown(apart, "carl")["pid"]
    apart.ok("ai", "agent", "sessions", "stop", "apart", "carl")
    assert shown(apart, "carl")["phase"] in ("saved", "past")
    assert run(apart, "carl", do="count")[1] == 3
    found = run(apart, "carl", do="look")[1]
    assert isinstance(found, dict)
    assert (found["files"], found["scratch"]) == (["note.txt"], False)
    assert shown(apart, "carl")["pid"] != before


def test_a_session_is_killed_and_begins_again(apart: Host) -> None:
    assert run(apart, "dora", do="count")[1] == 1
    told = apart.ok("ai", "agent", "sessions", "kill", "apart", "dora", "--json").json
    assert told["phase"] == "ended"
    assert run(apart, "dora", do="count")[1] == 2


def test_a_deleted_session_has_forgotten_everything(apart: Host) -> None:
    assert [run(apart, "dave", do="count")[1] for _ in range(2)] == [1, 2]
    run(apart, "dave", do="write", text="kept")
    apart.ok("ai", "agent", "sessions", "stop", "apart", "dave")
    assert apart.ok("ai", "agent", "sessions", "delete", "apart", "dave", "--json").json["deleted"] == "dave"
    assert run(apart, "dave", do="count")[1] == 1
    found = run(apart, "dave", do="look")[1]
    assert isinstance(found, dict)
    assert found["files"] == []
    apart.ok("ai", "agent", "sessions", "delete", "apart", "dave")
    assert "dave" not in alive(apart)
    assert apart.cli("ai", "agent", "sessions", "delete", "apart", "nobody").code == exits.CODES["not_found"]


def test_kill_all_ends_every_session_of_the_agent(apart: Host) -> None:
    for session in ("e1", "e2", "e3"):
        run(apart, session, do="count")
    told = apart.ok("ai", "agent", "sessions", "kill", "--all", "--agent", "apart", "--json").json
    assert told["killed"] >= 3
    assert alive(apart) == set()
    assert run(apart, "e1", do="count")[1] == 2


def test_a_run_in_a_killed_session_fails_with_a_typed_error(apart: Host) -> None:
    answers: list[tuple[int, object]] = []
    waiting = threading.Thread(target=lambda: answers.append(run(apart, "frank", do="hang")))
    waiting.start()
    until(lambda: "frank" in alive(apart))
    apart.ok("ai", "agent", "sessions", "kill", "apart", "frank")
    waiting.join(30)
    status, body = answers[0]
    assert status >= 500
    assert isinstance(body, dict)
    assert body["code"] in ("session.killed", "agent.connection_lost")


def test_a_memory_bomb_ends_its_own_session_alone(apart: Host) -> None:
    assert run(apart, "neighbour", do="count")[1] == 1
    pid = shown(apart, "neighbour")["pid"]
    status, body = run(apart, "bomber", do="bomb")
    assert isinstance(body, dict)
    assert (status >= 400, body["code"]) == (True, "instance.out_of_memory"), body
    assert run(apart, "neighbour", do="count")[1] == 2
    assert shown(apart, "neighbour")["pid"] == pid


def test_what_a_session_used_is_told(apart: Host) -> None:
    run(apart, "gina", do="burn", s=0.3)
    told = shown(apart, "gina")
    assert float(str(told["cpu_s"])) >= 0.3
    assert int(str(told["bytes_in"])) > 0
    apart.ok("ai", "agent", "sessions", "stop", "apart", "gina")
    after = shown(apart, "gina")
    assert float(str(after["cpu_s"])) >= float(str(told["cpu_s"])), "also when it has ended"
    assert float(str(after["memory_byte_seconds"])) > 0
    found = [one for one in apart.ok("ai", "agent", "runs", "apart", "--json").json if one["session_id"] == "gina"]
    assert found
    assert found[0]["cpu_s"] >= 0.25


def test_a_command_runs_inside_and_logs_are_found_by_session(apart: Host) -> None:
    run(apart, "hugo", do="print", text="hello from hugo")
    told = apart.ok("ai", "agent", "sessions", "exec", "apart", "hugo", "--", "sh", "-c", "echo inside; id -u; exit 0")
    assert told.out.splitlines()[0] == "inside"
    assert told.out.splitlines()[1] != "0"
    assert apart.cli("ai", "agent", "sessions", "exec", "apart", "hugo", "--", "sh", "-c", "exit 7").code == 7
    lines = apart.ok("ai", "agent", "sessions", "logs", "apart", "hugo", "--json").out.splitlines()
    assert "hello from hugo" in [json.loads(line)["message"] for line in lines]


def test_a_stream_and_a_task_run_in_their_session(apart: Host) -> None:
    run(apart, "ida", do="count")
    status, task, _ = apart.call("POST", "/agents/apart/tasks", {"input": {"do": "count"}, "session_id": "ida"})
    assert status == 202
    assert apart.ok("ai", "agent", "task", "result", task["task_id"], "--json").json["output"] == 2
    told = apart.ok("ai", "agent", "stream", "apart", "--data", '{"do": "count"}', "--session", "ida", "--json").out
    assert '"output": 3' in told or '"output":3' in told


def test_sessions_outlive_their_supervisor(apart: Host) -> None:
    run(apart, "jack", do="write", text="x")
    pid = shown(apart, "jack")["pid"]
    processes = {one["name"]: one["pid"] for one in apart.ok("status", "--json").json["processes"]}
    os.kill(processes["supervisor"], signal.SIGKILL)
    found = until(lambda: (answer := run(apart, "jack", do="look"))[0] == 200 and answer[1])
    assert found["scratch"] is True
    until(lambda: apart.cli("ai", "agent", "sessions", "show", "apart", "jack").code == 0)
    assert shown(apart, "jack")["pid"] == pid
